// numeric: bfloat16 and float16 as float32, in portable C++.
//
// Everything is in an unnamed namespace: the variants are compiled with different instruction sets, and a
// function with external linkage could be taken by the linker from the widest of them.
#pragma once

#include <cstdint>
#include <cstring>

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

}  // namespace
}  // namespace rheo
