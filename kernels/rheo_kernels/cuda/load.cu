// load: copy pages that were admitted from host memory into their frames.
//
// Which candidates were admitted is known only when this runs. So warps take turns to look up 32 candidates of a list in the
// page table, and copy those that have a frame by bulk copies through a pipeline of their own in shared memory. That way a
// few multiprocessors have enough bytes in flight to fill the bus, and the model's kernels have the others.
//
// Macros: BLOCK_BYTES (of a page, K and V), WARPS, STAGES (pages in flight per warp), ARGUMENTS_BYTES (what the launching
// side passes).

#include "bulk_copy.cuh"

namespace {

struct Candidates {
    const int* pages;     // [B * H, width]
    const int* first;     // [B * H]; null: 0
    // [B * H]: the pages begin at the smaller of this and `first` + `room`, since those before were fetched and staged;
    // null: they begin at `first`.
    const int* cpu_begin;
    const int* last;      // [B * H]; null: there are none
    int width, room;
};

struct Arguments {
    const unsigned char* host;  // one layer's, [N, H, BLOCK_BYTES]
    unsigned char* frames;      // one layer's, [H, F, BLOCK_BYTES]
    const int* page_table;      // [H, N]
    long long stride_hn, stride_hh, stride_fh, stride_ff, stride_th;  // bytes; of the table, entries
    Candidates candidates[2];
    int lists, heads;
};
static_assert(sizeof(Arguments) == ARGUMENTS_BYTES, "load.py declares other arguments");

// A warp's pages in flight. One lane calls.
struct Pipeline {
    unsigned char* pages;  // [STAGES][BLOCK_BYTES]
    u64* barriers;         // [STAGES]
    u64* targets;          // [STAGES]
    int taken = 0, stored = 0;

    __device__ __forceinline__ void take(u64 source, u64 target) {
        if (taken - stored == STAGES) {
            store();
            wait_until_read();
        }
        const int slot = taken++ % STAGES;
        targets[slot] = target;
        start_copy(shared_address(pages + slot * BLOCK_BYTES), source, BLOCK_BYTES, shared_address(barriers + slot));
    }

    // Store the page that has been in flight for longest, once it has arrived.
    __device__ __forceinline__ void store() {
        const int slot = stored % STAGES, phase = stored / STAGES % 2;
        ++stored;
        wait_for(shared_address(barriers + slot), phase);
        start_store(targets[slot], shared_address(pages + slot * BLOCK_BYTES), BLOCK_BYTES);
    }

    __device__ __forceinline__ void finish() {
        while (stored < taken) store();
        wait_until_stored();
    }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * WARPS) load(const __grid_constant__ Arguments a) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) u64 barriers[WARPS * STAGES];
    __shared__ u64 targets[WARPS * STAGES];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = gridDim.x * WARPS;
    const int self = warp * gridDim.x + blockIdx.x;
    if (threadIdx.x < WARPS * STAGES) make_barrier(barriers + threadIdx.x);
    publish_barriers();
    __syncthreads();
    Pipeline pipeline{memory + warp * STAGES * BLOCK_BYTES, barriers + warp * STAGES, targets + warp * STAGES};
    int turn = 0;
#pragma unroll
    for (int kind = 0; kind < 2; ++kind) {
        const Candidates& c = a.candidates[kind];
        if (c.last == nullptr) continue;
        for (int start = 0; start < a.lists; start += 32) {
            // Lane i knows list start + i.
            const int known = min(start + lane, a.lists - 1);
            int first = c.first ? c.first[known] : 0;
            const int last = start + lane < a.lists ? c.last[known] : 0;
            if (c.cpu_begin) first += max(min(c.cpu_begin[known] - first, c.room), 0);
            for (int i = 0; i < 32; ++i) {
                const int list = start + i, head = list % a.heads, end = __shfl_sync(kAll, last, i);
                for (int from = __shfl_sync(kAll, first, i); from < end; from += 32) {
                    if (turn++ % warps != self) continue;
                    const int column = from + lane;
                    u64 source = 0, target = 0;
                    if (column < end) {
                        const int page = c.pages[static_cast<long long>(list) * c.width + column];
                        const int frame = a.page_table[head * a.stride_th + page];
                        source = reinterpret_cast<u64>(a.host + page * a.stride_hn + head * a.stride_hh);
                        if (frame >= 0)
                            target = reinterpret_cast<u64>(a.frames + head * a.stride_fh + frame * a.stride_ff);
                    }
                    for (u32 admitted = __ballot_sync(kAll, target != 0); admitted; admitted &= admitted - 1) {
                        const int j = __ffs(admitted) - 1;
                        const u64 page = __shfl_sync(kAll, source, j), frame = __shfl_sync(kAll, target, j);
                        if (lane == 0) pipeline.take(page, frame);
                    }
                }
            }
        }
    }
    if (lane == 0) pipeline.finish();
}
