// tail_softmax: a warp folds the pages that a selection left out into its softmax, each as one token: the page's estimate is
// the logit, its mean V the value.
//
// Products are O = V w as in page_softmax.cuh, of 16 pages each. Lane (row, column) reads the estimates of head `row` and the
// V of the same four pages, which is what either operand wants: nothing is exchanged. The 4-bit codes of V are exact in
// bfloat16; a page's scale goes into its weight. Tiles of 16 pages are dealt to the warps of all splits, so that splits of a
// list shorter than its row are as long as each other, and those with nothing left out read no V.
//
// Macros: those of page_softmax.cuh; TAIL_TILES (tiles in flight per warp).
#pragma once

#include "page_softmax.cuh"

namespace {

struct Tail {
    const float* lse;             // [B * H, G, M], natural logarithm; -inf for pages that are not left out
    const unsigned char* values;  // mean V of page 0, [D / 2]
    const unsigned char* scales;  // and its scale, an 8-bit float
    const int* pages;             // [B, M]
    const int* num_pages;         // [B]; null: as many as M
    long long stride_h, stride_b;  // of summaries in bytes, of `pages`
    int width, page_bytes;
    float* split_lse;              // [B * H, splits, G], base 2, of the pages left out alone; null if `coverage` is
    float* coverage;               // [R, H], grows by the share of attention that other pages have; null: not counted
    const int* slots;              // [B], 64 bits, below 2^31: the low words are read
    long long stride_c;
};

constexpr int kTailPages = 16;              // of a tile
constexpr bool kPaired = kChunks % 2 == 0;  // chunks c and c + kChunks / 2 of a lane's dimensions share their bytes
constexpr int kCodeChunks = kPaired ? kChunks / 2 : kChunks;
constexpr int kCodeWords = kVector == 8 ? 2 : 1;

// Of lane (row, column): the logits of head 8 h + row and the V of pages column + 4 j.
struct TailTile {
    float logits[kHeadTiles][4];
    u32 codes[4][kCodeChunks][kCodeWords];
    u32 scale;  // of page lane % 16
    u32 left;   // one bit per page
};

// What is read of a tile first.
struct FoundTile {
    float logits[kHeadTiles][4];
    int page;  // lane % 16
};

// The part of the summaries and estimates that belongs to one page list.
struct TailList {
    const float* lse;
    const unsigned char* values;
    const unsigned char* scales;
    const int* pages;
    int length, width, page_bytes;

    __device__ __forceinline__ void find(FoundTile& found, int tile) const {
        const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4, begin = tile * kTailPages;
        const int position = begin + lane % kTailPages;
        found.page = position < length ? pages[position] : 0;
#pragma unroll
        for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int member = 8 * h + row, at = begin + column + 4 * j;
                found.logits[h][j] = member < GROUP && at < length ? lse[member * width + at] : minus_infinity();
            }
    }

    __device__ __forceinline__ void read(TailTile& tile, const FoundTile& found) const {
        const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;
        u32 left = 0;
#pragma unroll
        for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                tile.logits[h][j] = found.logits[h][j];
                if (found.logits[h][j] > minus_infinity()) left |= 1u << (column + 4 * j);
            }
        tile.left = __reduce_or_sync(kAll, left);
        if (tile.left == 0) return;
        const auto is_left = [&](int page) { return tile.left >> page & 1; };
        const long long own = static_cast<long long>(found.page) * page_bytes;
        tile.scale = is_left(lane % kTailPages) ? scales[own] : 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int page = __shfl_sync(kAll, found.page, column + 4 * j);
            const unsigned char* const value = values + static_cast<long long>(page) * page_bytes;
#pragma unroll
            for (int c = 0; c < kCodeChunks; ++c)
#pragma unroll
                for (int w = 0; w < kCodeWords; ++w) {
                    const int dim = (8 * c + row) * kVector;
                    const unsigned char* const at = value + dim % (DIM / 2) + 4 * w;
                    if (!is_left(column + 4 * j))
                        tile.codes[j][c][w] = 0;
                    else if constexpr (kVector == 2)
                        tile.codes[j][c][w] = *reinterpret_cast<const unsigned short*>(at);
                    else
                        tile.codes[j][c][w] = *reinterpret_cast<const u32*>(at);
                }
        }
    }
};

// The upper half of a positive float16.
__device__ __forceinline__ float decode_scale(u32 code) { return __uint_as_float(code << 20) * 0x1p112f; }

// What the codes in one half of a byte of two words stand for, but for their scale: code - 7.5, in bfloat16.
__device__ __forceinline__ u32 decode(u32 a, u32 b, int byte, bool high) {
    const u32 bytes = __byte_perm(a, b, byte * 0x11 | (4 + byte) * 0x1100);
    const u32 raised = ((high ? bytes >> 1 : bytes << 3) & 0x00780078u) | 0x41804180u;  // 16 + code
    u32 values;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(values) : "r"(raised), "r"(0x3f803f80u), "r"(0xc1bcc1bcu));
    return values;
}

// `top` and `total` are those of head 8 h + row, the latter over this lane's pages only.
__device__ __forceinline__ void fold(const TailTile& tile, float (&top)[kHeadTiles], float (&total)[kHeadTiles],
                                     Softmax& run) {
    if (tile.left == 0) return;
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;
    float scales[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) scales[j] = decode_scale(__shfl_sync(kAll, tile.scale, column + 4 * j));
    u32 weights[kHeadTiles][2];
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h) {
        float logits[4], higher = top[h];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            logits[j] = tile.logits[h][j] * kLog2E;
            higher = fmaxf(higher, logits[j]);
        }
        higher = fmaxf(higher, __shfl_xor_sync(kAll, higher, 1));
        higher = fmaxf(higher, __shfl_xor_sync(kAll, higher, 2));
        const float shift = higher == minus_infinity() ? 0.f : higher;
        if (__any_sync(kAll, higher != top[h])) {
            const float fade = power_of_2(top[h] - shift);
            const float fades[2] = {__shfl_sync(kAll, fade, 8 * column), __shfl_sync(kAll, fade, 8 * column + 4)};
            top[h] = higher;
            total[h] *= fade;
#pragma unroll
            for (int m = 0; m < kLaneDims / 2; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i) run.mixed[m][h][i] *= fades[i % 2];
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float weight = power_of_2(logits[j] - shift);
            total[h] += weight;
            logits[j] = weight * scales[j];
        }
        weights[h][0] = pack<true>(logits[0], logits[1]);
        weights[h][1] = pack<true>(logits[2], logits[3]);
    }
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
        const int c = chunk % kCodeChunks;
        const bool high = (8 * chunk + row) * kVector >= DIM / 2;
#pragma unroll
        for (int m = 0; m < kVector / 2; ++m) {
            u32 values[2][2];  // [later pages][dimension 2 m + i]
#pragma unroll
            for (int later = 0; later < 2; ++later)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int byte = 2 * m + i;
                    values[later][i] = decode(tile.codes[2 * later][c][byte / 4], tile.codes[2 * later + 1][c][byte / 4],
                                              byte % 4, kPaired ? chunk >= kCodeChunks : high);
                }
#pragma unroll
            for (int h = 0; h < kHeadTiles; ++h)
                multiply<true>(run.mixed[chunk * kVector / 2 + m][h], values[0][0], values[0][1], values[1][0],
                               values[1][1], weights[h][0], weights[h][1]);
        }
    }
}

// Fold every `stride`-th tile of a list from `first` on into an empty softmax.
__device__ __forceinline__ void attend_tail(const TailList& list, int first, int stride, Softmax& run) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;
    float top[kHeadTiles], total[kHeadTiles];
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h) top[h] = minus_infinity(), total[h] = 0;
    FoundTile found[TAIL_TILES];
    TailTile tiles[TAIL_TILES];
#pragma unroll
    for (int s = 0; s < TAIL_TILES; ++s) list.find(found[s], first + s * stride);
#pragma unroll
    for (int s = 0; s < TAIL_TILES; ++s) {
        list.read(tiles[s], found[s]);
        list.find(found[s], first + (s + TAIL_TILES) * stride);
    }
    for (int n = first; n * kTailPages < list.length; n += TAIL_TILES * stride)
#pragma unroll
        for (int s = 0; s < TAIL_TILES; ++s) {
            fold(tiles[s], top, total, run);
            list.read(tiles[s], found[s]);
            list.find(found[s], n + (s + 2 * TAIL_TILES) * stride);
        }
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h) {
        total[h] += __shfl_xor_sync(kAll, total[h], 1);
        total[h] += __shfl_xor_sync(kAll, total[h], 2);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
            run.top[h][c] = __shfl_sync(kAll, top[h], 8 * column + 4 * c);
            const float whole = __shfl_sync(kAll, total[h], 8 * column + 4 * c);
            run.total[h][c] = row == 0 ? whole : 0;
        }
    }
}

}  // namespace
