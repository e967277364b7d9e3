// numeric: bfloat16, float16 and float8 (e4m3fn) as float32, in portable C++.
//
// Everything is in an unnamed namespace: the variants are compiled with different instruction sets, and a
// function with external linkage could be taken by the linker from the widest of them.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <limits>

namespace rheo {
namespace {

[[maybe_unused]] inline float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

[[maybe_unused]] inline float bfloat16_to_float(uint16_t bits) {
    return bits_to_float(static_cast<uint32_t>(bits) << 16);
}

// Rebiasing the exponent by a multiplication handles subnormals too; infinities and NaNs are set apart.
[[maybe_unused]] inline float float16_to_float(uint16_t bits) {
    const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fff) << 13;
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const float rebiased = bits_to_float(magnitude) * 0x1p112f;
    uint32_t result;
    std::memcpy(&result, &rebiased, sizeof result);
    if (magnitude >= 0x0f800000) result = magnitude | 0x7f800000;
    return bits_to_float(result | sign);
}

// Eight bits have few enough values for a table: subnormals and NaN cost no more than others.
[[maybe_unused]] constexpr std::array<float, 256> kFloat8 = [] {
    std::array<float, 256> values{};
    for (int bits = 0; bits < 256; ++bits) {
        const int exponent = bits >> 3 & 15, mantissa = bits & 7;
        float value = static_cast<float>(exponent == 0 ? mantissa : mantissa + 8) * 0x1p-9f;
        for (int i = 1; i < exponent; ++i) value *= 2;
        if ((bits & 0x7f) == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
        values[bits] = bits & 0x80 ? -value : value;
    }
    return values;
}();

}  // namespace
}  // namespace rheo
