// ptx: the PTX that the kernels write inline. A function is called as the instruction is, `_` for `.` and `::`, and takes
// the statement's operands in order; one whose statement loops until it holds waits.
#pragma once

#include <time.h>

#include "cuda.hpp"
#include "transfers.hpp"

namespace simt {

inline float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
inline float from_f16(std::uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }

inline std::uint16_t to_bf16(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (value != value) return 0x7fff;
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline std::uint16_t to_f16(float value) { return std::bit_cast<std::uint16_t>(static_cast<_Float16>(value)); }

// What a lane holds of both sides of a product, two numbers a word.
struct Operands {
    float a[4][2], b[2][2];
};

template <typename Convert>
Operands operands(const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Convert convert) {
    Operands result;
    const auto half = [&](std::uint32_t word, int k) { return convert(static_cast<std::uint16_t>(word >> 16 * k)); };
    for (int k = 0; k < 2; ++k) {
        for (int i = 0; i < 4; ++i) result.a[i][k] = half(a[i], k);
        for (int i = 0; i < 2; ++i) result.b[i][k] = half(b[i], k);
    }
    return result;
}

// C += A B, [16, 16] by [16, 8]. Lane (row, column) = (lane / 4, lane % 4) holds of A, two columns a word, rows row and
// row + 8 at columns 2 column and then 2 column + 8; of B, two rows a word, column row; of C rows row and row + 8 at
// columns 2 column and 2 column + 1.
inline void multiply(float& c0, float& c1, float& c2, float& c3, const Operands& mine) {
    const Operands* const all = meet_warp("mma", mine);
    const int row = current->lane() / 4, column = current->lane() % 4;
    float sums[4] = {c0, c1, c2, c3};
    for (int later = 0; later < 2; ++later)
        for (int within = 0; within < 4; ++within)
            for (int k = 0; k < 2; ++k)
                for (int i = 0; i < 4; ++i)
                    sums[i] += all[row * 4 + within].a[i / 2 + 2 * later][k] *
                               all[(2 * column + i % 2) * 4 + within].b[later][k];
    c0 = sums[0], c1 = sums[1], c2 = sums[2], c3 = sums[3];
}

// C += A B, [16, 8] by [8, 8]. Lane (row, column) holds of A rows row and row + 8 at column `column` and then at column + 4;
// of B rows `column` and column + 4, column row; of C as above.
inline void multiply_tf32(float& c0, float& c1, float& c2, float& c3, const float (&a)[4], const float (&b)[2]) {
    struct Numbers {
        float a[4], b[2];
    };
    const Numbers* const all = meet_warp("mma", Numbers{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
    const int row = current->lane() / 4, column = current->lane() % 4;
    float sums[4] = {c0, c1, c2, c3};
    for (int later = 0; later < 2; ++later)
        for (int within = 0; within < 4; ++within)
            for (int i = 0; i < 4; ++i)
                sums[i] += all[row * 4 + within].a[i / 2 + 2 * later] * all[(2 * column + i % 2) * 4 + within].b[later];
    c0 = sums[0], c1 = sums[1], c2 = sums[2], c3 = sums[3];
}

// What the tensor cores read of a word.
inline float from_tf32(std::uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

template <typename Compute>
std::uint32_t each_half(Compute compute) {
    return compute(0) | static_cast<std::uint32_t>(compute(16)) << 16;
}

inline double half(std::uint32_t pair, int shift) { return from_f16(static_cast<std::uint16_t>(pair >> shift)); }
inline std::uint16_t rounded_half(double value) { return std::bit_cast<std::uint16_t>(static_cast<_Float16>(value)); }

}  // namespace simt

namespace ptx {

using simt::Arrival;

inline void griddepcontrol_wait() {}
inline void griddepcontrol_launch_dependents() {}
inline void fence_proxy_async() {}
inline void fence_proxy_async_shared_cta() {}
inline void fence_mbarrier_init_release_cluster() {}

// %globaltimer
inline void mov_u64(unsigned long long& now) {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    now = time.tv_sec * 1'000'000'000ull + time.tv_nsec;
}

inline void ld_global_v2_f32(float& x, float& y, const void* from) {
    if (reinterpret_cast<std::uintptr_t>(from) % 8) simt::fail("a word of 8 bytes that is not aligned");
    const auto* const words = static_cast<const float*>(from);
    x = words[0], y = words[1];
}
inline void ld_global_v4_f32(float& x, float& y, float& z, float& w, const void* from) {
    if (reinterpret_cast<std::uintptr_t>(from) % 16) simt::fail("a word of 16 bytes that is not aligned");
    const auto* const words = static_cast<const float*>(from);
    x = words[0], y = words[1], z = words[2], w = words[3];
}

template <typename Word>
void ld_acquire(Word& word, const Word* from) {
    simt::poll();
    word = __atomic_load_n(from, __ATOMIC_ACQUIRE);
}
inline void ld_acquire_sys_global_u32(unsigned& word, const unsigned* from) { ld_acquire(word, from); }
inline void ld_acquire_gpu_global_u64(unsigned long long& word, const unsigned long long* from) { ld_acquire(word, from); }
inline void st_release_gpu_global_u64(unsigned long long* to, unsigned long long word) {
    __atomic_store_n(to, word, __ATOMIC_RELEASE);
}
inline void st_relaxed_sys_global_v2_u64(unsigned long long* to, unsigned long long x, unsigned long long y) {
    if (reinterpret_cast<std::uintptr_t>(to) % 16) simt::fail("a word of 16 bytes that is not aligned");
    simt::launch->posted.push_back({to, x});
    simt::launch->posted.push_back({to + 1, y});
}

inline void ex2_approx_ftz_f32(float& y, float x) { y = std::exp2(x); }

inline void lg2_approx_ftz_f32(float& y, float x) { y = std::log2(std::abs(x) < 0x1p-126f ? 0.f : x); }

inline void cvt_rn_bf16x2_f32(unsigned& pair, float high, float low) {
    pair = static_cast<unsigned>(simt::to_bf16(high)) << 16 | simt::to_bf16(low);
}
inline void cvt_rn_f16x2_f32(unsigned& pair, float high, float low) {
    pair = static_cast<unsigned>(simt::to_f16(high)) << 16 | simt::to_f16(low);
}

inline void fma_rn_bf16x2(unsigned& pair, unsigned a, unsigned b, unsigned c) {
    const auto half = [](unsigned word, int i) { return simt::from_bf16(static_cast<std::uint16_t>(word >> 16 * i)); };
    const auto fused = [&](int i) { return simt::to_bf16(std::fma(half(a, i), half(b, i), half(c, i))); };
    pair = static_cast<unsigned>(fused(1)) << 16 | fused(0);
}

inline void cvt_rn_satfinite_f16x2_f32(unsigned& pair, float high, float low) {
    const auto limited = [](float x) { return std::fmin(std::fmax(x, -65504.f), 65504.f); };
    cvt_rn_f16x2_f32(pair, limited(high), limited(low));
}
// Bits of e4m3: one of sign, four of exponent, three of mantissa; no infinity.
inline void cvt_rn_f16x2_e4m3x2(unsigned& pair, unsigned short bits) {
    pair = simt::each_half([=](int i) {
        const int byte = bits >> i / 2 & 0xff, exponent = byte >> 3 & 15, mantissa = byte & 7;
        const double size = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
        if ((byte & 0x7f) == 0x7f) return std::uint16_t{0x7fff};
        return simt::rounded_half(byte >> 7 ? -size : size);
    });
}
inline void cvt_f32_f16(float& x, unsigned short bits) { x = simt::from_f16(bits); }
inline void cvt_rna_tf32_f32(unsigned& y, float x) {
    const unsigned bits = std::bit_cast<unsigned>(x);
    y = std::isfinite(x) ? (bits + 0x1000) & 0xffffe000u : bits;
}

inline void sub_rn_f16x2(unsigned& c, unsigned a, unsigned b) {
    c = simt::each_half([=](int i) { return simt::rounded_half(simt::half(a, i) - simt::half(b, i)); });
}
inline void mul_rn_f16x2(unsigned& c, unsigned a, unsigned b) {
    c = simt::each_half([=](int i) { return simt::rounded_half(simt::half(a, i) * simt::half(b, i)); });
}
inline void fma_rn_f16x2(unsigned& d, unsigned a, unsigned b, unsigned c) {
    d = simt::each_half(
        [=](int i) { return simt::rounded_half(simt::half(a, i) * simt::half(b, i) + simt::half(c, i)); });
}
inline void max_bf16x2(unsigned& c, unsigned a, unsigned b) {
    c = simt::each_half([=](int i) {
        const auto x = static_cast<std::uint16_t>(a >> i), y = static_cast<std::uint16_t>(b >> i);
        return simt::to_bf16(std::fmax(simt::from_bf16(x), simt::from_bf16(y)));
    });
}

inline void lop3_b32(unsigned& d, unsigned a, unsigned b, unsigned c, unsigned table) {
    d = 0;
    for (unsigned i = 0; i < 8; ++i)
        if (table >> i & 1) d |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
}

inline void mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(float& c0, float& c1, float& c2, float& c3, unsigned a0,
                                                               unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                                               unsigned b1) {
    using simt::from_tf32;
    simt::multiply_tf32(c0, c1, c2, c3, {from_tf32(a0), from_tf32(a1), from_tf32(a2), from_tf32(a3)},
                        {from_tf32(b0), from_tf32(b1)});
}
inline void mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32(float& c0, float& c1, float& c2, float& c3, unsigned a0,
                                                                unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                                                unsigned b1) {
    simt::multiply(c0, c1, c2, c3, simt::operands({a0, a1, a2, a3}, {b0, b1}, simt::from_bf16));
}
inline void mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32(float& c0, float& c1, float& c2, float& c3, unsigned a0,
                                                              unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                                              unsigned b1) {
    simt::multiply(c0, c1, c2, c3, simt::operands({a0, a1, a2, a3}, {b0, b1}, simt::from_f16));
}

// Lane (row, column) holds columns 2 column and 2 column + 1 of a row, of an 8 by 8 matrix and then of its transpose.
inline void movmatrix_sync_aligned_m8n8_trans_b16(unsigned& result, unsigned pair) {
    const int row = simt::current->lane() / 4, column = simt::current->lane() % 4;
    const unsigned* const all = simt::meet_warp("movmatrix", pair);
    const auto at = [&](int i, int j) { return all[i * 4 + j / 2] >> 16 * (j % 2) & 0xffff; };
    result = at(2 * column, row) | at(2 * column + 1, row) << 16;
}

inline void mbarrier_init_shared_cta_b64(unsigned barrier) { simt::arrival_at(barrier) = {0, 1, 0}; }
inline void mbarrier_arrive_expect_tx_shared_cta_b64(unsigned barrier, int bytes) {
    Arrival& arrival = simt::arrival_at(barrier);
    if (arrival.left == 0) simt::fail("an arrival too many at a barrier of bulk copies");
    arrival.bytes += bytes;
    --arrival.left;
    simt::complete(arrival);
}
inline void mbarrier_try_wait_parity_shared_cta_b64(unsigned barrier, unsigned phase) {
    const Arrival& arrival = simt::arrival_at(barrier);
    if (arrival.phase != phase) return;
    simt::current->arrival = &arrival;
    simt::current->phase = phase;
    simt::leave();
    simt::current->arrival = nullptr;
}

inline void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(unsigned target, unsigned long long source,
                                                                           int bytes, unsigned barrier) {
    simt::begin_transfer({nullptr, simt::shared_at(target, bytes), reinterpret_cast<const unsigned char*>(source), bytes,
                          &simt::arrival_at(barrier)});
}
inline void cp_async_bulk_global_shared_cta_bulk_group(unsigned long long target, unsigned source, int bytes) {
    simt::begin_transfer({nullptr, reinterpret_cast<unsigned char*>(target), simt::shared_at(source, bytes), bytes, nullptr});
}
inline void cp_async_bulk_commit_group() {
    for (auto& transfer : simt::current->block->transfers)
        if (transfer.issuer == simt::current && transfer.arrival == nullptr) transfer.committed = true;
}
inline void cp_async_bulk_wait_group_read() { simt::wait_for_stores(simt::read); }
inline void cp_async_bulk_wait_group() { simt::wait_for_stores(simt::write); }

}  // namespace ptx
