// float8_halves: sixteen e4m3fn as float16, with AVX2.
#pragma once

#include <immintrin.h>

namespace rheo {
namespace {

// What a half from float8_to_halves is short of.
constexpr float kFloat8Factor = 256.0f;

// Sign, exponent and mantissa at their places in a half, whose exponent has a larger bias: each is its number divided by
// kFloat8Factor. Subnormals are subnormal halves, which the conversion to float32 takes as fast as others (a multiplication
// of subnormal float32 would not); NaN, the largest number of either sign, becomes NaN.
inline __m256i float8_to_halves(__m128i bytes) {
    const __m256i shifted = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
    const __m256i nan = _mm256_cmpeq_epi16(_mm256_or_si256(shifted, _mm256_set1_epi16(static_cast<short>(0xc000))),
                                           _mm256_set1_epi16(static_cast<short>(0xff80)));
    return _mm256_or_si256(_mm256_and_si256(shifted, _mm256_set1_epi16(static_cast<short>(0xbfff))), nan);
}

}  // namespace
}  // namespace rheo
