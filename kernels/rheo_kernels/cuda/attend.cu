// attend: decode attention over lists of pages, fed by bulk copies and merged by the block that ends last.
//
// A page's K, [D, P], and V, [P, D], lie one after the other, so that one bulk copy brings a page into shared memory.
// Every warp has its own pipeline of pages and runs its own softmax over every WARPS-th page of the block's part of a
// list; nothing synchronises warps until the list is done.
//
// Macros: those of page_softmax.cuh; BLOCKS (of a multiprocessor); WARPS (that attend pages from frames); STAGES (pages in flight or in use per warp);
// DENSE (attend whole page lists, looked up in the page table, instead of a selection); FETCH (one more warp attends misses
// from host memory, with MISS_STAGES pages in flight; about FETCHERS of them do at once); CPU (the first blocks offload a
// part of the misses to the CPU, whose output is merged; the macros of offload.cuh); TAIL_WARPS (more warps that attend the
// pages left out from their summaries, or 0; the macros of tail_softmax.cuh); ARGUMENTS_BYTES (what the launching side
// passes).

#include "bulk_copy.cuh"
#include "page_softmax.cuh"
#include "split_merge.cuh"
#if TAIL_WARPS
#include "tail_softmax.cuh"
#endif
#if CPU
#include "offload.cuh"
#else
#include "miss_partition.cuh"
#endif

namespace {

struct Arguments {
    const unsigned short* q;       // [B, Hq, D]
    unsigned short* out;           // [B, Hq, D]; null: leave the splits to `merge`
    float* split_out;              // [B * H, splits, G, D]
    float* split_lse;              // [B * H, splits, G], base 2
    u32* arrived;                  // [B * H], 0 before and after
    const Stored* frames;          // one layer's, [H, F, 2, D * P]
    const Stored* host;            // one layer's, [N, H, 2, D * P]
    Stored* staged;                // [B * H, room, 2, D * P]: where fetched pages are kept; null: nowhere
    const int* hits;               // [B, H, S] frames; DENSE: [B, M] pages
    const int* misses;             // [B, H, S] pages
    const int* valid;              // [B, H, S] tokens
    const int* num_hits;           // [B, H]; DENSE: [B] tokens of each request
    const int* num_selected;       // [B, H]
    const int* page_table;         // DENSE: [H, N]
    const int* step;               // scalar
    int* missed_at;                // DENSE: scalar, becomes *step if a page has no frame
    long long stride_qb, stride_qh, stride_ob, stride_oh, stride_fh, stride_ff, stride_hn, stride_hh, stride_th,
        stride_list;
    float scale;                   // softmax scale times log2(e)
    int lists, splits, heads, width, room;
    float factor;                  // EIGHT_BITS: what the output is multiplied by, the scale of V
#if CPU
    const float* cpu_out;          // in memory that the CPU sees: [X, Hq, D]
    const float* cpu_lse;          // [X, Hq], natural logarithm
    int* cpu_begin;                // [B * H], the first column that the CPU attends
    Offload offload;
#endif
#if TAIL_WARPS
    Tail tail;
#endif
};
static_assert(sizeof(Arguments) == ARGUMENTS_BYTES, "attend.py declares other arguments");

}  // namespace

#if TAIL_WARPS || EIGHT_BITS
#define BOUNDS __launch_bounds__(32 * kWarps, BLOCKS)  // more registers than are otherwise given to so many warps
#else
#define BOUNDS __launch_bounds__(32 * kWarps)
#endif

extern "C" __global__ void BOUNDS attend(const __grid_constant__ Arguments a) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) u64 barriers[kSlots + 1];  // of every slot, and of the merge
    __shared__ bool last;
#if CPU
    __shared__ int cpu_pages;  // of this list
    const int offload_blocks = a.offload.blocks;
    if (static_cast<int>(blockIdx.x) < offload_blocks) {
        asm volatile("griddepcontrol.wait;" ::: "memory");
        const Lists lists{a.misses, a.valid, a.num_hits, a.num_selected, a.lists, a.heads, a.width};
        offload<32 * kWarps>(a.offload, lists, *a.step);
        return;
    }
#else
    const int offload_blocks = 0;
#endif
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;
    const int block = static_cast<int>(blockIdx.x) - offload_blocks;
    const int splits = a.splits, split = block % splits, pair = block / splits;
    const int request = pair / a.heads, head = pair % a.heads;
    const bool fetches = FETCH && warp == WARPS, tails = TAIL_WARPS && warp >= kPageWarps;

    if (threadIdx.x <= kSlots) make_barrier(barriers + threadIdx.x);
    publish_barriers();
    __syncthreads();

    u32 query[DIM / 16][kHeadTiles][2];
    {
        const unsigned short* const q = a.q + request * a.stride_qb + head * GROUP * a.stride_qh;
#pragma unroll
        for (int k = 0; k < DIM / 16; ++k)
#pragma unroll
            for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int member = 8 * h + row, dim = 16 * k + 8 * i + column;
                    const unsigned short* const at = q + member * a.stride_qh + dim;
                    query[k][h][i] = member < GROUP ? at[0] | (static_cast<u32>(at[4]) << 16) : 0u;
                }
    }
#if TAIL_WARPS
    const int listed = a.tail.num_pages ? min(a.tail.num_pages[request], a.tail.width) : a.tail.width;
#endif
    // This may have been launched while the selection was still being made.
    asm volatile("griddepcontrol.wait;" ::: "memory");

    // Entry n of the warp's list is at first + n * stride of the request's. For hits neither depends on how long that is, so
    // the entries are on their way before their number is known.
#if DENSE
    const int length = a.num_hits[request];
    const int begin = 0;
    int count = (length + PAGE - 1) / PAGE;
#else
    const int begin = fetches ? a.num_hits[pair] : 0;
    int count = fetches ? a.num_selected[pair] - begin : tails ? 0 : a.num_hits[pair];
#endif
    int fetchers = 0;
#if FETCH
    // Lists with more misses are fetched by more blocks, so that all end together, but not by all blocks at once: writes to
    // host memory wait for the reads in flight.
    if (fetches) {
#if CPU
        const MissPartition partition = partition_misses(a.num_hits, a.num_selected, a.offload.costs,
                                                         a.offload.cost_scales + a.offload.layer, a.lists);
        const int offloaded = partition.cpu_part(count), fetched = partition.missed - partition.cpu_pages;
        count -= offloaded;
        if (lane == 0) cpu_pages = offloaded;
        if (lane == 0 && split == 0) a.cpu_begin[pair] = begin + count;
#else
        const int fetched = count_pages(a.num_hits, a.num_selected, a.lists).missed;
#endif
        if (count > 0) fetchers = min((count * FETCHERS + fetched - 1) / fetched, splits);
        if (split >= fetchers) count = 0;
    }
#endif
    const int first = fetches ? split : tails ? a.width : split + warp * splits;
    const int stride = fetches ? fetchers : WARPS * splits;
    const int stages = fetches ? MISS_STAGES : STAGES;
    const int slot0 = fetches ? kHitSlots : warp * STAGES;

    // Lane i knows entry n + i: where its page is, and its tokens.
    const auto look_up = [&](int n, u64& source, int& tokens) {
        const int at = first + (n + lane) * stride;
        source = 0, tokens = 0;
#if DENSE
        if (at >= a.width) return;
        const int page = a.hits[static_cast<long long>(request) * a.stride_list + at];
        if (at >= count) return;
        const int frame = a.page_table[head * a.stride_th + page];
        tokens = min(length - at * PAGE, PAGE);
        if (frame < 0 && a.missed_at) *a.missed_at = *a.step;
        source = reinterpret_cast<u64>(frame < 0 ? a.host + page * a.stride_hn + head * a.stride_hh
                                                 : a.frames + head * a.stride_fh + frame * a.stride_ff);
#else
        if (begin + at >= a.width) return;
        const long long entry = pair * a.stride_list + begin + at;
        const int block = fetches ? a.misses[entry] : a.hits[entry], listed = a.valid[entry];
        if (at >= count) return;
        tokens = listed;
        source = reinterpret_cast<u64>(fetches ? a.host + block * a.stride_hn + head * a.stride_hh
                                               : a.frames + head * a.stride_fh + block * a.stride_ff);
#endif
    };
    u64 source;
    int tokens;
    look_up(0, source, tokens);
    const int pages = first < count ? (count - first + stride - 1) / stride : 0;
    for (int s = 0; s < stages && s < pages; ++s) {
        const u64 from = __shfl_sync(kAll, source, s);
        if (lane == 0)
            start_copy(shared_address(memory + (slot0 + s) * kBlockBytes), from, kBlockBytes,
                       shared_address(barriers + slot0 + s));
    }

    Softmax run;
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
        for (int c = 0; c < 2; ++c) run.top[h][c] = minus_infinity(), run.total[h][c] = 0;
#pragma unroll
    for (int m = 0; m < kLaneDims / 2; ++m)
#pragma unroll
        for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
            for (int i = 0; i < 4; ++i) run.mixed[m][h][i] = 0;

    u64 next_source = source;
    int known = 0;       // batch of 32 whose tokens are in `tokens`
    int next_known = 0;  // and whose sources are in `next_source`
#if TAIL_WARPS
    if (tails) {
        const TailList list{a.tail.lse + static_cast<long long>(pair) * GROUP * a.tail.width,
                            a.tail.values + head * a.tail.stride_h,
                            a.tail.scales + head * a.tail.stride_h,
                            a.tail.pages + request * a.tail.stride_b,
                            listed,
                            a.tail.width,
                            a.tail.page_bytes};
        attend_tail(list, split + (warp - kPageWarps) * splits, TAIL_WARPS * splits, run);
    } else
#endif
    for (int n = 0, slot = 0, phase = 0; n < pages; ++n) {
        if (n / 32 != known) {
            u64 unused;
            look_up(n / 32 * 32, unused, tokens);
            known = n / 32;
        }
        const int live = __shfl_sync(kAll, tokens, n % 32);
        unsigned char* const page = memory + (slot0 + slot) * kBlockBytes;
        const u32 barrier = shared_address(barriers + slot0 + slot);
        wait_for(barrier, phase);
        const int place = first + n * stride;
        const bool keep = FETCH && fetches && a.staged && place < a.room;
        if (keep && lane == 0)
            start_store(reinterpret_cast<u64>(a.staged + (static_cast<long long>(pair) * a.room + place) * (kBlockBytes / kNumberBytes)),
                        shared_address(page), kBlockBytes);
        if (live < PAGE) {
            if (keep && lane == 0) wait_until_read();
            __syncwarp();
            blank_values(page, live);
        }
        attend_page(page, live, a.scale, query, run);
        if (keep && lane == 0) wait_until_read();
        __syncwarp();
        const int next = n + stages;
        if (next < pages) {
            if (next / 32 != next_known) {
                int unused;
                look_up(next / 32 * 32, next_source, unused);
                next_known = next / 32;
            }
            const u64 from = __shfl_sync(kAll, next_source, next % 32);
            if (lane == 0) start_copy(shared_address(page), from, kBlockBytes, barrier);
        }
        if (++slot == stages) slot = 0, phase ^= 1;
    }
    if (FETCH && fetches && lane == 0) wait_until_stored();
    __syncthreads();

    const long long list = static_cast<long long>(pair) * splits;
    float *tail_lses = nullptr, *tail_lse = nullptr;
#if TAIL_WARPS
    if (a.tail.split_lse) tail_lses = a.tail.split_lse + list * GROUP, tail_lse = tail_lses + split * GROUP;
#endif
    store_split(run, memory, a.split_out + (list + split) * GROUP * DIM, a.split_lse + (list + split) * GROUP, tail_lse);
    if (!a.out) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(a.arrived + pair, 1u) == static_cast<u32>(splits) - 1;
        if (last) a.arrived[pair] = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    const float *cpu_out = nullptr, *cpu_lse = nullptr;
#if CPU
    Timestamps& timings = a.offload.timings[a.offload.layer];
    if (threadIdx.x == 0) atomicMax(&timings.gpu_done, nanoseconds());
    if (cpu_pages > 0) {
        cpu_out = a.cpu_out + static_cast<long long>(pair) * GROUP * DIM;
        cpu_lse = a.cpu_lse + pair * GROUP;
        if (threadIdx.x == 0)
            wait_until_acknowledged(timings, sequence_number(*a.step, a.offload.layer, a.offload.layers));
        __syncthreads();
    }
    if (threadIdx.x == 0) atomicMax(&timings.cpu_seen, nanoseconds());
#endif
#if TAIL_WARPS
    const int slot = a.tail.coverage ? a.tail.slots[2 * request] : 0;
#endif
    const float share =
        merge_splits(a.split_out + list * GROUP * DIM, a.split_lse + list * GROUP, splits, memory, barriers + kSlots, cpu_out,
                     cpu_lse, a.out + request * a.stride_ob + head * GROUP * a.stride_oh, a.stride_oh, tail_lses,
                     EIGHT_BITS ? a.factor : 1.f);
#if TAIL_WARPS
    if (a.tail.coverage && threadIdx.x == 0) atomicAdd(a.tail.coverage + slot * a.tail.stride_c + head, 1 - share);
#endif
#if CPU
    if (threadIdx.x == 0) atomicMax(&timings.merged, nanoseconds());
#endif
}
