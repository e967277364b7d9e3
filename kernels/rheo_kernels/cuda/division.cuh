// division: how a layer's misses are divided between the bus and the CPU, the number by which the CPU is rung, and how
// long all that took.
//
// Every kernel that asks finds the same answer, since all compute it alike from the same counts.
#pragma once

#include "words.cuh"

namespace {

constexpr int kRung = 0, kAnswered = 16;  // words of a doorbell, the first of a line each

struct Division {
    int share;       // of 256 misses of a list, those that the CPU attends
    int total;       // misses that it attends in all lists
    int missed;      // misses of all lists
    float expected;  // microseconds until hits and misses are attended, 0 without misses
    // The same by the costs alone, whatever the pace, of what is fetched and of the CPU's part; 0 if that is nothing, or if
    // the hits take longer than what is fetched.
    float expected_fetch, expected_cpu;

    __device__ __forceinline__ int of(int missed) const { return missed * share >> 8; }
};

// How many times as long as by the costs either way took in a layer of late: neighbours, loads behind the layers and the
// server's own threads share memory and bus with it.
struct Pace {
    float fetch, cpu;
};

// A layer's clock, in nanoseconds: what the latest step noted, and sums over steps that had misses, which the next layer
// adds up, so a single one has none.
struct Clock {
    u64 began;     // when the selection was there; 0 if nothing was missed
    u64 expected;  // how long it was to take
    u64 expected_fetch, expected_cpu;  // by the costs alone, see Division
    u64 rung;      // when the CPU had been rung
    u64 attended;  // when the GPU had attended hits and what it fetched
    u64 replied;   // when the CPU answered; 0 if it had no part
    u64 answered;  // when every list's last block knew of it
    u64 ended;     // when everything was merged
    u64 heard;     // number of the ring that the CPU answered last
    u64 steps, sum_expected, sum_rung, sum_attended, sum_answered, sum_ended;  // times since the layer began
};

__device__ __forceinline__ u64 nanoseconds() {
    u64 now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Number of a layer's ring: another one in every layer of every step, and the layer modulo their number.
__device__ __forceinline__ u32 ring_number(int step, int layer, int layers) {
    const u32 steps = 0xffffffffu / layers;
    return static_cast<u32>(step) % steps * layers + layer + 1;
}

// Pages of all lists of a selection: those that have frames, and those that do not.
struct Pages {
    int hit, missed;
};

// A whole warp calls.
__device__ __forceinline__ Pages count_pages(const int* num_hits, const int* num_selected, int lists) {
    Pages pages{0, 0};
#pragma unroll 2
    for (int i = threadIdx.x % 32; i < lists; i += 32) {
        const int hits = num_hits[i];
        pages.hit += hits;
        pages.missed += num_selected[i] - hits;
    }
    return {__reduce_add_sync(kAll, pages.hit), __reduce_add_sync(kAll, pages.missed)};
}

// Either way takes time to begin and then as long as there are pages, longer where both go on at once since both read
// DRAM. Misses are divided such that both end together, unless one way alone ends as soon, or before the hits do. A
// whole warp calls. `costs`, in microseconds: to begin to fetch, per page fetched, to begin on the CPU, per page there,
// how much longer pages take both at once, per page of a frame (to begin takes as long as to fetch); aligned to 16 bytes.
// `pace` is the layer's, aligned to 8.
__device__ __forceinline__ Division divide(const int* num_hits, const int* num_selected, const float* costs,
                                           const Pace* pace, int lists) {
    // On their way while pages are counted.
    float begin_fetch, fetch_page, begin_cpu, cpu_page, slower, hit_page, fetch_pace, cpu_pace;
    asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(begin_fetch), "=f"(fetch_page), "=f"(begin_cpu), "=f"(cpu_page)
                 : "l"(costs));
    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(slower), "=f"(hit_page) : "l"(costs + 4));
    asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(fetch_pace), "=f"(cpu_pace) : "l"(pace));
    const auto [hit, missed] = count_pages(num_hits, num_selected, lists);
    Division division{0, 0, missed, 0.f, 0.f, 0.f};
    if (missed == 0) return division;
    const float hits = fminf(begin_fetch, begin_cpu) + hit * hit_page;
    begin_fetch *= fetch_pace, fetch_page *= fetch_pace, begin_cpu *= cpu_pace, cpu_page *= cpu_pace;
    const float fetch = missed * fetch_page, cpu = missed * cpu_page;
    const float balanced = (begin_cpu - begin_fetch + cpu * slower) / ((fetch + cpu) * slower);
    float fetched = fminf(fmaxf(balanced, 0.f), 1.f);
    const float by_fetch = fmaxf(begin_fetch + fetch, hits), by_cpu = fmaxf(begin_cpu + cpu, hits);
    const float by_both =
        fmaxf(fmaxf(begin_fetch + fetched * fetch * slower, begin_cpu + (1 - fetched) * cpu * slower), hits);
    if (by_both >= fminf(by_fetch, by_cpu)) fetched = by_fetch <= by_cpu ? 1.f : 0.f;
    division.expected = fminf(by_both, fminf(by_fetch, by_cpu));
    division.share = 256 - static_cast<int>(ceilf(256 * fetched));
#pragma unroll 2
    for (int i = threadIdx.x % 32; i < lists; i += 32) division.total += division.of(num_selected[i] - num_hits[i]);
    division.total = __reduce_add_sync(kAll, division.total);
    const int fetched_pages = missed - division.total;
    const float longer = division.total > 0 && fetched_pages > 0 ? slower : 1.f;
    const float fetch_part = begin_fetch + fetched_pages * fetch_page * longer;
    if (fetched_pages > 0 && fetch_part >= hits) division.expected_fetch = fetch_part / fetch_pace;
    if (division.total > 0)
        division.expected_cpu = (begin_cpu + division.total * cpu_page * longer) / cpu_pace;
    return division;
}

}  // namespace
