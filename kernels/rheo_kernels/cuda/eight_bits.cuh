// eight_bits: pairs of e4m3 numbers as pairs of halves, which hold each of them exactly.
#pragma once

#include "halves.cuh"

namespace {

// The lower 16 bits of a word as two bfloat16 numbers, else two float16 ones, in the same order.
template <bool kBf16>
__device__ __forceinline__ u32 widen(u32 pair) {
    u32 halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(static_cast<unsigned short>(pair)));
    if constexpr (kBf16) halves = pack_bfloat16(from_half(halves), from_half(halves >> 16));
    return halves;
}

}  // namespace
