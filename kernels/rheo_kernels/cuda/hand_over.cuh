// hand_over: a ring for the CPU, its part of a layer's missed pages into memory that it sees, and the wait for its answer.
//
// The first blocks of the kernel that attends do this, so that nothing lies between the selection and the pages, and one
// thread alone asks over the bus; the blocks that merge wait for its word on the device. Pages go in words that bear the
// ring's number, see reference/handed.py, so that nothing has to be waited for: a fence behind writes to the host's
// memory ends when all that is being read over the bus has come. Lines of that memory are written as a whole, for the
// others would have to be read first.
//
// Macros: LINE_WORDS, TAG_SHIFT and TOKEN_BITS (of words), LISTS_AT_ONCE, CLOCK_BYTES (a row of the clocks on the
// launching side).

#include "division.cuh"

namespace {

constexpr float kBusShare = 0.9f;              // of the bus's time, what loads may take
constexpr u64 kPatience = 60'000'000'000ull;  // nanoseconds that the CPU may take
constexpr int kListsAtOnce = LISTS_AT_ONCE;    // lists of a warp whose pages are being read
constexpr float kLearned = 1 / 8.f;            // of what a step says about a pace
constexpr float kForgotten = 1 / 64.f;         // of a pace, in a step that says nothing, so that either way is tried again
constexpr float kMostPace = 4.f;               // and its inverse the least

struct HandOver {
    // In memory that the CPU sees:
    u64* entries;              // [X, H, width] words
    u64* counts;               // [X, H] words
    u32* bell;                 // see kernels/rheo_kernels/cpu/src/doorbell.hpp
    // On the device:
    const int* num_runners_up; // [B, H]; null: none
    const float* costs;        // see division.cuh
    Clock* clocks;             // of every layer
    Pace* paces;               // of every layer
    int* rules;                // [layers, 3]: of 256 misses, the CPU's; of 65536 of those and of runners-up, how many to load
    int width, layer, layers;
    int blocks;                // that hand over
};

static_assert(sizeof(Clock) == CLOCK_BYTES, "share.py declares other columns");

// The selection: lists of one request after the other.
struct Lists {
    const int* misses;        // [B, H, width] pages
    const int* valid;         // [B, H, width] tokens
    const int* num_hits;      // [B, H]
    const int* num_selected;  // [B, H]
    int lists, heads, width;
};

__device__ __forceinline__ int whole_lines(int words) { return (words + LINE_WORDS - 1) / LINE_WORDS * LINE_WORDS; }

// Write two words to the host's memory, where each arrives as a whole.
__device__ __forceinline__ void send(u64* to, u32 left, u32 right, u32 tag) {
    const u64 above = static_cast<u64>(tag) << TAG_SHIFT;
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(above | left), "l"(above | right) : "memory");
}

// Begin a step's times of a layer. Those of the blocks that merge are not reset, they only ever rise.
__device__ __forceinline__ void begin_clock(Clock& clock, u64 now, const Division& division) {
    clock.began = division.expected > 0 ? now : 0;
    clock.expected = static_cast<u64>(1000 * division.expected);
    clock.expected_fetch = static_cast<u64>(1000 * division.expected_fetch);
    clock.expected_cpu = static_cast<u64>(1000 * division.expected_cpu);
    clock.rung = now;
    clock.replied = 0;
}

__device__ __forceinline__ float learn(float pace, u64 expected, u64 took) {
    if (expected == 0) return pace + (1 - pace) * kForgotten;
    const float now = static_cast<float>(took) / static_cast<float>(expected);
    return pace + (fminf(fmaxf(now, 1 / kMostPace), kMostPace) - pace) * kLearned;
}

// Add a step's times of a layer to its sums, and learn its pace from them. In the kernel of the layer behind it, when they
// are complete and nobody divides by its pace.
__device__ __forceinline__ void end_clock(Clock& clock, Pace& pace) {
    if (clock.began) {
        clock.steps += 1;
        clock.sum_expected += clock.expected;
        clock.sum_rung += clock.rung - clock.began;
        clock.sum_attended += clock.attended - clock.began;
        clock.sum_answered += clock.answered - clock.began;
        clock.sum_ended += clock.ended - clock.began;
    }
    pace.fetch = learn(pace.fetch, clock.expected_fetch, clock.attended - clock.began);
    pace.cpu = learn(pace.cpu, clock.replied ? clock.expected_cpu : 0, clock.replied - clock.began);
}

// Microseconds from one layer to the next, as far as this step or, in its first layer, the one before tells; 0 if unknown.
__device__ __forceinline__ float period(const Clock* clocks, int layer, int layers, u64 now) {
    const u64 first = clocks[0].began, last = layer ? now : clocks[layers - 1].began;
    const int between = layer ? layer : layers - 1;
    return first && last > first && between ? (last - first) / 1000.f / between : 0.f;
}

__device__ __forceinline__ float share_of(float part, int all) { return all ? fminf(fmaxf(part / all, 0.f), 1.f) : 1.f; }

// Which pages may be admitted in this layer: all misses that are fetched, and of the CPU's, which have to be loaded once
// more, and then of the runners-up as many as the bus has time for in a layer. Admission reads this beside us: it may
// still find the last step's.
__device__ __forceinline__ void limit_loads(int* rules, const Division& division, int runners_up, float layer_time,
                                            float fetch_page) {
    const int fetched = division.missed - division.total;
    const float pages = layer_time > 0 ? kBusShare * layer_time / fetch_page - fetched : 1e9f;
    const float loaded = share_of(pages, division.total);
    rules[0] = division.share;
    rules[1] = static_cast<int>(65536 * loaded);
    rules[2] = static_cast<int>(65536 * share_of(pages - loaded * division.total, runners_up));
}

// Send the CPU the last misses of every list, as many as are its share.
template <int THREADS>
__device__ __forceinline__ void send_lists(const HandOver& a, const Lists& selected, const Division& division, u32 ring) {
    const int warps = THREADS / 32 * a.blocks;
    const int warp = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    // Reads are never skipped, so that none waits for another before it is issued.
    const auto missed = [&](int pair) {
        const int known = min(pair, selected.lists - 1), count = selected.num_selected[known] - selected.num_hits[known];
        return pair < selected.lists ? count : 0;
    };
#pragma unroll 1
    for (int i = 2 * (blockIdx.x * THREADS + threadIdx.x); i < whole_lines(selected.lists); i += 2 * THREADS * a.blocks)
        send(a.counts + i, division.of(missed(i)), division.of(missed(i + 1)), ring);
#pragma unroll 1
    for (int pair = kListsAtOnce * warp; pair < selected.lists; pair += kListsAtOnce * warps) {
        int count[kListsAtOnce];
        long long last[kListsAtOnce];
#pragma unroll
        for (int k = 0; k < kListsAtOnce; ++k) {
            const int known = min(pair + k, selected.lists - 1);
            count[k] = division.of(missed(pair + k));
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
            if (2 * lane < whole_lines(count[k])) send(to + 2 * lane, words[k][0], words[k][1], ring);
#pragma unroll 1
            for (int i = 2 * lane + 64; i < whole_lines(count[k]); i += 64) send(to + i, word(k, i), word(k, i + 1), ring);
        }
    }
}

// Wait until the CPU has attended what it was handed. A CPU that never answers ends the program.
__device__ __forceinline__ void wait_for_cpu(const u32* bell, u32 ring) {
    const u64 begin = nanoseconds();
    for (u32 answered;;) {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(answered) : "l"(bell + kAnswered) : "memory");
        if (answered == ring) return;
        if (nanoseconds() - begin > kPatience) __trap();
    }
}

// All of it, by the first `blocks`, of THREADS. The very first ends when the CPU has answered and those that merge know.
template <int THREADS>
__device__ __forceinline__ void hand_over(const HandOver& a, const Lists& selected, int step) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 ring = ring_number(step, a.layer, a.layers);
    const u64 now = nanoseconds();
    const Division division =
        divide(selected.num_hits, selected.num_selected, a.costs, a.paces + a.layer, selected.lists);
    Clock& clock = a.clocks[a.layer];
    if (blockIdx.x == 0 && warp == THREADS / 32 - 1) {
        int runners_up = 0;
        if (a.num_runners_up != nullptr)
            for (int i = lane; i < selected.lists; i += 32) runners_up += a.num_runners_up[i];
        runners_up = __reduce_add_sync(kAll, runners_up);
        if (lane == 0) {
            const float layer_time = period(a.clocks, a.layer, a.layers, now);
            limit_loads(a.rules + 3 * a.layer, division, runners_up, layer_time, a.costs[1]);
            begin_clock(clock, now, division);
            const int before = a.layer ? a.layer - 1 : a.layers - 1;
            if (before != a.layer) end_clock(a.clocks[before], a.paces[before]);
        }
    }
    if (division.total == 0) return;
    // The ring first, the CPU waits for words anyway: the requests above its number, as often as they fill the line.
    if (blockIdx.x == 0 && warp == 0 && lane < kAnswered / 4)
        send(reinterpret_cast<u64*>(a.bell + kRung) + 2 * lane, ring, ring, selected.lists / selected.heads);
    send_lists<THREADS>(a, selected, division, ring);
    __syncthreads();
    if (blockIdx.x != 0 || threadIdx.x != 0) return;
    clock.rung = nanoseconds();
    wait_for_cpu(a.bell, ring);
    clock.replied = nanoseconds();
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(&clock.heard), "l"(static_cast<u64>(ring)) : "memory");
}

// Wait, in another block, until `hand_over` has heard from the CPU.
__device__ __forceinline__ void wait_until_heard(const Clock& clock, u32 ring) {
    for (u64 heard = 0; heard != ring;)
        asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(heard) : "l"(&clock.heard) : "memory");
}

}  // namespace
