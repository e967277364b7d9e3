// portable: four float lanes as the compilers' vector type, which every architecture has.
#pragma once

#include <cstddef>
#include <cstring>

#include "../numeric.hpp"
#include "../shape.hpp"

namespace rheo {
namespace {

template <Dtype kv>
struct PortableElement {
    using type = uint16_t;
};
template <>
struct PortableElement<Dtype::float32> {
    using type = float;
};
template <>
struct PortableElement<Dtype::float8> {
    using type = uint8_t;
};

struct Portable {
    static constexpr int width = 4;
    static constexpr int group_chunk = 4;
    using Vec = float __attribute__((vector_size(16)));
    using Mask = int32_t __attribute__((vector_size(16)));
    template <Dtype kv>
    using Element = typename PortableElement<kv>::type;

    static Vec set1(float x) { return Vec{x, x, x, x}; }
    static Vec load(const float* p) {
        Vec x;
        std::memcpy(&x, p, sizeof x);
        return x;
    }
    static void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
    static Vec add(Vec a, Vec b) { return a + b; }
    static Vec sub(Vec a, Vec b) { return a - b; }
    static Vec mul(Vec a, Vec b) { return a * b; }
    static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
    // The second operand where either is NaN, as x86's maximum.
    static Vec max(Vec a, Vec b) { return a > b ? a : b; }
    // Adding 1.5 * 2^23 leaves no fraction bits; exact for |x| < 2^22.
    static Vec round(Vec x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
    static Vec scale_by_power(Vec x, Vec n) {
        const Mask power = (__builtin_convertvector(n, Mask) + 127) << 23;
        return x * reinterpret_cast<Vec>(power);
    }
    static Vec zero_below(Vec x, Vec bound, Vec value) { return x < bound ? Vec{} : value; }
    static Vec keep_first(Vec x, int count, float otherwise) {
        return Mask{0, 1, 2, 3} < count ? x : set1(otherwise);
    }
    static Mask none() { return Mask{}; }
    static Mask above(Vec a, Vec b) { return a > b; }
    static Mask either(Mask a, Mask b) { return a | b; }
    static bool any(Mask mask) { return (mask[0] | mask[1] | mask[2] | mask[3]) != 0; }
    static float reduce_max(Vec x) {
        const Vec pairs = max(x, Vec{x[2], x[3], x[0], x[1]});
        return pairs[0] > pairs[1] ? pairs[0] : pairs[1];
    }

    // Four floats, as often as they fit.
    static Vec repeat(const float* p) { return load(p); }
    // The sums of every four lanes of a, b, c and d, side by side.
    static Vec sum_fours(Vec a, Vec b, Vec c, Vec d) {
        return Vec{a[0], b[0], c[0], d[0]} + Vec{a[1], b[1], c[1], d[1]} +
               (Vec{a[2], b[2], c[2], d[2]} + Vec{a[3], b[3], c[3], d[3]});
    }
    using Words = Mask;
    static Words load_words(const std::byte* p) {
        Words words;
        std::memcpy(&words, p, sizeof words);
        return words;
    }
    // Four bits of every word.
    static Vec nibbles(Words words, int shift) { return __builtin_convertvector((words >> shift) & 15, Vec); }

    template <Dtype kv, int n>
    static void load_kv(const Element<kv>* p, Vec (&rows)[n]) {
        for (int i = 0; i < n; ++i) {
            const auto* row = p + i * width;
            if constexpr (kv == Dtype::float32) {
                rows[i] = load(row);
            } else if constexpr (kv == Dtype::bfloat16) {
                const Mask wide{row[0], row[1], row[2], row[3]};
                rows[i] = reinterpret_cast<Vec>(wide << 16);
            } else if constexpr (kv == Dtype::float8) {
                rows[i] = Vec{kFloat8[row[0]], kFloat8[row[1]], kFloat8[row[2]], kFloat8[row[3]]};
            } else {
                for (int lane = 0; lane < width; ++lane) rows[i][lane] = float16_to_float(row[lane]);
            }
        }
    }
    template <Dtype kv, int n>
    static void natural(Vec (&)[n]) {}
};

}  // namespace
}  // namespace rheo
