// hand_over: queries and the CPU's part of the missed pages into memory that it sees, and a ring once they are there.
//
// One block per list. It runs between the kernel that makes the selection and the one that attends, whose traffic a
// fence that reaches the host would have to wait for; that kernel begins as soon as the CPU was rung.
//
// Macros: DIM, GROUP (query heads per KV head), ARGUMENTS_BYTES (what the launching side passes).

#include "division.cuh"

namespace {

struct Arguments {
    const unsigned short* q;  // [B, Hq, D], two bytes an element
    const int* misses;        // [B, H, S] pages
    const int* valid;         // [B, H, S] tokens
    const int* num_hits;      // [B, H]
    const int* num_selected;  // [B, H]
    // In memory that the CPU sees:
    unsigned short* cpu_q;    // [X, Hq, D]
    int* cpu_pages;           // [X, H, cpu_width]
    int* cpu_valid;           // [X, H, cpu_width]
    int* cpu_counts;          // [X, H]
    int* cpu_batch;           // scalar
    u32* bell;                // see kernels/cpu/src/doorbell.hpp
    // On the device:
    const float* costs;       // see division.cuh
    u32* handed;              // lists handed over so far, 0 before and after
    Clock* clocks;            // of every layer
    const int* step;          // scalar
    long long stride_qb, stride_qh;
    int heads, width, cpu_width, layer, layers;
};
static_assert(sizeof(Arguments) == ARGUMENTS_BYTES, "hand_over.py declares other arguments");

// Add the last step's times of a layer to its sums, and begin this step's.
__device__ __forceinline__ void restart(Clock& clock, u64 now, const Division& division) {
    if (clock.began) {
        clock.steps += 1;
        clock.sum_expected += clock.expected;
        clock.sum_attended += clock.attended - clock.began;
        clock.sum_took += clock.ended - clock.began;
    }
    clock.began = division.expected > 0 ? now : 0;
    clock.expected = static_cast<u64>(1000 * division.expected);
    clock.attended = clock.ended = now;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(128) hand_over(const __grid_constant__ Arguments a) {
    const int pair = blockIdx.x, pairs = gridDim.x;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    const u64 now = nanoseconds();
    const Division division = divide(a.num_hits, a.num_selected, a.costs, pairs);
    if (pair == 0 && threadIdx.x == blockDim.x - 1) restart(a.clocks[a.layer], now, division);
    if (division.total == 0) return;

    const int end = a.num_selected[pair], count = division.of(end - a.num_hits[pair]);
    if (threadIdx.x == 0) a.cpu_counts[pair] = count;
    if (count > 0) {
        const unsigned short* const q = a.q + pair / a.heads * a.stride_qb + pair % a.heads * GROUP * a.stride_qh;
        u32* const target = reinterpret_cast<u32*>(a.cpu_q + static_cast<long long>(pair) * GROUP * DIM);
        for (int i = threadIdx.x; i < GROUP * DIM / 2; i += blockDim.x)
            target[i] = *reinterpret_cast<const u32*>(q + 2 * i / DIM * a.stride_qh + 2 * i % DIM);
        const long long from = static_cast<long long>(pair) * a.width + end - count;
        const long long to = static_cast<long long>(pair) * a.cpu_width;
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            a.cpu_pages[to + i] = a.misses[from + i];
            a.cpu_valid[to + i] = a.valid[from + i];
        }
    }
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x != 0 || atomicAdd(a.handed, 1u) != static_cast<u32>(pairs) - 1) return;
    *a.handed = 0;
    *a.cpu_batch = pairs / a.heads;
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(a.bell + kRung),
                 "r"(ring_number(*a.step, a.layer, a.layers))
                 : "memory");
}
