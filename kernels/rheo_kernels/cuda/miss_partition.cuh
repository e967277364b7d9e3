// miss_partition: how a layer's misses are partitioned between fetching over PCIe and the CPU, by a cost model; the
// layer's timestamps; and the sequence number that identifies a layer of a step to the CPU.
//
// Every block that needs the partition computes it from the same counts and costs, so all get the same result.
#pragma once

#include "words.cuh"

namespace {

constexpr int kSignal = 0, kCompleted = 16;  // positions in a doorbell's words, each the first of a line

struct MissPartition {
    int cpu_fraction;  // the CPU's part of every list's misses, in 1/256
    int cpu_pages;     // misses that the CPU attends, over all lists
    int missed;        // misses of all lists
    float expected;    // predicted microseconds until hits and misses are attended, 0 without misses
    // The same for the fetched part and for the CPU's part alone, without their cost scales. 0 if that part is empty; for the
    // fetched part also if the hits take longer, since its own time cannot be measured then.
    float expected_fetch, expected_cpu;

    // The CPU's part of a list with so many misses.
    __device__ __forceinline__ int cpu_part(int missed) const { return missed * cpu_fraction >> 8; }
};

// Measured over predicted time of either part in one layer, a running average: other processes, loads of later layers and
// the server's own threads share memory and bus with them.
struct CostScale {
    float fetch, cpu;
};

// When the parts of one layer's attention happened, in nanoseconds: the latest step's, and sums over the steps that had
// misses. The kernel of the next layer adds to the sums, so a model of a single layer has none.
struct Timestamps {
    u64 began;      // the selection was complete; 0 if it had no misses
    u64 expected;   // duration that the cost model predicts
    u64 expected_fetch, expected_cpu;  // durations of either part, see MissPartition
    u64 signalled;  // the CPU's lists and the signal were written
    u64 gpu_done;   // hits and fetched misses were attended
    u64 cpu_done;   // the CPU's completion was read; 0 if it had no part
    u64 cpu_seen;   // the last merging block knew of the completion
    u64 merged;     // the output was written
    u64 acknowledged;  // sequence number of the CPU's latest completion
    u64 steps, sum_expected, sum_signalled, sum_gpu_done, sum_cpu_seen, sum_merged;  // durations since `began`
};

__device__ __forceinline__ u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Identifies a layer of a step: different in every layer of every step, and the layer plus one modulo their number.
__device__ __forceinline__ u32 sequence_number(int step, int layer, int layers) {
    const u32 steps = 0xffffffffu / layers;
    return static_cast<u32>(step) % steps * layers + layer + 1;
}

// Pages of all lists of a selection.
struct PageCounts {
    int hit, missed;
};

// Called by a whole warp.
__device__ __forceinline__ PageCounts count_pages(const int* num_hits, const int* num_selected, int lists) {
    PageCounts pages{0, 0};
#pragma unroll 2
    for (int i = threadIdx.x % 32; i < lists; i += 32) {
        const int hits = num_hits[i];
        pages.hit += hits;
        pages.missed += num_selected[i] - hits;
    }
    return {__reduce_add_sync(kAll, pages.hit), __reduce_add_sync(kAll, pages.missed)};
}

// Partition misses such that fetching and the CPU end together, unless one of them alone ends as early, or before the hits
// do. Either takes a fixed latency and then a time per page, longer by the factor `slowdown` where both are busy, since both
// read DRAM. Called by a whole warp.
//
// `costs` is the `Costs` of offload.py, aligned to 16 bytes: latency of fetching, per page fetched, latency of the CPU, per
// page there, slowdown, per page of a frame (whose latency is the smaller of the two). `scale` is the layer's, aligned to 8.
__device__ __forceinline__ MissPartition partition_misses(const int* num_hits, const int* num_selected, const float* costs,
                                                          const CostScale* scale, int lists) {
    // These loads are in flight while pages are counted.
    float fetch_latency, fetch_page, cpu_latency, cpu_page, slowdown, hit_page, fetch_scale, cpu_scale;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(fetch_latency), "=f"(fetch_page), "=f"(cpu_latency), "=f"(cpu_page)
                 : "l"(costs));
    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(slowdown), "=f"(hit_page) : "l"(costs + 4));
    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(fetch_scale), "=f"(cpu_scale) : "l"(scale));
    const auto [hit, missed] = count_pages(num_hits, num_selected, lists);
    MissPartition partition{0, 0, missed, 0.f, 0.f, 0.f};
    if (missed == 0) return partition;
    const float hits = fminf(fetch_latency, cpu_latency) + hit * hit_page;
    fetch_latency *= fetch_scale, fetch_page *= fetch_scale, cpu_latency *= cpu_scale, cpu_page *= cpu_scale;
    const float fetch = missed * fetch_page, cpu = missed * cpu_page;
    const float balanced = (cpu_latency - fetch_latency + cpu * slowdown) / ((fetch + cpu) * slowdown);
    float fetched = fminf(fmaxf(balanced, 0.f), 1.f);
    const float by_fetch = fmaxf(fetch_latency + fetch, hits), by_cpu = fmaxf(cpu_latency + cpu, hits);
    const float by_both =
        fmaxf(fmaxf(fetch_latency + fetched * fetch * slowdown, cpu_latency + (1 - fetched) * cpu * slowdown), hits);
    if (by_both >= fminf(by_fetch, by_cpu)) fetched = by_fetch <= by_cpu ? 1.f : 0.f;
    partition.expected = fminf(by_both, fminf(by_fetch, by_cpu));
    partition.cpu_fraction = 256 - static_cast<int>(ceilf(256 * fetched));
#pragma unroll 2
    for (int i = threadIdx.x % 32; i < lists; i += 32)
        partition.cpu_pages += partition.cpu_part(num_selected[i] - num_hits[i]);
    partition.cpu_pages = __reduce_add_sync(kAll, partition.cpu_pages);
    const int fetched_pages = missed - partition.cpu_pages;
    const float longer = partition.cpu_pages > 0 && fetched_pages > 0 ? slowdown : 1.f;
    const float fetch_part = fetch_latency + fetched_pages * fetch_page * longer;
    if (fetched_pages > 0 && fetch_part >= hits) partition.expected_fetch = fetch_part / fetch_scale;
    if (partition.cpu_pages > 0)
        partition.expected_cpu = (cpu_latency + partition.cpu_pages * cpu_page * longer) / cpu_scale;
    return partition;
}

}  // namespace
