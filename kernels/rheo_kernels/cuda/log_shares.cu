// log_shares: the logarithm of every page's share of the estimated attention, averaged over a KV head's query heads.
//
// Every block adds up the LSE of all blocks of pages of one request and KV head by itself, its warps a part of a query head
// each, while its own pages' estimates are on their way, and then writes the shares of its pages, with corrections where there
// are any. Reads 4 bytes for each page and query head, 1 for a correction, and 4 for each block of pages again in every block;
// bound by latency: two dependent reads and a barrier.
//
// Macros: LEAST_SCORE (of a page that draws nothing), CORRECTION_STEP (nats of a code), GROUP (query heads per KV head), WARPS (of a block), ITEMS (pages of a thread), PDL (see launch_order.cuh).

#include "exponentials.cuh"
#include "launch_order.cuh"
#include "words.cuh"

namespace {

constexpr int kThreads = 32 * WARPS;
constexpr int kParts = WARPS / GROUP > 0 ? WARPS / GROUP : 1;  // warps of a query head
constexpr int kTogether = 8;                                   // numbers of a lane that are read at once

struct Arguments {
    const float* lse;        // [B, Hq, M]
    const float* block_lse;  // [B, Hq, blocks]
    const int* seq_lens;     // [B], 32 or 64 bits, below 2^31
    const signed char* codes;  // [R, H, M] corrections; null: none
    const int* rows;         // [B], of requests in them
    float* out;              // [B, H, M]
    long long stride_cr, stride_ch, stride_ob, stride_oh;
    int heads, width, blocks, page_size;
    int words_per_length;    // 2 where seq_lens are 64 bits wide
};

// A sum of powers of 2, over the greatest of them: `total` times 2 to the power of `top`.
struct Sum {
    float top, total;

    __device__ __forceinline__ void raise(float higher) {
        total *= power_of_2(top - finite(higher));
        top = higher;
    }
    // What numbers are taken from before they are raised.
    static __device__ __forceinline__ float finite(float top) { return top == minus_infinity() ? 0.f : top; }
};

// Over this warp's part of a query head's blocks.
__device__ __forceinline__ Sum add_up(const float* block_lse, int blocks, int part) {
    Sum sum = {minus_infinity(), 0};
    for (int start = part * 32 * kTogether; start < blocks; start += kParts * 32 * kTogether) {
        float x[kTogether], higher = sum.top;
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
            const int at = start + 32 * i + threadIdx.x % 32;
            x[i] = at < blocks ? block_lse[at] * kLog2E : minus_infinity();
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) higher = fmaxf(higher, x[i]);
        sum.raise(higher);
#pragma unroll
        for (int i = 0; i < kTogether; ++i) sum.total += power_of_2(x[i] - Sum::finite(higher));
    }
    float higher = sum.top;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) higher = fmaxf(higher, __shfl_xor_sync(kAll, higher, lanes));
    sum.raise(higher);
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) sum.total += __shfl_xor_sync(kAll, sum.total, lanes);
    return sum;
}

__shared__ Sum sums[GROUP * kParts];

}  // namespace

extern "C" __global__ void __launch_bounds__(kThreads) log_shares(const __grid_constant__ Arguments a) {
    const int warp = threadIdx.x / 32, pair = blockIdx.y, request = pair / a.heads;
    const int first = blockIdx.x * (kThreads * ITEMS) + threadIdx.x;
    const long long line = static_cast<long long>(pair) * GROUP;
    release_next_kernel();
    wait_for_last_kernel();

    const int listed = min((a.seq_lens[request * a.words_per_length] + a.page_size - 1) / a.page_size, a.width);
    float x[GROUP][ITEMS];
#pragma unroll
    for (int g = 0; g < GROUP; ++g)
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const int position = first + i * kThreads;
            x[g][i] = position < listed ? a.lse[(line + g) * a.width + position] : minus_infinity();
        }
    if (blockIdx.x * (kThreads * ITEMS) < listed) {
        for (int task = warp; task < GROUP * kParts; task += WARPS) {
            const Sum sum = add_up(a.block_lse + (line + task / kParts) * a.blocks, a.blocks, task % kParts);
            if (threadIdx.x % 32 == 0) sums[task] = sum;
        }
    }
    __syncthreads();
    float shares[ITEMS] = {};
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
        float top = minus_infinity(), total = 0;
#pragma unroll
        for (int part = 0; part < kParts; ++part) top = fmaxf(top, sums[g * kParts + part].top);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
            const Sum sum = sums[g * kParts + part];
            total += sum.total * power_of_2(sum.top - top);
        }
        const float all = top + logarithm(total);
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) shares[i] += power_of_2(x[g][i] * kLog2E - all);
    }
    const long long head = pair % a.heads;
    float* const out = a.out + request * a.stride_ob + head * a.stride_oh;
    const signed char* codes = a.codes;
    if (codes != nullptr) codes += a.rows[request] * a.stride_cr + head * a.stride_ch;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int position = first + i * kThreads;
        if (position >= a.width) continue;
        float score = minus_infinity();
        if (position < listed) {
            score = fmaxf(logarithm(shares[i] / GROUP) * kLn2, LEAST_SCORE);
            if (codes != nullptr) score += codes[position] * CORRECTION_STEP;
        }
        out[position] = score;
    }
}
