// offload: write the CPU's part of a layer's misses to memory that it sees, signal it, and wait for its completion.
//
// The first blocks of the attention kernel do this, so that nothing runs between the selection and the attention. One
// thread alone polls over the bus for the completion; the merging blocks poll a word on the device that it sets.
//
// Pages go as tagged 64-bit words, each of which carries the sequence number, so a reader needs no fence to know that one
// has arrived, like a seqlock per word; see types/offload_words.py. A fence after writes to host memory would end only
// when all reads in flight over the bus have completed, too. Lines of 128 bytes are written whole: a line that is written
// in part has to be read first.
//
// Macros: LINE_WORDS, TAG_SHIFT and TOKEN_BITS (of words), LISTS_AT_ONCE, TIMESTAMPS_BYTES (of a row, on the launching
// side).

#include "miss_partition.cuh"

namespace {

constexpr float kBusFraction = 0.9f;          // of the bus's time, what loads may take
constexpr u64 kTimeout = 60'000'000'000ull;  // nanoseconds that the CPU may take
constexpr int kListsAtOnce = LISTS_AT_ONCE;   // lists that a warp reads at once
constexpr float kScaleGain = 1 / 8.f;         // weight of a step's measurement in a cost scale
constexpr float kScaleDecay = 1 / 64.f;       // towards 1, in a step without a measurement, so that either part is tried again
constexpr float kMostScale = 4.f;             // and its inverse the least

struct Offload {
    // In memory that the CPU sees:
    u64* entries;              // [X, H, width] words
    u64* counts;               // [X, H] words
    u32* doorbell;             // see kernels/rheo_kernels/cpu/src/doorbell.hpp
    // On the device:
    const int* num_runners_up; // [B, H]; null: none
    const float* costs;        // see miss_partition.cuh
    Timestamps* timings;       // [layers]
    CostScale* cost_scales;    // [layers]
    // [layers, 3]: the CPU's part of a list's misses, in 1/256; and what part of those and of the runners-up may be loaded, in
    // 1/65536.
    int* load_quota;
    int width, layer, layers;
    int blocks;                // that do this
};

static_assert(sizeof(Timestamps) == TIMESTAMPS_BYTES, "offload.py declares other columns");

// The selection: lists of one request after the other.
struct Lists {
    const int* misses;        // [B, H, width] pages
    const int* valid;         // [B, H, width] tokens
    const int* num_hits;      // [B, H]
    const int* num_selected;  // [B, H]
    int lists, heads, width;
};

__device__ __forceinline__ int whole_lines(int words) { return (words + LINE_WORDS - 1) / LINE_WORDS * LINE_WORDS; }

// Write two words to host memory; each arrives as a whole.
__device__ __forceinline__ void send(u64* to, u32 left, u32 right, u32 tag) {
    const u64 above = static_cast<u64>(tag) << TAG_SHIFT;
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(above | left), "l"(above | right) : "memory");
}

// Begin a step's timestamps of a layer. Those that merging blocks write are not reset: they only grow.
__device__ __forceinline__ void begin_timings(Timestamps& timings, u64 now, const MissPartition& partition) {
    timings.began = partition.expected > 0 ? now : 0;
    timings.expected = static_cast<u64>(1000 * partition.expected);
    timings.expected_fetch = static_cast<u64>(1000 * partition.expected_fetch);
    timings.expected_cpu = static_cast<u64>(1000 * partition.expected_cpu);
    timings.signalled = now;
    timings.cpu_done = 0;
}

__device__ __forceinline__ float update_scale(float scale, u64 expected, u64 took) {
    if (expected == 0) return scale + (1 - scale) * kScaleDecay;
    const float now = static_cast<float>(took) / static_cast<float>(expected);
    return scale + (fminf(fmaxf(now, 1 / kMostScale), kMostScale) - scale) * kScaleGain;
}

// Add a step's durations of a layer to its sums, and update its cost scale. Called in the kernel of the layer after it:
// the timestamps are complete then, and nobody reads the scale.
__device__ __forceinline__ void end_timings(Timestamps& timings, CostScale& scale) {
    if (timings.began) {
        timings.steps += 1;
        timings.sum_expected += timings.expected;
        timings.sum_signalled += timings.signalled - timings.began;
        timings.sum_gpu_done += timings.gpu_done - timings.began;
        timings.sum_cpu_seen += timings.cpu_seen - timings.began;
        timings.sum_merged += timings.merged - timings.began;
    }
    scale.fetch = update_scale(scale.fetch, timings.expected_fetch, timings.gpu_done - timings.began);
    scale.cpu = update_scale(scale.cpu, timings.cpu_done ? timings.expected_cpu : 0, timings.cpu_done - timings.began);
}

// Mean microseconds from one layer to the next, in this step so far or, in its first layer, in the step before; 0 if
// unknown.
__device__ __forceinline__ float layer_period(const Timestamps* timings, int layer, int layers, u64 now) {
    const u64 first = timings[0].began, last = layer ? now : timings[layers - 1].began;
    const int between = layer ? layer : layers - 1;
    return first && last > first && between ? (last - first) / 1000.f / between : 0.f;
}

__device__ __forceinline__ float fraction(float part, int all) { return all ? fminf(fmaxf(part / all, 0.f), 1.f) : 1.f; }

// How many pages may be admitted in this layer: every fetched miss; and of the CPU's misses, which have to be loaded
// separately, and then of the runners-up, as many as the bus has time for within a layer. Admission reads this
// concurrently and may still find the last step's.
__device__ __forceinline__ void set_load_quota(int* load_quota, const MissPartition& partition, int runners_up,
                                               float layer_time, float fetch_page) {
    const int fetched = partition.missed - partition.cpu_pages;
    const float pages = layer_time > 0 ? kBusFraction * layer_time / fetch_page - fetched : 1e9f;
    const float loaded = fraction(pages, partition.cpu_pages);
    load_quota[0] = partition.cpu_fraction;
    load_quota[1] = static_cast<int>(65536 * loaded);
    load_quota[2] = static_cast<int>(65536 * fraction(pages - loaded * partition.cpu_pages, runners_up));
}

// Write the last misses of every list, the CPU's part, to its memory.
template <int THREADS>
__device__ __forceinline__ void send_lists(const Offload& a, const Lists& selected, const MissPartition& partition,
                                           u32 sequence) {
    const int warps = THREADS / 32 * a.blocks;
    const int warp = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    // No load is conditional, so that all are issued without waiting for each other.
    const auto missed = [&](int pair) {
        const int known = min(pair, selected.lists - 1), count = selected.num_selected[known] - selected.num_hits[known];
        return pair < selected.lists ? count : 0;
    };
#pragma unroll 1
    for (int i = 2 * (blockIdx.x * THREADS + threadIdx.x); i < whole_lines(selected.lists); i += 2 * THREADS * a.blocks)
        send(a.counts + i, partition.cpu_part(missed(i)), partition.cpu_part(missed(i + 1)), sequence);
#pragma unroll 1
    for (int pair = kListsAtOnce * warp; pair < selected.lists; pair += kListsAtOnce * warps) {
        int count[kListsAtOnce];
        long long last[kListsAtOnce];
#pragma unroll
        for (int k = 0; k < kListsAtOnce; ++k) {
            const int known = min(pair + k, selected.lists - 1);
            count[k] = partition.cpu_part(missed(pair + k));
            last[k] = static_cast<long long>(known) * selected.width + max(selected.num_selected[known] - 1, 0);
        }
        const auto word = [&](int k, int i) {
            const long long at = last[k] - max(count[k] - 1 - i, 0);
            const u32 listed = static_cast<u32>(selected.misses[at]) << TOKEN_BITS | (selected.valid[at] - 1);
            return i < count[k] ? listed : 0u;
        };
        u32 words[kListsAtOnce][2];
#pragma unroll
        for (int k = 0; k < kListsAtOnce; ++k)
#pragma unroll
            for (int i = 0; i < 2; ++i) words[k][i] = word(k, 2 * lane + i);
#pragma unroll
        for (int k = 0; k < kListsAtOnce; ++k) {
            u64* const to = a.entries + static_cast<long long>(pair + k) * a.width;
            if (2 * lane < whole_lines(count[k])) send(to + 2 * lane, words[k][0], words[k][1], sequence);
#pragma unroll 1
            for (int i = 2 * lane + 64; i < whole_lines(count[k]); i += 64)
                send(to + i, word(k, i), word(k, i + 1), sequence);
        }
    }
}

// Poll host memory until the CPU has attended its part. A CPU that never completes ends the program.
__device__ __forceinline__ void wait_for_cpu(const u32* doorbell, u32 sequence) {
    const u64 begin = nanoseconds();
    for (u32 completed;;) {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(completed) : "l"(doorbell + kCompleted) : "memory");
        if (completed == sequence) return;
        if (nanoseconds() - begin > kTimeout) __trap();
    }
}

// Partition a layer's misses, signal the CPU and send its lists; called by the first `blocks` blocks, of THREADS. The first
// block returns once the CPU has completed and the merging blocks can see it.
template <int THREADS>
__device__ __forceinline__ void offload(const Offload& a, const Lists& selected, int step) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 sequence = sequence_number(step, a.layer, a.layers);
    const u64 now = nanoseconds();
    const MissPartition partition =
        partition_misses(selected.num_hits, selected.num_selected, a.costs, a.cost_scales + a.layer, selected.lists);
    Timestamps& timings = a.timings[a.layer];
    if (blockIdx.x == 0 && warp == THREADS / 32 - 1) {
        int runners_up = 0;
        if (a.num_runners_up != nullptr)
            for (int i = lane; i < selected.lists; i += 32) runners_up += a.num_runners_up[i];
        runners_up = __reduce_add_sync(kAll, runners_up);
        if (lane == 0) {
            const float layer_time = layer_period(a.timings, a.layer, a.layers, now);
            set_load_quota(a.load_quota + 3 * a.layer, partition, runners_up, layer_time, a.costs[1]);
            begin_timings(timings, now, partition);
            const int before = a.layer ? a.layer - 1 : a.layers - 1;
            if (before != a.layer) end_timings(a.timings[before], a.cost_scales[before]);
        }
    }
    if (partition.cpu_pages == 0) return;
    // The signal goes first, since the CPU waits for each word anyway: sequence number and number of requests, repeated so
    // that they fill the line.
    if (blockIdx.x == 0 && warp == 0 && lane < kCompleted / 4)
        send(reinterpret_cast<u64*>(a.doorbell + kSignal) + 2 * lane, sequence, sequence, selected.lists / selected.heads);
    send_lists<THREADS>(a, selected, partition, sequence);
    __syncthreads();
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    timings.signalled = nanoseconds();
    wait_for_cpu(a.doorbell, sequence);
    timings.cpu_done = nanoseconds();
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(&timings.acknowledged), "l"(static_cast<u64>(sequence))
                 : "memory");
}

// Wait, in a merging block, until `offload` has seen the CPU's completion.
__device__ __forceinline__ void wait_until_acknowledged(const Timestamps& timings, u32 sequence) {
    for (u64 acknowledged = 0; acknowledged != sequence;)
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(acknowledged) : "l"(&timings.acknowledged) : "memory");
}

}  // namespace
