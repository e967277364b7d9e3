// page_softmax: a warp folds pages that lie in shared memory into its softmax, on tensor cores.
//
// Scores are computed transposed, S = K q and O = V p, so that query heads, few, are the narrow side of the m16n8k16
// products and a group of 8 wastes nothing. The order of tokens and dimensions within a product is free: it is chosen such
// that K and V are read in wide words and their halves paired by byte permutation, since neither lies in memory the way the
// tensor cores want it.
//
// Pages of 8 bits are widened between shared memory and the products, exactly: K to the queries' dtype, V to float16, which
// takes one instruction a pair instead of four; their weights, up to 1, are rounded to float16, too.
//
// Macros: BF16 (queries; else fp16), EIGHT_BITS (pages hold e4m3 numbers, else what queries are), DIM, PAGE (tokens), GROUP
// (query heads per KV head).
#pragma once

#include "eight_bits.cuh"
#include "exponentials.cuh"
#include "words.cuh"

namespace {

#if EIGHT_BITS
using Stored = unsigned char;  // bits of a number in a page
#else
using Stored = unsigned short;
#endif
constexpr int kNumberBytes = sizeof(Stored);
constexpr int kValues = kNumberBytes * DIM * PAGE;  // offset of V in a page
constexpr int kBlockBytes = 2 * kValues;            // one page, K and V
constexpr bool kBf16Values = BF16 && !EIGHT_BITS;   // V and its weights in a product; else fp16
constexpr int kHeadTiles = (GROUP + 7) / 8;         // products' columns: 8 query heads each
constexpr int kTokens = PAGE / 8;                // tokens of a page per lane row, consecutive
constexpr int kTokenTiles = PAGE / 16;
constexpr int kLaneDims = DIM / 8;  // dimensions of the output per lane row
constexpr int kVector = kLaneDims % 8 == 0 ? 8 : kLaneDims % 4 == 0 ? 4 : 2;  // of them consecutive
constexpr int kChunks = kLaneDims / kVector;

// A warp's softmax. Lane (row, column) = (lane / 4, lane % 4) holds query heads 2 column and 2 column + 1 of every head
// tile, and of their output the dimensions (8 chunk + row) kVector + i.
struct Softmax {
    float top[kHeadTiles][2];
    float total[kHeadTiles][2];  // over the tokens of this lane row only
    float mixed[kLaneDims / 2][kHeadTiles][4];
};

template <bool kBf16 = BF16>
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 pair;
    if constexpr (kBf16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

template <bool kBf16 = BF16>
__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    if constexpr (kBf16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 transpose(u32 pair) {
    u32 result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
    return result;
}

__device__ __forceinline__ u32 lows(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ u32 highs(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// WORDS consecutive 32-bit words of shared memory in one access.
template <int WORDS>
__device__ __forceinline__ void load(u32 (&words)[WORDS], const unsigned char* from) {
    static_assert(WORDS == 1 || WORDS == 2 || WORDS == 4, "no such access");
    if constexpr (WORDS == 4) {
        const uint4 v = *reinterpret_cast<const uint4*>(from);
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else if constexpr (WORDS == 2) {
        const uint2 v = *reinterpret_cast<const uint2*>(from);
        words[0] = v.x, words[1] = v.y;
    } else {
        words[0] = *reinterpret_cast<const u32*>(from);
    }
}

// Consecutive numbers of a page in shared memory, as pairs of halves.
template <bool kBf16, int PAIRS>
__device__ __forceinline__ void load_numbers(u32 (&pairs)[PAIRS], const unsigned char* from) {
    if constexpr (!EIGHT_BITS) {
        load(pairs, from);
    } else if constexpr (PAIRS == 1) {
        pairs[0] = widen<kBf16>(*reinterpret_cast<const unsigned short*>(from));
    } else {
        u32 words[PAIRS / 2];
        load(words, from);
#pragma unroll
        for (int i = 0; i < PAIRS; ++i) pairs[i] = widen<kBf16>(words[i / 2] >> 16 * (i % 2));
    }
}

// Fold one page into the softmax. `query` holds lane (row, column)'s part of q as the products' right operand: for every
// 16 dimensions, those that are `column` modulo 4, of head `row`.
__device__ __forceinline__ void attend_page(const unsigned char* page, int tokens, float scale,
                                            const u32 (&query)[DIM / 16][kHeadTiles][2], Softmax& run) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;

    float scores[kTokenTiles][kHeadTiles][4] = {};
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k) {
        u32 keys[4][kTokens / 2];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            load_numbers<BF16>(keys[i], page + ((16 * k + 4 * i + column) * PAGE + kTokens * row) * kNumberBytes);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
            const u32 a0 = lows(keys[0][t], keys[1][t]), a1 = highs(keys[0][t], keys[1][t]);
            const u32 a2 = lows(keys[2][t], keys[3][t]), a3 = highs(keys[2][t], keys[3][t]);
#pragma unroll
            for (int h = 0; h < kHeadTiles; ++h)
                multiply(scores[t][h], a0, a1, a2, a3, query[k][h][0], query[k][h][1]);
        }
    }

    u32 weights[kTokens][kHeadTiles];
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h) {
        float higher[2] = {run.top[h][0], run.top[h][1]};
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool live = kTokens * row + 2 * t + i / 2 < tokens;
                scores[t][h][i] = live ? scores[t][h][i] * scale : minus_infinity();
                higher[i % 2] = fmaxf(higher[i % 2], scores[t][h][i]);
            }
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2)
                higher[c] = fmaxf(higher[c], __shfl_xor_sync(kAll, higher[c], lanes));
        if (__any_sync(kAll, higher[0] != run.top[h][0] || higher[1] != run.top[h][1])) {
            const float fade[2] = {power_of_2(run.top[h][0] - higher[0]), power_of_2(run.top[h][1] - higher[1])};
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                // A page has a token, so `higher` is finite: the first page fades nothing by power_of_2(-inf) = 0.
                run.top[h][c] = higher[c];
                run.total[h][c] *= fade[c];
            }
#pragma unroll
            for (int m = 0; m < kLaneDims / 2; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i) run.mixed[m][h][i] *= fade[i % 2];
        }
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const float left = power_of_2(scores[t][h][i] - higher[0]), right = power_of_2(scores[t][h][i + 1] - higher[1]);
                run.total[h][0] += left;
                run.total[h][1] += right;
                weights[2 * t + i / 2][h] = transpose(pack<kBf16Values>(left, right));
            }
    }

    // weights[r] are now those of tokens 2 column kTokens + r and, kTokens further on, of head `row`.
    const unsigned char* values = page + kValues + (2 * column * kTokens * DIM + kVector * row) * kNumberBytes;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
            u32 near[2][kVector / 2], far[2][kVector / 2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const unsigned char* const from = values + ((2 * t + i) * DIM + 8 * kVector * chunk) * kNumberBytes;
                load_numbers<kBf16Values>(near[i], from);
                load_numbers<kBf16Values>(far[i], from + kTokens * DIM * kNumberBytes);
            }
#pragma unroll
            for (int m = 0; m < kVector / 2; ++m)
#pragma unroll
                for (int h = 0; h < kHeadTiles; ++h)
                    multiply<kBf16Values>(run.mixed[chunk * kVector / 2 + m][h], lows(near[0][m], far[0][m]),
                                          highs(near[0][m], far[0][m]), lows(near[1][m], far[1][m]),
                                          highs(near[1][m], far[1][m]), weights[2 * t][h], weights[2 * t + 1][h]);
        }
}

// Zeroes V of tokens that are not the request's: their weight is 0, but what lies there may not be a number.
__device__ __forceinline__ void blank_values(unsigned char* page, int tokens) {
    u32* const values = reinterpret_cast<u32*>(page + kValues);
    constexpr int numbers = 4 / kNumberBytes;  // of a word
    for (int i = tokens * DIM / numbers + threadIdx.x % 32; i < PAGE * DIM / numbers; i += 32) values[i] = 0;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
}

}  // namespace
