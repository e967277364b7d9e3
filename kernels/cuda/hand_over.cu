// hand_over: a ring for the CPU, its part of a layer's missed pages into memory that it sees, and the wait for its answer.
//
// send_queries goes first, beside the kernels that make the selection: it needs nothing of it. hand_over is one block. It
// begins once the selection is there, lets the kernel that attends begin beside it, and ends when the CPU has answered,
// so that the other waits for its end and nothing but one thread asks over the bus. Pages go in words that bear the
// ring's number, see reference/handed.py, so that nothing has to be waited for: a fence behind writes to the host's
// memory ends when all that is being read over the bus has come. Lines of that memory are written as a whole, for the
// others would have to be read first.
//
// Macros: DIM, GROUP (query heads per KV head), WARPS, LINE_WORDS, TAG_SHIFT and TOKEN_BITS (of words), ARGUMENTS_BYTES
// and QUERIES_BYTES (what the launching side passes), CLOCK_BYTES (a row of the clocks there).

#include "division.cuh"

namespace {

constexpr float kBusShare = 0.9f;              // of the bus's time, what loads may take
constexpr u64 kPatience = 60'000'000'000ull;  // nanoseconds that the CPU may take

struct Queries {
    const unsigned short* q;  // [B, Hq, D], two bytes an element
    unsigned short* cpu_q;    // [X, Hq, D], in memory that the CPU sees
    long long stride_qb, stride_qh;
    int heads;
};
static_assert(sizeof(Queries) == QUERIES_BYTES, "hand_over.py declares other arguments");

struct Arguments {
    const int* misses;        // [B, H, S] pages
    const int* valid;         // [B, H, S] tokens
    const int* num_hits;      // [B, H]
    const int* num_selected;  // [B, H]
    const int* num_runners_up;  // [B, H]; null: none
    // In memory that the CPU sees:
    u64* cpu_entries;         // [X, H, cpu_width] words
    u64* cpu_counts;          // [X, H] words
    u32* bell;                // see kernels/cpu/src/doorbell.hpp
    // On the device:
    const float* costs;       // see division.cuh
    Clock* clocks;            // of every layer
    int* rules;               // [layers, 3]: of 256 misses, the CPU's; of 65536 of those and of runners-up, how many to load
    const int* step;          // scalar
    int lists, heads, width, cpu_width, layer, layers;
};
static_assert(sizeof(Arguments) == ARGUMENTS_BYTES, "hand_over.py declares other arguments");

static_assert(sizeof(Clock) == CLOCK_BYTES, "share.py declares other columns");

__device__ __forceinline__ int whole_lines(int words) { return (words + LINE_WORDS - 1) / LINE_WORDS * LINE_WORDS; }

// Write two words to the host's memory, where each arrives as a whole.
__device__ __forceinline__ void send(u64* to, u32 left, u32 right, u32 tag) {
    const u64 above = static_cast<u64>(tag) << TAG_SHIFT;
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(above | left), "l"(above | right) : "memory");
}

// Add the last step's times of a layer to its sums, and begin this step's.
__device__ __forceinline__ void restart(Clock& clock, u64 now, const Division& division) {
    if (clock.began) {
        clock.steps += 1;
        clock.sum_expected += clock.expected;
        clock.sum_rung += clock.rung - clock.began;
        clock.sum_attended += clock.attended - clock.began;
        clock.sum_answered += clock.answered - clock.began;
        clock.sum_ended += clock.ended - clock.began;
    }
    clock.began = division.expected > 0 ? now : 0;
    clock.expected = static_cast<u64>(1000 * division.expected);
    clock.rung = clock.attended = clock.answered = clock.ended = now;
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

// Wait until the CPU has attended what it was handed. A CPU that never answers ends the program.
__device__ __forceinline__ void wait_for_cpu(const u32* bell, u32 ring) {
    const u64 begin = nanoseconds();
    for (u32 answered;;) {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(answered) : "l"(bell + kAnswered) : "memory");
        if (answered == ring) return;
        if (nanoseconds() - begin > kPatience) __trap();
    }
}

}  // namespace

// One block per request.
extern "C" __global__ void __launch_bounds__(32 * WARPS) send_queries(const __grid_constant__ Queries a) {
    const int vectors = a.heads * GROUP * DIM / 8;
    uint4* const target = reinterpret_cast<uint4*>(a.cpu_q) + static_cast<long long>(blockIdx.x) * vectors;
    for (int i = threadIdx.x; i < vectors; i += 32 * WARPS)
        target[i] = *reinterpret_cast<const uint4*>(a.q + blockIdx.x * a.stride_qb + 8 * i / DIM * a.stride_qh +
                                                    8 * i % DIM);
    // They are to be there before any word is.
    __syncthreads();
    if (threadIdx.x == 0) __threadfence_system();
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) hand_over(const __grid_constant__ Arguments a) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    const u32 ring = ring_number(*a.step, a.layer, a.layers);
    const u64 now = nanoseconds();
    const Division division = divide(a.num_hits, a.num_selected, a.costs, a.lists);
    if (warp == WARPS - 1) {
        int runners_up = 0;
        if (a.num_runners_up != nullptr)
            for (int i = lane; i < a.lists; i += 32) runners_up += a.num_runners_up[i];
        runners_up = __reduce_add_sync(kAll, runners_up);
        if (lane == 0) {
            const float layer_time = period(a.clocks, a.layer, a.layers, now);
            limit_loads(a.rules + 3 * a.layer, division, runners_up, layer_time, a.costs[1]);
            restart(a.clocks[a.layer], now, division);
        }
    }
    if (division.total == 0) return;

    // The ring first, the CPU waits for words anyway: the requests above its number, as often as they fill the line.
    if (warp == 0 && lane < kAnswered / 4)
        send(reinterpret_cast<u64*>(a.bell + kRung) + 2 * lane, ring, ring, a.lists / a.heads);
    const auto handed = [&](int pair) {
        return pair < a.lists ? division.of(a.num_selected[pair] - a.num_hits[pair]) : 0;
    };
    for (int i = 2 * threadIdx.x; i < whole_lines(a.lists); i += 64 * WARPS)
        send(a.cpu_counts + i, handed(i), handed(i + 1), ring);
    for (int pair = warp; pair < a.lists; pair += WARPS) {
        const int count = handed(pair);
        const long long from = static_cast<long long>(pair) * a.width + a.num_selected[pair] - count;
        const auto entry = [&](int i) {
            return i < count ? static_cast<u32>(a.misses[from + i]) << TOKEN_BITS | (a.valid[from + i] - 1) : 0u;
        };
        for (int i = 2 * lane; i < whole_lines(count); i += 64)
            send(a.cpu_entries + static_cast<long long>(pair) * a.cpu_width + i, entry(i), entry(i + 1), ring);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    a.clocks[a.layer].rung = nanoseconds();
    wait_for_cpu(a.bell, ring);
}
