// avx2: eight float lanes with FMA and F16C.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "../shape.hpp"
#include "float8_halves.hpp"

namespace rheo {
namespace {

template <Dtype kv>
struct Avx2Element {
    using type = uint16_t;
};
template <>
struct Avx2Element<Dtype::float32> {
    using type = float;
};
template <>
struct Avx2Element<Dtype::float8> {
    using type = uint8_t;
};

struct Avx2 {
    static constexpr int width = 8;
    static constexpr int group_chunk = 4;
    using Vec = __m256;
    using Mask = __m256;
    template <Dtype kv>
    using Element = typename Avx2Element<kv>::type;

    static Vec set1(float x) { return _mm256_set1_ps(x); }
    static Vec load(const float* p) { return _mm256_loadu_ps(p); }
    static void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
    static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
    static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
    static Vec round(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static Vec scale_by_power(Vec x, Vec n) {
        const __m256i power = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(power, 23)));
    }
    static Vec zero_below(Vec x, Vec bound, Vec value) {
        return _mm256_andnot_ps(_mm256_cmp_ps(x, bound, _CMP_LT_OQ), value);
    }
    static Vec keep_first(Vec x, int count, float otherwise) {
        const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i kept = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
        return _mm256_blendv_ps(_mm256_set1_ps(otherwise), x, _mm256_castsi256_ps(kept));
    }
    static Mask none() { return _mm256_setzero_ps(); }
    static Mask above(Vec a, Vec b) { return _mm256_cmp_ps(a, b, _CMP_GT_OQ); }
    static Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
    static bool any(Mask mask) { return _mm256_movemask_ps(mask) != 0; }
    static float reduce_max(Vec x) {
        __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        half = _mm_max_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
    }

    static Vec repeat(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
    static Vec sum_fours(Vec a, Vec b, Vec c, Vec d) {
        return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    }
    using Words = __m256i;
    static Words load_words(const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static Vec nibbles(Words words, int shift) {
        return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(words, shift), _mm256_set1_epi32(15)));
    }

    // A pair of bfloat16 vectors is its even and its odd elements: one shift and one mask for both.
    template <Dtype kv, int n>
    static void load_kv(const Element<kv>* p, Vec (&rows)[n]) {
        if constexpr (kv == Dtype::float32) {
            for (int i = 0; i < n; ++i) rows[i] = _mm256_loadu_ps(p + i * width);
        } else if constexpr (kv == Dtype::float16) {
            for (int i = 0; i < n; ++i)
                rows[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * width)));
        } else if constexpr (kv == Dtype::float8) {
            for (int i = 0; i < n; ++i) {
                const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + i * width));
                rows[i] = mul(_mm256_cvtph_ps(_mm256_castsi256_si128(float8_to_halves(bytes))), set1(kFloat8Factor));
            }
        } else if constexpr (n == 2) {
            const __m256i line = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
            rows[0] = _mm256_castsi256_ps(_mm256_slli_epi32(line, 16));
            rows[1] =
                _mm256_castsi256_ps(_mm256_and_si256(line, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
        } else {
            const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
            rows[0] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
        }
    }
    template <Dtype kv, int n>
    static void natural(Vec (&rows)[n]) {
        if constexpr (kv == Dtype::bfloat16 && n == 2) {
            const Vec low = _mm256_unpacklo_ps(rows[0], rows[1]);
            const Vec high = _mm256_unpackhi_ps(rows[0], rows[1]);
            rows[0] = _mm256_permute2f128_ps(low, high, 0x20);
            rows[1] = _mm256_permute2f128_ps(low, high, 0x31);
        }
    }
};

}  // namespace
}  // namespace rheo
