// split_merge: store what a block attended of its list as a split, and merge all splits, and the CPU's part, into the output.
//
// Macros: those of page_softmax.cuh; WARPS, STAGES, FETCH, MISS_STAGES and TAIL_WARPS, see attend.cu.
#pragma once

#include "bulk_copy.cuh"
#include "page_softmax.cuh"

namespace {

constexpr int kHitSlots = WARPS * STAGES;
constexpr int kSlots = kHitSlots + (FETCH ? MISS_STAGES : 0);
constexpr int kPageWarps = WARPS + (FETCH ? 1 : 0);
constexpr int kWarps = kPageWarps + TAIL_WARPS;
constexpr int kOutBytes = 4 * GROUP * DIM;
constexpr int kPipelineBytes = kSlots * kBlockBytes;
constexpr int kLseBytes = TAIL_WARPS ? 8192 : 4096;
constexpr int kMergedAtOnce = (kPipelineBytes - kLseBytes) / kOutBytes;
static_assert(4 * kWarps * (16 * kHeadTiles + GROUP * DIM) <= kPipelineBytes && kMergedAtOnce >= 1,
              "softmaxes take more than the pages in flight");
constexpr int kQuads = (GROUP * DIM / 4 + 32 * kWarps - 1) / (32 * kWarps);  // of outputs per thread

// Merge what the warps of the block found, and store it as a split's normalised output and base-2 LSE, and that of the pages
// left out.
__device__ __forceinline__ void store_split(Softmax& run, unsigned char* scratch, float* out, float* lse,
                                            float* tail_lse) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;
    float* const tops = reinterpret_cast<float*>(scratch);  // [kWarps][8 kHeadTiles]
    float* const totals = tops + kWarps * 8 * kHeadTiles;
    float* const mixes = totals + kWarps * 8 * kHeadTiles;  // [kWarps][GROUP][DIM]
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2)
                run.total[h][c] += __shfl_xor_sync(kAll, run.total[h][c], lanes);
            if (row == 0) {
                tops[(warp * kHeadTiles + h) * 8 + 2 * column + c] = run.top[h][c];
                totals[(warp * kHeadTiles + h) * 8 + 2 * column + c] = run.total[h][c];
            }
        }
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
        for (int m = 0; m < kLaneDims / 2; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int head = 8 * h + 2 * column + i % 2, within = 2 * m + i / 2;
                const int dim = (8 * (within / kVector) + row) * kVector + within % kVector;
                if (head < GROUP) mixes[(warp * GROUP + head) * DIM + dim] = run.mixed[m][h][i];
            }
    __syncthreads();
    for (int at = threadIdx.x; at < GROUP * DIM; at += 32 * kWarps) {
        const int head = at / DIM;
        float top = minus_infinity(), total = 0, mixed = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) top = fmaxf(top, tops[w * 8 * kHeadTiles + head]);
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            const float weight = tops[w * 8 * kHeadTiles + head] == minus_infinity()
                                     ? 0.f
                                     : power_of_2(tops[w * 8 * kHeadTiles + head] - top);
            total += weight * totals[w * 8 * kHeadTiles + head];
            mixed += weight * mixes[w * GROUP * DIM + at];
        }
        __stcg(out + at, total > 0 ? mixed / total : 0.f);
        if (at % DIM == 0) __stcg(lse + head, total > 0 ? top + __log2f(total) : minus_infinity());
        if (TAIL_WARPS && at % DIM == 0 && tail_lse) {
            float tail = 0;
#pragma unroll
            for (int w = kPageWarps; w < kWarps; ++w)
                if (tops[w * 8 * kHeadTiles + head] > minus_infinity())
                    tail += power_of_2(tops[w * 8 * kHeadTiles + head] - top) * totals[w * 8 * kHeadTiles + head];
            __stcg(tail_lse + head, tail > 0 ? top + __log2f(tail) : minus_infinity());
        }
    }
}

// Merge all splits of a list, and the CPU's part if there is one, into the output. Runs in the block that stored the last
// of them; its pipeline is free by then. With `tail_lses`, returns in the first warp the share of the pages left out, a mean
// over heads. The output is multiplied by `factor`.
__device__ __forceinline__ float merge_splits(const float* outs, const float* lses, int splits, unsigned char* memory,
                                              u64* barrier, const float* cpu_out, const float* cpu_lse,
                                              unsigned short* out, long long stride_oh, const float* tail_lses,
                                              float factor) {
    float* const lse = reinterpret_cast<float*>(memory);  // [parts][GROUP], the CPU's first
    float* const tail_lse = reinterpret_cast<float*>(memory + kLseBytes / 2);
    float* const parts = reinterpret_cast<float*>(memory + kLseBytes);
    const int host = cpu_out ? 1 : 0, count = host + splits;
    float top[kQuads], total[kQuads], mixed[kQuads][4];
    for (int start = 0, phase = 0; start < count; start += kMergedAtOnce, phase ^= 1) {
        const int many = min(kMergedAtOnce, count - start);
        const int from_host = start < host ? 1 : 0;
        if (threadIdx.x == 0) {
            asm volatile("fence.proxy.async;" ::: "memory");
            const u32 target = shared_address(parts), arrival = shared_address(barrier);
            expect(arrival, many * kOutBytes);
            if (from_host) copy(target, reinterpret_cast<u64>(cpu_out), kOutBytes, arrival);
            if (many > from_host)
                copy(target + from_host * kOutBytes,
                     reinterpret_cast<u64>(outs + (start + from_host - host) * GROUP * DIM),
                     (many - from_host) * kOutBytes, arrival);
        }
        if (start == 0) {
            for (int i = threadIdx.x; i < count * GROUP; i += 32 * kWarps)
                lse[i] = i < host * GROUP ? __ldcv(cpu_lse + i) * kLog2E : __ldcg(lses + i - host * GROUP);
            if (TAIL_WARPS && tail_lses)
                for (int i = threadIdx.x; i < splits * GROUP; i += 32 * kWarps) tail_lse[i] = __ldcg(tail_lses + i);
            __syncthreads();
#pragma unroll
            for (int k = 0; k < kQuads; ++k) {
                const int head = min((threadIdx.x + k * 32 * kWarps) * 4 / DIM, GROUP - 1);
                top[k] = minus_infinity();
                for (int s = 0; s < count; ++s) top[k] = fmaxf(top[k], lse[s * GROUP + head]);
                if (top[k] == minus_infinity()) top[k] = 0;
                total[k] = mixed[k][0] = mixed[k][1] = mixed[k][2] = mixed[k][3] = 0;
            }
        }
        wait_for(shared_address(barrier), phase);
#pragma unroll
        for (int k = 0; k < kQuads; ++k) {
            const int at = (threadIdx.x + k * 32 * kWarps) * 4;
            if (at >= GROUP * DIM) continue;
#pragma unroll 4
            for (int s = 0; s < many; ++s) {
                const float weight = power_of_2(lse[(start + s) * GROUP + at / DIM] - top[k]);
                const float4 part = *reinterpret_cast<const float4*>(parts + s * GROUP * DIM + at);
                total[k] += weight;
                mixed[k][0] += weight * part.x;
                mixed[k][1] += weight * part.y;
                mixed[k][2] += weight * part.z;
                mixed[k][3] += weight * part.w;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
        const int at = (threadIdx.x + k * 32 * kWarps) * 4;
        if (at >= GROUP * DIM) continue;
        const float whole = total[k] > 0 ? factor / total[k] : 0.f;
        *reinterpret_cast<uint2*>(out + at / DIM * stride_oh + at % DIM) =
            make_uint2(pack(mixed[k][0] * whole, mixed[k][1] * whole), pack(mixed[k][2] * whole, mixed[k][3] * whole));
        if (TAIL_WARPS && tail_lses && at % DIM == 0) lse[at / DIM] = total[k] > 0 ? top[k] + __log2f(total[k]) : 0.f;
    }
    if (!TAIL_WARPS || !tail_lses) return 0;
    __syncthreads();
    if (threadIdx.x >= 32) return 0;
    float share = 0;
    for (int i = threadIdx.x; i < splits * GROUP; i += 32) share += power_of_2(tail_lse[i] - lse[i % GROUP]);
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) share += __shfl_xor_sync(kAll, share, lanes);
    return share / GROUP;
}

}  // namespace
