// avx512: sixteen float lanes with AVX-512 Foundation alone.
#pragma once

#include <immintrin.h>

#include <cstddef>

#include "../shape.hpp"
#include "float8_halves.hpp"

namespace rheo {
namespace {

template <Dtype kv>
struct Avx512Element {
    using type = uint16_t;
};
template <>
struct Avx512Element<Dtype::float32> {
    using type = float;
};
template <>
struct Avx512Element<Dtype::float8> {
    using type = uint8_t;
};

struct Avx512 {
    static constexpr int width = 16;
    static constexpr int group_chunk = 8;
    using Vec = __m512;
    using Mask = __mmask16;
    template <Dtype kv>
    using Element = typename Avx512Element<kv>::type;

    static Vec set1(float x) { return _mm512_set1_ps(x); }
    static Vec load(const float* p) { return _mm512_loadu_ps(p); }
    static void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
    static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
    static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
    static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
    static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
    static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
    static Vec round(Vec x) { return _mm512_roundscale_ps(x, 0); }
    static Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
    static Vec zero_below(Vec x, Vec bound, Vec value) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), value);
    }
    static Vec keep_first(Vec x, int count, float otherwise) {
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __mmask16 kept = _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(count));
        return _mm512_mask_mov_ps(_mm512_set1_ps(otherwise), kept, x);
    }
    static Mask none() { return 0; }
    static Mask above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
    static Mask either(Mask a, Mask b) { return static_cast<Mask>(a | b); }
    static bool any(Mask mask) { return mask != 0; }
    static float reduce_max(Vec x) { return _mm512_reduce_max_ps(x); }

    static Vec repeat(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
    static Vec sum_fours(Vec a, Vec b, Vec c, Vec d) {
        const Vec ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const Vec cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        return add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    }
    using Words = __m512i;
    static Words load_words(const std::byte* p) { return _mm512_loadu_si512(p); }
    static Vec nibbles(Words words, int shift) {
        return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(words, shift), _mm512_set1_epi32(15)));
    }

    // A pair of bfloat16 vectors is the even and the odd elements of one line: one shift and one mask for
    // both.
    template <Dtype kv, int n>
    static void load_kv(const Element<kv>* p, Vec (&rows)[n]) {
        if constexpr (kv == Dtype::float32) {
            for (int i = 0; i < n; ++i) rows[i] = _mm512_loadu_ps(p + i * width);
        } else if constexpr (kv == Dtype::float16) {
            for (int i = 0; i < n; ++i)
                rows[i] =
                    _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i * width)));
        } else if constexpr (kv == Dtype::float8) {
            for (int i = 0; i < n; ++i) {
                const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i * width));
                rows[i] = mul(_mm512_cvtph_ps(float8_to_halves(bytes)), set1(kFloat8Factor));
            }
        } else if constexpr (n == 2) {
            const __m512i line = _mm512_loadu_si512(p);
            rows[0] = _mm512_castsi512_ps(_mm512_slli_epi32(line, 16));
            rows[1] =
                _mm512_castsi512_ps(_mm512_and_si512(line, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
        } else {
            const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
            rows[0] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        }
    }
    template <Dtype kv, int n>
    static void natural(Vec (&rows)[n]) {
        if constexpr (kv == Dtype::bfloat16 && n == 2) {
            const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            const __m512i high =
                _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            const Vec even = rows[0];
            rows[0] = _mm512_permutex2var_ps(even, low, rows[1]);
            rows[1] = _mm512_permutex2var_ps(even, high, rows[1]);
        }
    }
};

}  // namespace
}  // namespace rheo
