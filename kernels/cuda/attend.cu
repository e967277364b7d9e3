// attend: decode attention over lists of pages, fed by bulk copies and merged by the block that ends last.
//
// A page's K, [D, P], and V, [P, D], lie one after the other, so that one bulk copy brings a page into shared memory.
// Every warp has its own ring of pages and runs its own softmax over every WARPS-th page of the block's share of a
// list; nothing synchronises warps until the list is done. Scores are computed transposed, S = K q and O = V p, so that
// query heads, few, are the narrow side of the m16n8k16 products and a group of 8 wastes nothing. The order of tokens
// and dimensions within a product is free: it is chosen such that K and V are read in wide words and their halves
// paired by byte permutation, since neither lies in memory the way the tensor cores want it.
//
// Macros: BF16 (else fp16), DIM, PAGE (tokens), GROUP (query heads per KV head), WARPS, STAGES (pages in flight or in
// use per warp), LISTED (page lists looked up in the page table, else frames), FETCH (one more warp attends misses from
// host memory with a ring of MISS_STAGES; about FETCHERS of them do at once), CPU (the first blocks hand a part of them
// over to the CPU, whose results are merged; see hand_over.cuh for what that needs), ARGUMENTS_BYTES (what the launching
// side passes).

#include "bulk_copy.cuh"
#if CPU
#include "hand_over.cuh"
#else
#include "division.cuh"
#endif

namespace {

constexpr int kBlockBytes = 2 * 2 * DIM * PAGE;          // one page, K and V
constexpr int kValues = 2 * DIM * PAGE;                  // offset of V in it
constexpr int kHitSlots = WARPS * STAGES;
constexpr int kSlots = kHitSlots + (FETCH ? MISS_STAGES : 0);
constexpr int kWarps = WARPS + (FETCH ? 1 : 0);
constexpr int kHeadTiles = (GROUP + 7) / 8;              // products' columns: 8 query heads each
constexpr int kTokens = PAGE / 8;                        // tokens of a page per lane row, consecutive
constexpr int kTokenTiles = PAGE / 16;
constexpr int kLaneDims = DIM / 8;                       // dimensions of the output per lane row
constexpr int kVector = kLaneDims % 8 == 0 ? 8 : kLaneDims % 4 == 0 ? 4 : 2;  // of them consecutive
constexpr int kChunks = kLaneDims / kVector;
constexpr float kLog2E = 1.4426950408889634f;

struct Arguments {
    const unsigned short* q;       // [B, Hq, D]
    unsigned short* out;           // [B, Hq, D]; null: leave the splits to `merge`
    float* split_out;              // [B * H, splits, G, D]
    float* split_lse;              // [B * H, splits, G], base 2
    u32* arrived;                  // [B * H], 0 before and after
    const unsigned short* frames;  // one layer's, [H, F, 2, D * P]
    const unsigned short* host;    // one layer's, [N, H, 2, D * P]
    unsigned short* staged;        // [B * H, room, 2, D * P]: where fetched pages are kept; null: nowhere
    const int* hits;               // [B, H, S] frames; LISTED: [B, M] pages
    const int* misses;             // [B, H, S] pages
    const int* valid;              // [B, H, S] tokens
    const int* num_hits;           // [B, H]; LISTED: [B] tokens of each request
    const int* num_selected;       // [B, H]
    const int* page_table;         // LISTED: [H, N]
    const int* step;               // scalar
    int* missed_at;                // LISTED: scalar, becomes *step if a page has no frame
    long long stride_qb, stride_qh, stride_ob, stride_oh, stride_fh, stride_ff, stride_hn, stride_hh, stride_th,
        stride_list;
    float scale;                   // softmax scale times log2(e)
    int lists, splits, heads, width, room;
#if CPU
    const float* cpu_out;          // in memory that the CPU sees: [X, Hq, D]
    const float* cpu_lse;          // [X, Hq], natural logarithm
    int* cuts;                     // [B * H], the first column that the CPU attends
    HandOver handing;
#endif
};
static_assert(sizeof(Arguments) == ARGUMENTS_BYTES, "attend.py declares other arguments");

constexpr int kOutBytes = 4 * GROUP * DIM;
constexpr int kRingBytes = kSlots * kBlockBytes;
constexpr int kLseBytes = 4096;
constexpr int kMergedAtOnce = (kRingBytes - kLseBytes) / kOutBytes;
constexpr int kQuads = (GROUP * DIM / 4 + 32 * kWarps - 1) / (32 * kWarps);  // of outputs per thread

// A warp's softmax. Lane (row, column) = (lane / 4, lane % 4) holds query heads 2 column and 2 column + 1 of every head
// tile, and of their output the dimensions (8 chunk + row) kVector + i.
struct Softmax {
    float top[kHeadTiles][2];
    float total[kHeadTiles][2];  // over the tokens of this lane row only
    float mixed[kLaneDims / 2][kHeadTiles][4];
};

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

__device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ u32 pack(float low, float high) {
    u32 pair;
#if BF16
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
    return pair;
}

__device__ __forceinline__ void multiply(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if BF16
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
#endif
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 transpose(u32 pair) {
    u32 result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
    return result;
}

__device__ __forceinline__ u32 lows(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ u32 highs(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// WORDS consecutive 32-bit words of shared memory in one access.
template <int WORDS>
__device__ __forceinline__ void load(u32 (&words)[WORDS], const unsigned char* from) {
    static_assert(WORDS == 1 || WORDS == 2 || WORDS == 4, "no such access");
    if constexpr (WORDS == 4) {
        const uint4 v = *reinterpret_cast<const uint4*>(from);
        words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
    } else if constexpr (WORDS == 2) {
        const uint2 v = *reinterpret_cast<const uint2*>(from);
        words[0] = v.x, words[1] = v.y;
    } else {
        words[0] = *reinterpret_cast<const u32*>(from);
    }
}

// Fold one page into the softmax. `query` holds lane (row, column)'s part of q as the products' right operand: for every
// 16 dimensions, those that are `column` modulo 4, of head `row`.
__device__ __forceinline__ void attend_page(const unsigned char* page, int tokens, float scale,
                                            const u32 (&query)[DIM / 16][kHeadTiles][2], Softmax& run) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;

    float scores[kTokenTiles][kHeadTiles][4] = {};
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k) {
        u32 keys[4][kTokens / 2];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            load(keys[i], page + ((16 * k + 4 * i + column) * PAGE + kTokens * row) * 2);
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
            const u32 a0 = lows(keys[0][t], keys[1][t]), a1 = highs(keys[0][t], keys[1][t]);
            const u32 a2 = lows(keys[2][t], keys[3][t]), a3 = highs(keys[2][t], keys[3][t]);
#pragma unroll
            for (int h = 0; h < kHeadTiles; ++h)
                multiply(scores[t][h], a0, a1, a2, a3, query[k][h][0], query[k][h][1]);
        }
    }

    u32 weights[kTokens][kHeadTiles];
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h) {
        float higher[2] = {run.top[h][0], run.top[h][1]};
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const bool live = kTokens * row + 2 * t + i / 2 < tokens;
                scores[t][h][i] = live ? scores[t][h][i] * scale : minus_infinity();
                higher[i % 2] = fmaxf(higher[i % 2], scores[t][h][i]);
            }
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int lanes = 4; lanes < 32; lanes *= 2)
                higher[c] = fmaxf(higher[c], __shfl_xor_sync(kAll, higher[c], lanes));
        if (__any_sync(kAll, higher[0] != run.top[h][0] || higher[1] != run.top[h][1])) {
            const float fade[2] = {power_of_2(run.top[h][0] - higher[0]), power_of_2(run.top[h][1] - higher[1])};
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                // A page has a token, so `higher` is finite: the first page fades nothing by power_of_2(-inf) = 0.
                run.top[h][c] = higher[c];
                run.total[h][c] *= fade[c];
            }
#pragma unroll
            for (int m = 0; m < kLaneDims / 2; ++m)
#pragma unroll
                for (int i = 0; i < 4; ++i) run.mixed[m][h][i] *= fade[i % 2];
        }
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t)
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const float left = power_of_2(scores[t][h][i] - higher[0]), right = power_of_2(scores[t][h][i + 1] - higher[1]);
                run.total[h][0] += left;
                run.total[h][1] += right;
                weights[2 * t + i / 2][h] = transpose(pack(left, right));
            }
    }

    // weights[r] are now those of tokens 2 column kTokens + r and, kTokens further on, of head `row`.
    const unsigned char* values = page + kValues + (2 * column * kTokens * DIM + kVector * row) * 2;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk)
#pragma unroll
        for (int t = 0; t < kTokenTiles; ++t) {
            u32 near[2][kVector / 2], far[2][kVector / 2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                load(near[i], values + ((2 * t + i) * DIM + 8 * kVector * chunk) * 2);
                load(far[i], values + ((2 * t + i + kTokens) * DIM + 8 * kVector * chunk) * 2);
            }
#pragma unroll
            for (int m = 0; m < kVector / 2; ++m)
#pragma unroll
                for (int h = 0; h < kHeadTiles; ++h)
                    multiply(run.mixed[chunk * kVector / 2 + m][h], lows(near[0][m], far[0][m]),
                             highs(near[0][m], far[0][m]), lows(near[1][m], far[1][m]), highs(near[1][m], far[1][m]),
                             weights[2 * t][h], weights[2 * t + 1][h]);
        }
}

// Zeroes V of tokens that are not the request's: their weight is 0, but what lies there may not be a number.
__device__ __forceinline__ void blank_values(unsigned char* page, int tokens) {
    u32* const values = reinterpret_cast<u32*>(page + kValues);
    for (int i = tokens * DIM / 2 + threadIdx.x % 32; i < PAGE * DIM / 2; i += 32) values[i] = 0;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncwarp();
}

// Merge what the warps of the block found, and store it as a split's normalised output and base-2 LSE.
__device__ __forceinline__ void store_split(Softmax& run, unsigned char* scratch, float* out, float* lse) {
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
            const float share = tops[w * 8 * kHeadTiles + head] == minus_infinity()
                                    ? 0.f
                                    : power_of_2(tops[w * 8 * kHeadTiles + head] - top);
            total += share * totals[w * 8 * kHeadTiles + head];
            mixed += share * mixes[w * GROUP * DIM + at];
        }
        __stcg(out + at, total > 0 ? mixed / total : 0.f);
        if (at % DIM == 0) __stcg(lse + head, total > 0 ? top + __log2f(total) : minus_infinity());
    }
}

// Merge all splits of a list, and the CPU's part if there is one, into the output. Runs in the block that stored the last
// of them; the ring is free.
__device__ __forceinline__ void merge_splits(const float* outs, const float* lses, int splits, unsigned char* memory,
                                             u64* barrier, const float* cpu_out, const float* cpu_lse,
                                             unsigned short* out, long long stride_oh) {
    float* const lse = reinterpret_cast<float*>(memory);  // [parts][GROUP], the CPU's first
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
                const float share = power_of_2(lse[(start + s) * GROUP + at / DIM] - top[k]);
                const float4 part = *reinterpret_cast<const float4*>(parts + s * GROUP * DIM + at);
                total[k] += share;
                mixed[k][0] += share * part.x;
                mixed[k][1] += share * part.y;
                mixed[k][2] += share * part.z;
                mixed[k][3] += share * part.w;
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < kQuads; ++k) {
        const int at = (threadIdx.x + k * 32 * kWarps) * 4;
        if (at >= GROUP * DIM) continue;
        const float whole = total[k] > 0 ? 1 / total[k] : 0.f;
        *reinterpret_cast<uint2*>(out + at / DIM * stride_oh + at % DIM) =
            make_uint2(pack(mixed[k][0] * whole, mixed[k][1] * whole), pack(mixed[k][2] * whole, mixed[k][3] * whole));
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * kWarps) attend(const __grid_constant__ Arguments a) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ __align__(8) u64 barriers[kSlots + 1];  // of every slot, and of the merge
    __shared__ bool last;
#if CPU
    __shared__ int by_cpu;  // pages of this list
    const int handing = a.handing.blocks;
    if (static_cast<int>(blockIdx.x) < handing) {
        asm volatile("griddepcontrol.wait;" ::: "memory");
        const Lists lists{a.misses, a.valid, a.num_hits, a.num_selected, a.lists, a.heads, a.width};
        hand_over<32 * kWarps>(a.handing, lists, *a.step);
        return;
    }
#else
    const int handing = 0;
#endif
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = lane / 4, column = lane % 4;
    const int block = static_cast<int>(blockIdx.x) - handing, splits = a.splits, split = block % splits, pair = block / splits;
    const int request = pair / a.heads, head = pair % a.heads;
    const bool fetches = FETCH && warp == WARPS;

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
    // This may have been launched while the selection was still being made.
    asm volatile("griddepcontrol.wait;" ::: "memory");

    // Entry n of the warp's list is at first + n * stride of the request's. For hits neither depends on how long that is, so
    // the entries are on their way before their number is known.
#if LISTED
    const int length = a.num_hits[request];
    const int begin = 0;
    int count = (length + PAGE - 1) / PAGE;
#else
    const int begin = fetches ? a.num_hits[pair] : 0;
    int count = fetches ? a.num_selected[pair] - begin : a.num_hits[pair];
#endif
    int fetchers = 0;
#if FETCH
    // Lists of more misses are fetched by more blocks, so that all end together, but not by all blocks at once: what is
    // written to the host's memory waits behind what is being read there.
    if (fetches) {
#if CPU
        const Division division = divide(a.num_hits, a.num_selected, a.handing.costs,
                                         a.handing.paces + a.handing.layer, a.lists);
        const int handed = division.of(count), fetched = division.missed - division.total;
        count -= handed;
        if (lane == 0) by_cpu = handed;
        if (lane == 0 && split == 0) a.cuts[pair] = begin + count;
#else
        const int fetched = count_pages(a.num_hits, a.num_selected, a.lists).missed;
#endif
        if (count > 0) fetchers = min((count * FETCHERS + fetched - 1) / fetched, splits);
        if (split >= fetchers) count = 0;
    }
#endif
    const int first = fetches ? split : split + warp * splits;
    const int stride = fetches ? fetchers : WARPS * splits;
    const int stages = fetches ? MISS_STAGES : STAGES;
    const int slot0 = fetches ? kHitSlots : warp * STAGES;

    // Lane i knows entry n + i: where its page is, and its tokens.
    const auto look_up = [&](int n, u64& source, int& tokens) {
        const int at = first + (n + lane) * stride;
        source = 0, tokens = 0;
#if LISTED
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
            start_store(reinterpret_cast<u64>(a.staged + (static_cast<long long>(pair) * a.room + place) * (kBlockBytes / 2)),
                        shared_address(page), kBlockBytes);
        if (live < PAGE) {
            if (keep && lane == 0) wait_until_read();
            __syncwarp();
            blank_values(page, live);
        }
        attend_page(page, live, a.scale, query, run);
        if (keep && lane == 0) wait_until_read();
        __syncwarp();
        const int ahead = n + stages;
        if (ahead < pages) {
            if (ahead / 32 != next_known) {
                int unused;
                look_up(ahead / 32 * 32, next_source, unused);
                next_known = ahead / 32;
            }
            const u64 from = __shfl_sync(kAll, next_source, ahead % 32);
            if (lane == 0) start_copy(shared_address(page), from, kBlockBytes, barrier);
        }
        if (++slot == stages) slot = 0, phase ^= 1;
    }
    if (FETCH && fetches && lane == 0) wait_until_stored();
    __syncthreads();

    const long long list = static_cast<long long>(pair) * splits;
    store_split(run, memory, a.split_out + (list + split) * GROUP * DIM, a.split_lse + (list + split) * GROUP);
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
    Clock& clock = a.handing.clocks[a.handing.layer];
    if (threadIdx.x == 0) atomicMax(&clock.attended, nanoseconds());
    if (by_cpu > 0) {
        cpu_out = a.cpu_out + static_cast<long long>(pair) * GROUP * DIM;
        cpu_lse = a.cpu_lse + pair * GROUP;
        if (threadIdx.x == 0) wait_until_heard(clock, ring_number(*a.step, a.handing.layer, a.handing.layers));
        __syncthreads();
    }
    if (threadIdx.x == 0) atomicMax(&clock.answered, nanoseconds());
#endif
    merge_splits(a.split_out + list * GROUP * DIM, a.split_lse + list * GROUP, splits, memory, barriers + kSlots,
                 cpu_out, cpu_lse, a.out + request * a.stride_ob + head * GROUP * a.stride_oh, a.stride_oh);
#if CPU
    if (threadIdx.x == 0) atomicMax(&clock.ended, nanoseconds());
#endif
}
