// halves: arithmetic on two 16-bit floating numbers a word, and numbers that tensor cores read as tf32.
#pragma once

#include "words.cuh"

namespace {

// The bits of `mask`, inserted into the mantissas of `magic`.
__device__ __forceinline__ u32 insert_bits(u32 bits, u32 mask, u32 magic) {
    u32 c;
    constexpr int and_or = (0xf0 & 0xcc) | 0xaa;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(c) : "r"(bits), "r"(mask), "r"(magic), "n"(and_or));
    return c;
}

__device__ __forceinline__ u32 subtract_halves(u32 a, u32 b) {
    u32 c;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

__device__ __forceinline__ u32 multiply_halves(u32 a, u32 b) {
    u32 c;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

__device__ __forceinline__ u32 fma_halves(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// What is beyond float16's range becomes its greatest number.
__device__ __forceinline__ u32 pack_halves(float low, float high) {
    u32 pair;
    asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ __forceinline__ float from_half(u32 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<unsigned short>(bits)));
    return x;
}

// The nearest number that tf32 holds.
__device__ __forceinline__ float to_tf32(float x) {
    u32 y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return __uint_as_float(y);
}

// A number as the sum of two that tf32 holds.
__device__ __forceinline__ void split(u32& first, u32& rest, float x) {
    first = __float_as_uint(to_tf32(x));
    rest = __float_as_uint(to_tf32(x - __uint_as_float(first)));
}

// The larger ones of two pairs of bfloat16.
__device__ __forceinline__ u32 larger(u32 a, u32 b) {
    u32 c;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

__device__ __forceinline__ u32 pack_bfloat16(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

}  // namespace
