// pair_softmax: the softmax of variants with bfloat16 weights, on logits in the order and scale of their products.
#pragma once

#include "bfloat16_pairs.hpp"
#include "prefetch.hpp"
#include "softmax.hpp"

namespace rheo {
namespace {

// Whether a variant with bfloat16 products takes the shape. Logits are compared before they are scaled.
inline bool takes_pairs(const Shape& shape) {
    return (shape.kv == Dtype::bfloat16 || shape.kv == Dtype::float8) && shape.query == Dtype::bfloat16 &&
           shape.scale > 0.0f;
}

// 2^x for x <= kSlack log2(e) with a relative error below 8e-5, a fiftieth of what rounding to bfloat16 may cost;
// 0 where that is too small for float32. Minimax polynomial of degree 3.
inline __m512 power_of_two(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-1000.0f), x);
    const __m512 n = _mm512_roundscale_ps(x, 0), r = _mm512_sub_ps(x, n);
    __m512 y = _mm512_set1_ps(5.517157078e-2f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.426111206e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.932610041e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(9.999280741e-1f));
    return _mm512_scalef_ps(y, n);
}

inline __m512 pair_weights(const Shape& shape, const float* logits, __m512 shift) {
    const __m512 scaled = _mm512_fmsub_ps(_mm512_loadu_ps(logits), _mm512_set1_ps(shape.scale), shift);
    return power_of_two(_mm512_mul_ps(scaled, _mm512_set1_ps(1.44269504f)));
}

// The tokens of the vector of logits that begins at `at`.
inline __m512i tokens_at(const Shape& shape, int at) {
    if (shape.page_size == 16) return _mm512_load_si512(kNaturalTokens);
    return _mm512_add_epi32(_mm512_load_si512(kUnpackedTokens),
                            _mm512_set1_epi32(at / 32 * 32 + at / 16 % 2 * kUnpackedStep));
}

inline void mask_logits(const Shape& shape, int valid, float* logits) {
    for (int at = 0; at < shape.page_size; at += 16) {
        const __mmask16 masked = _mm512_cmpge_epi32_mask(tokens_at(shape, at), _mm512_set1_epi32(valid));
        for (int g = 0; g < shape.group; ++g)
            _mm512_mask_storeu_ps(logits + g * shape.page_size + at, masked, _mm512_set1_ps(-INFINITY));
    }
}

// Turns the logits [G, P] of a page, whose scale is still to come, into weights [G, P padded to 32], bfloat16, and adds
// them to the sums as they are stored; see softmax and, for `rescale`, move_shifts. Asks for two lines of the next page
// for every head.
template <class Rescale>
void pair_softmax(const Shape& shape, int valid, Scratch& scratch, State& state, Prefetcher& ahead,
                  const Rescale& rescale) {
    const int tokens = shape.page_size;
    float* const logits = scratch.logits;
    if (valid < tokens) mask_logits(shape, valid, logits);
    const float unscaled = 1.0f / shape.scale;
    __mmask16 outgrown = 0;
    for (int g = 0; g < shape.group; ++g) {
        const __m512 bound = _mm512_set1_ps((state.shift[g] + kSlack) * unscaled);
        for (int at = 0; at < tokens; at += 16)
            outgrown |= _mm512_cmp_ps_mask(_mm512_loadu_ps(logits + g * tokens + at), bound, _CMP_GT_OQ);
        ahead.advance<64>();
    }
    if (outgrown) [[unlikely]]
        move_shifts<Avx512>(shape, logits, shape.scale, state, rescale);
    for (int g = 0; g < shape.group; ++g) {
        const __m512 shift = _mm512_set1_ps(state.shift[g]);
        float* sums = state.sum + g * kSumLanes;
        __m512 sum = _mm512_loadu_ps(sums);
        for (int at = 0; at < tokens; at += 32) {
            const float* from = logits + g * tokens + at;
            const __m512 low = pair_weights(shape, from, shift);
            const __m512 high = tokens == 16 ? _mm512_setzero_ps() : pair_weights(shape, from + 16, shift);
            const __m512i narrow = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(scratch.weights_bf16 + g * padded_to_32(tokens) + at, narrow);
            const __m512i odd = _mm512_and_si512(narrow, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
            const __m512i even = _mm512_slli_epi32(narrow, 16);
            sum = _mm512_add_ps(sum, _mm512_add_ps(_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd)));
        }
        _mm512_storeu_ps(sums, sum);
        ahead.advance<64>();
    }
}

}  // namespace
}  // namespace rheo
