// cuda: what CUDA C++ knows without an include, as far as the kernels use it, for one fiber a thread.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <type_traits>

#include "fibers.hpp"

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((section("simt_shared")))

#define threadIdx (simt::current->thread)
#define blockIdx (simt::current->block->index)
#define gridDim (simt::launch->grid)

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    const std::common_type_t<A, B> x = a, y = b;
    return y < x ? y : x;
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    const std::common_type_t<A, B> x = a, y = b;
    return x < y ? y : x;
}

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

inline void __syncthreads() { simt::meet_block(); }
inline void __syncwarp() { simt::meet_warp("syncwarp", 0); }
inline void __threadfence() {}
inline void __threadfence_system() { std::atomic_thread_fence(std::memory_order_seq_cst); }
[[noreturn]] inline void __trap() { simt::fail("trap"); }

// Addresses in shared memory: variables from kStatics on, what the launch asked for from kDynamic on.
namespace simt {

constexpr std::uint32_t kStatics = 0x1000, kDynamic = 0x100000;

inline unsigned char* dynamic_shared() {
    if (launch->shared_bytes == 0) fail("the launch asked for no shared memory");
    return current->block->dynamic.data();
}

inline unsigned char* shared_at(std::uint32_t address, int bytes) {
    auto& dynamic = current->block->dynamic;
    if (address >= kDynamic) {
        if (address - kDynamic + bytes > dynamic.size()) fail("an address beyond the block's shared memory");
        return dynamic.data() + (address - kDynamic);
    }
    if (address - kStatics + bytes > static_cast<std::size_t>(__stop_simt_shared - __start_simt_shared))
        fail("an address in no variable of shared memory");
    return __start_simt_shared + (address - kStatics);
}

inline void check_mask(unsigned mask) {
    if (mask != 0xffffffffu) fail("a warp function for some lanes only, which is not emulated");
}

template <typename Value, typename Combine>
Value reduce(const char* what, Value mine, Combine combine) {
    const Value* const all = meet_warp(what, mine);
    Value result = all[0];
    for (int lane = 1; lane < kLanes; ++lane) result = combine(result, all[lane]);
    return result;
}

}  // namespace simt

inline std::size_t __cvta_generic_to_shared(const void* pointer) {
    const auto* const at = static_cast<const unsigned char*>(pointer);
    auto& dynamic = simt::current->block->dynamic;
    if (at >= dynamic.data() && at < dynamic.data() + dynamic.size()) return simt::kDynamic + (at - dynamic.data());
    if (at >= __start_simt_shared && at < __stop_simt_shared) return simt::kStatics + (at - __start_simt_shared);
    simt::fail("an address that is not of shared memory");
}

template <typename Value>
Value __shfl_sync(unsigned mask, Value value, int lane) {
    simt::check_mask(mask);
    return simt::meet_warp("shfl", value)[lane & 31];
}

template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lanes) {
    simt::check_mask(mask);
    const int other = simt::current->lane() ^ lanes;
    return simt::meet_warp("shfl_xor", value)[other];
}

template <typename Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned lanes) {
    simt::check_mask(mask);
    const int other = simt::current->lane() - static_cast<int>(lanes);
    const Value* const all = simt::meet_warp("shfl_up", value);
    return other < 0 ? value : all[other];
}

inline unsigned __ballot_sync(unsigned mask, bool holds) {
    simt::check_mask(mask);
    const unsigned bit = holds ? 1u << simt::current->lane() : 0u;
    return simt::reduce("ballot", bit, [](unsigned a, unsigned b) { return a | b; });
}

inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
    simt::check_mask(mask);
    return simt::reduce("reduce_or", value, [](unsigned a, unsigned b) { return a | b; });
}

inline bool __any_sync(unsigned mask, bool holds) { return __ballot_sync(mask, holds) != 0; }

template <typename Value>
Value __reduce_add_sync(unsigned mask, Value value) {
    simt::check_mask(mask);
    return simt::reduce("reduce_add", value, [](Value a, Value b) { return a + b; });
}

template <typename Value>
Value __reduce_min_sync(unsigned mask, Value value) {
    simt::check_mask(mask);
    return simt::reduce("reduce_min", value, [](Value a, Value b) { return min(a, b); });
}

template <typename Value>
Value __reduce_max_sync(unsigned mask, Value value) {
    simt::check_mask(mask);
    return simt::reduce("reduce_max", value, [](Value a, Value b) { return max(a, b); });
}

template <typename Value>
Value atomicAdd(Value* at, Value value) {
    const Value before = *at;
    *at = before + value;
    return before;
}

template <typename Value>
Value atomicMax(Value* at, Value value) {
    const Value before = *at;
    *at = max(before, value);
    return before;
}

inline float __ldcg(const float* at) { return *at; }
inline float __ldcv(const float* at) { return *const_cast<const volatile float*>(at); }
inline void __stcg(float* at, float value) { *at = value; }

inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __clz(unsigned bits) { return std::countl_zero(bits); }
inline int __ffs(unsigned bits) { return bits == 0 ? 0 : std::countr_zero(bits) + 1; }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __log2f(float x) { return std::log2(x); }

inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}
