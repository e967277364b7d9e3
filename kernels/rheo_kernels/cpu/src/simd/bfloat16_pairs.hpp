// bfloat16_pairs: two rows interleaved element by element, the operand of bfloat16 dot products.
#pragma once

#include "avx512.hpp"

namespace rheo {
namespace {

// 32 e4m3fn as bfloat16, which holds each of them: their exponent has another bias. Subnormals, whose exponents there
// differ, come from a table; products would take subnormal bfloat16 as 0.
inline __m512i float8_to_bfloat16(__m512i bytes_in_words) {
    alignas(64) static constexpr uint16_t subnormals[32] = {0,      0x3b00, 0x3b80, 0x3bc0,
                                                            0x3c00, 0x3c20, 0x3c40, 0x3c60};
    const __m512i magnitude =
        _mm512_and_si512(_mm512_slli_epi16(bytes_in_words, 4), _mm512_set1_epi16(0x07f0));
    const __mmask32 subnormal = _mm512_testn_epi16_mask(bytes_in_words, _mm512_set1_epi16(0x78));
    const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x07f0));
    __m512i wide = _mm512_add_epi16(magnitude, _mm512_set1_epi16((127 - 7) << 7));
    wide = _mm512_mask_permutexvar_epi16(wide, subnormal, bytes_in_words, _mm512_load_si512(subnormals));
    wide = _mm512_mask_mov_epi16(wide, nan, _mm512_set1_epi16(0x7fc0));
    constexpr int kOrSelected = 0xf8;  // a | (b & c)
    const __m512i signs = _mm512_set1_epi16(static_cast<short>(0x8000));
    return _mm512_ternarylogic_epi32(wide, bytes_in_words, signs, kOrSelected);
}

// Elements of a row as bfloat16.
inline __m512i load_32(const uint16_t* row) {
    return _mm512_loadu_si512(row);
}
inline __m256i load_16(const uint16_t* row) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
}
inline __m512i load_32(const uint8_t* row) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
    return float8_to_bfloat16(_mm512_cvtepi8_epi16(bytes));
}
inline __m256i load_16(const uint8_t* row) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
    return _mm512_castsi512_si256(float8_to_bfloat16(_mm512_castsi256_si512(_mm256_cvtepi8_epi16(bytes))));
}

// Interleaves 16 n elements of two rows into n vectors of (row a, row b) pairs.
//
// n = 2 takes one unpack per loaded line. An unpack works within 128-bit lanes, so the pairs come in an order of their
// own, the unpacked order; `natural_pairs` undoes it on sums. n = 1 keeps the order.
template <int n, class Element>
inline void load_pairs(const Element* a, const Element* b, __m512i (&pairs)[n]) {
    if constexpr (n == 2) {
        const __m512i row_a = load_32(a);
        const __m512i row_b = load_32(b);
        pairs[0] = _mm512_unpacklo_epi16(row_a, row_b);
        pairs[1] = _mm512_unpackhi_epi16(row_a, row_b);
    } else {
        const __m256i row_a = load_16(a);
        const __m256i row_b = load_16(b);
        const __m512i wide_b = _mm512_slli_epi32(_mm512_cvtepu16_epi32(row_b), 16);
        pairs[0] = _mm512_or_si512(_mm512_cvtepu16_epi32(row_a), wide_b);
    }
}

template <int n>
inline void natural_pairs(__m512 (&sums)[n]) {
    if constexpr (n == 2) {
        const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i high = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
        const __m512 first = sums[0];
        sums[0] = _mm512_permutex2var_ps(first, low, sums[1]);
        sums[1] = _mm512_permutex2var_ps(first, high, sums[1]);
    }
}

// Tokens of a page stay in the order in which their logits come, which is that of load_pairs: 16 tokens as they are,
// more in blocks of 32, each in unpacked order, of which `kUnpackedTokens` are the first half and those 4 further on
// the second.
constexpr int kUnpackedStep = 4;
alignas(64) constexpr int32_t kNaturalTokens[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
alignas(64) constexpr int32_t kUnpackedTokens[16] = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};

// First of the two tokens that are the pair-th of a block; the second is the one after.
template <bool unpacked>
constexpr int first_token(int pair) {
    if constexpr (!unpacked) return 2 * pair;
    return kUnpackedTokens[2 * (pair % 8)] + pair / 8 * kUnpackedStep;
}

// Stands for tokens from the page's valid ones on: what is stored there may be NaN.
template <class Element>
alignas(64) const Element zero_row[32] = {};

constexpr int padded_to_32(int length) {
    return (length + 31) / 32 * 32;
}

}  // namespace
}  // namespace rheo
