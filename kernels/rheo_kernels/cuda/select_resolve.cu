// select_resolve: choose one request's pages for one KV head and look them up in the page table; hits before misses.
//
// One block per request and KV head. The page list is dealt to threads four consecutive pages at a time; the scores
// stay in registers as keys, unsigned integers of the same order. Histograms over the range of keys that still holds
// the threshold shrink it until few keys are left, which are ranked against each other. What may be selected by then is
// looked up while they are ranked. Hits and misses are counted over the block in list order and staged in shared
// memory, so that the lists are written in whole lines. How far down runners-up reach, the best pages that were not
// selected, is read off the same histograms. A bonus for pages that have a frame is part of their keys and of nothing else.
//
// Macros: THREADS (a power of two, at least 128), ITEMS (pages per thread, a multiple of 4 up to 32), PDL (the launch
// may overlap the kernel before it, which writes scores or budgets, and the kernel after it). Lists of up to THREADS * ITEMS
// pages, 32768 at most.

#include "launch_order.cuh"
#include "words.cuh"

namespace {

__device__ constexpr int log2_of(int power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }

constexpr int kWarps = THREADS / 32;
constexpr int kVectors = ITEMS / 4;
constexpr int kBins = 2 * THREADS;               // two a thread
constexpr int kStaged = 2 * THREADS;             // columns of the result in shared memory at a time
constexpr int kFew = 128;                        // keys that are ranked rather than counted
constexpr u32 kRunnersUp = 48;                   // runners-up, frames or not: about as many, where scores differ
constexpr bool kPagesInRegisters = ITEMS <= 8;   // registers hold pages and frames, not keys alone
constexpr int kTogether = 8;                     // otherwise: items looked up at a time
constexpr int kFavouredTogether = ITEMS > 16 ? 4 : kTogether;  // the same for a bonus; with 8, 32 items spill

// Keys of scores lie between those of -inf and +inf, keys of pages that need no score beyond them.
constexpr u32 kNever = 0, kLeast = 0x007fffffu, kGreatest = 0xff800000u, kAlways = 0xffffffffu;

struct Arguments {
    const u32* scores;       // [B, H, M], float32
    const int* pages;        // [B, M]
    const int* num_pages;    // [B]
    const int* seq_lens;     // [B], 32 or 64 bits, below 2^31
    const int* budget;       // [B, H]
    const int* page_table;   // [H, N]
    int* out_pages;          // [B, H, S], as the next four
    int* out_hits;
    int* out_misses;
    int* out_valid;
    int* out_indices;
    int* out_num_hits;       // [B, H]
    int* out_num_selected;   // [B, H]
    int* out_runners_up;     // [B, H, R]: runners-up without a frame, in any order; null: not listed
    int* out_num_runners_up; // [B, H]
    float* lse;              // [B, H, G, M], estimates: -inf for selected pages; null: not written
    signed char* accessed;   // [H, F]; null: not marked
    float* rates;            // [R, H], as the next two; null: not counted
    u64* hit_total;
    u64* selected_total;
    const int* slots;        // [B], 64 bits, below 2^31: the low words are read
    const int* step;         // number of the step
    int* stamped;            // [H, N], the step in which a page was selected last; null: not stamped
    const float* floors;     // [B], above 0: no bonus; null: none for anybody
    long long stride_sb, stride_sh, stride_pb, stride_bb, stride_bh, stride_th, stride_ah, stride_cr, stride_mh;
    int columns, width, runners_up, sink_pages, window_pages, page_size;
    int words_per_length;    // 2 where seq_lens are 64 bits wide
    int group;               // G, query heads that an estimate is for
    float bonus;             // of pages that have a frame, added to their scores
};

// The range of keys that holds the threshold: `inside` keys, of which the greatest `wanted` are selected. Runners-up have
// keys from `reach` on, or, while that is `kNever`, all those of the range that are left out.
struct Bracket {
    u32 low, high;
    u32 wanted, inside;
    u32 reach;
};

// Selected are keys beyond `key`, and keys equal to it up to position `last`.
struct Threshold {
    u32 key;
    int last;

    __device__ bool reached(u32 other, int position) const {
        return other > key || (other == key && position <= last);
    }
};

struct Found {
    u32 bin, above, inside;
};

// Where the last runner-up is: its bin, and keys down to the beginning and to the end of it.
struct Last {
    u32 bin, begin, end;
};

struct Shared {
    u32 histogram[kBins];  // from the greatest keys down
    u64 candidates[kFew];
    u64 boundary;
    u32 lowest[kWarps], highest[kWarps], totals[kWarps];
    u32 num_candidates, num_runners_up;
    Found found;
    Last last;
    int index[kStaged], page[kPagesInRegisters ? kStaged : 1], frame[kPagesInRegisters ? kStaged : 1];
};

__shared__ Shared shared;

// Position in the page list of a thread's item.
__device__ __forceinline__ int position_of(int item) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    return warp * (32 * ITEMS) + item / 4 * 128 + lane * 4 + item % 4;
}

// The thread's items of a row, 0 from `columns` on.
template <typename Word>
__device__ __forceinline__ void load_row(const Word* row, int columns, u32 (&items)[ITEMS]) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const int position = position_of(4 * v);
        const Word* from = row + position;
        if (position + 4 <= columns && reinterpret_cast<u64>(from) % 16 == 0) {
            const uint4 words = *reinterpret_cast<const uint4*>(from);
            items[4 * v] = words.x, items[4 * v + 1] = words.y;
            items[4 * v + 2] = words.z, items[4 * v + 3] = words.w;
        } else {
#pragma unroll
            for (int e = 0; e < 4; ++e)
                items[4 * v + e] = position + e < columns ? from[e] : 0;
        }
    }
}

// NaN counts as the infinity of its sign.
__device__ __forceinline__ u32 key_of(u32 score) {
    const u32 key = score ^ (static_cast<int>(score) < 0 ? 0xffffffffu : 0x80000000u);
    return min(max(key, kLeast), kGreatest);
}

// Sum over the first `warps` warps of what each has published.
__device__ __forceinline__ u32 sum_of(const u32* totals, int warps) {
    const int lane = threadIdx.x % 32;
    return __reduce_add_sync(kAll, lane < warps ? totals[lane] : 0);
}

__device__ __forceinline__ u32 inclusive_scan(u32 value) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        const u32 other = __shfl_up_sync(kAll, value, lanes);
        if (lane >= lanes) value += other;
    }
    return value;
}

// Least and greatest key of a score. Also empties the histogram.
__device__ __forceinline__ void find_range(const u32 (&keys)[ITEMS], Bracket& bracket) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    reinterpret_cast<uint2*>(shared.histogram)[threadIdx.x] = make_uint2(0, 0);
    if (threadIdx.x == 0) shared.num_candidates = 0;
    u32 low = kAlways, high = kNever;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        if (keys[i] != kNever) low = min(low, keys[i]);
        if (keys[i] != kAlways) high = max(high, keys[i]);
    }
    low = __reduce_min_sync(kAll, low);
    high = __reduce_max_sync(kAll, high);
    if (lane == 0) shared.lowest[warp] = low, shared.highest[warp] = high;
    __syncthreads();
    bracket.low = __reduce_min_sync(kAll, lane < kWarps ? shared.lowest[lane] : kAlways);
    bracket.high = __reduce_max_sync(kAll, lane < kWarps ? shared.highest[lane] : kNever);
}

// Of keys that are all equal the first are selected: replace them by keys that fall with their position.
__device__ __forceinline__ void break_ties(u32 (&keys)[ITEMS], int columns, Bracket& bracket) {
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const u32 tied = kAlways - 1 - position_of(i);
        keys[i] = keys[i] < bracket.low ? kNever : keys[i] > bracket.low ? kAlways : tied;
    }
    bracket.high = kAlways - 1;
    bracket.low = kAlways - columns;
    bracket.reach = kNever;
}

// Narrow the bracket to the one of `kBins` parts of it that holds the threshold.
__device__ __forceinline__ void narrow(const u32 (&keys)[ITEMS], Bracket& bracket) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 span = bracket.high - bracket.low;
    const int shift = max(0, 32 - __clz(span) - log2_of(kBins));
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const u32 depth = bracket.high - keys[i];
        if (depth <= span) atomicAdd(&shared.histogram[depth >> shift], 1u);
    }
    __syncthreads();

    uint2& own = reinterpret_cast<uint2*>(shared.histogram)[threadIdx.x];
    const uint2 bins = own;
    own = make_uint2(0, 0);
    const u32 sum = bins.x + bins.y;
    const u32 total = __reduce_add_sync(kAll, sum);
    if (lane == 0) shared.totals[warp] = total;
    __syncthreads();

    const u32 before = sum_of(shared.totals, warp), last = bracket.wanted + kRunnersUp;
    const auto among = [&](u32 key) { return before < key && key <= before + total; };
    if (among(bracket.wanted) || among(last)) {
        const u32 end = before + inclusive_scan(sum), begin = end - sum;
        if (begin < bracket.wanted && bracket.wanted <= end) {
            const bool second = begin + bins.x < bracket.wanted;
            shared.found.bin = 2 * threadIdx.x + second;
            shared.found.above = begin + (second ? bins.x : 0);
            shared.found.inside = second ? bins.y : bins.x;
        }
        if (begin < last && last <= end) {
            const bool second = begin + bins.x < last;
            shared.last.bin = 2 * threadIdx.x + second;
            shared.last.begin = second ? begin + bins.x : begin;
            shared.last.end = second ? end : begin + bins.x;
        }
    }
    __syncthreads();

    const Found found = shared.found;
    if (bracket.reach == kNever && last > bracket.inside) {
        bracket.reach = bracket.low;
    } else if (bracket.reach == kNever && shared.last.bin != found.bin) {
        // With that bin or without it, whichever comes nearer to their number, and rather too many than too few.
        const u32 begin = shared.last.bin << shift, end = begin + ((1u << shift) - 1);
        const u32 without = shared.last.begin - bracket.wanted, with = shared.last.end - bracket.wanted;
        const bool whole = without + with <= 2 * kRunnersUp || (without < kRunnersUp / 2 && with <= 4 * kRunnersUp);
        bracket.reach = bracket.high - (whole ? min(end, span) : begin - 1);
    }
    bracket.high -= found.bin << shift;
    bracket.low = bracket.high - min((1u << shift) - 1, bracket.high - bracket.low);
    bracket.wanted -= found.above;
    bracket.inside = found.inside;
}

// Rank the few keys of a bracket, of which some but not all are wanted.
__device__ __forceinline__ Threshold rank(const u32 (&keys)[ITEMS], const Bracket& bracket) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 span = bracket.high - bracket.low;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i)
        if (bracket.high - keys[i] <= span) {
            const u32 slot = atomicAdd(&shared.num_candidates, 1u);
            shared.candidates[slot] = static_cast<u64>(keys[i]) << 32 | ~static_cast<u32>(position_of(i));
        }
    __syncthreads();

    for (u32 i = warp; i < bracket.inside; i += kWarps) {
        const u64 candidate = shared.candidates[i];
        u32 better = 0;
        for (u32 other = lane; other < bracket.inside; other += 32) better += shared.candidates[other] > candidate;
        better = __reduce_add_sync(kAll, better);
        if (lane == 0 && better + 1 == bracket.wanted) shared.boundary = candidate;
    }
    __syncthreads();
    const u64 boundary = shared.boundary;
    return {static_cast<u32>(boundary >> 32), static_cast<int>(~static_cast<u32>(boundary))};
}

// Which of some items have a frame.
template <int Together>
__device__ __forceinline__ u32 look_up(const int* list, const int* table, u32 items) {
    u32 resident = 0;
#pragma unroll 1
    for (int first = 0; first < ITEMS; first += Together) {
        int found[Together];
#pragma unroll
        for (int i = 0; i < Together; ++i)
            if (items >> (first + i) & 1) found[i] = list[position_of(first + i)];
#pragma unroll
        for (int i = 0; i < Together; ++i)
            if (items >> (first + i) & 1) resident |= (table[found[i]] >= 0 ? 1u : 0u) << (first + i);
    }
    return resident;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS, 1) select_resolve(const Arguments a) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long request = blockIdx.x, head = blockIdx.y;
    const long long pair = request * gridDim.y + head;
    const int* list = a.pages + request * a.stride_pb;
    const int* table = a.page_table + head * a.stride_th;

    // Scores and budgets may come from the kernel before this one; the rest has been there since the step began.
    u32 pages[ITEMS];
    if constexpr (kPagesInRegisters) load_row(list, a.columns, pages);
    const int count = max(0, min(a.num_pages[request], a.columns));
    const int length = a.seq_lens[request * a.words_per_length];
    const int now = a.stamped == nullptr ? 0 : *a.step;
    const float bonus = a.floors == nullptr || a.floors[request] > 0.0f ? 0.0f : a.bonus;
    if (threadIdx.x == 0) shared.num_runners_up = 0;
    release_next_kernel();
    u32 favoured = 0;  // one bit per item
    if (bonus > 0.0f) {
#pragma unroll
        for (int i = ITEMS - 1; i >= 0; --i) favoured = 2 * favoured + (position_of(i) < count);
        favoured = look_up<kFavouredTogether>(list, table, favoured);
    }
    wait_for_last_kernel();
    u32 keys[ITEMS];
    load_row(a.scores + request * a.stride_sb + head * a.stride_sh, a.columns, keys);
    const int budget = a.budget[request * a.stride_bb + head * a.stride_bh];
    const int row = a.rates == nullptr ? 0 : a.slots[2 * request];

    // Of more forced pages than columns the first are kept.
    const int num_forced = min(a.sink_pages + a.window_pages, count);
    const int present = count - num_forced;
    const int wanted = min(min(budget, a.width) - num_forced, present);
    const int sinks = min(min(a.sink_pages, a.width), count);
    const int window = count - a.window_pages, window_end = min(count, present + a.width);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
        const int position = position_of(i);
        const bool sink = position < sinks, tail = position >= window && position < window_end;
        const bool scored = position >= a.sink_pages && position < window;
        u32 score = keys[i];
        const float number = __uint_as_float(score);
        if ((favoured >> i & 1) && number == number) score = __float_as_uint(number + bonus);  // NaN stays as it is
        keys[i] = sink || tail ? kAlways : scored ? key_of(score) : kNever;
    }

    Bracket bracket = {wanted > 0 ? kNever + 1 : kAlways, kAlways, static_cast<u32>(wanted), static_cast<u32>(present),
                       wanted > 0 && wanted < present ? kNever : kAlways};
    if (wanted > 0 && wanted < present) {
        find_range(keys, bracket);
        while (bracket.wanted < bracket.inside && bracket.inside > kFew) {
            if (bracket.low == bracket.high) break_ties(keys, a.columns, bracket);
            narrow(keys, bracket);
        }
    }
    const u32 least = min(bracket.low, bracket.reach == kNever ? kAlways : bracket.reach);  // of those looked up
    u32 frames[ITEMS];
    if constexpr (kPagesInRegisters) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i)
            if (keys[i] >= least) frames[i] = table[pages[i]];
    }
    Threshold threshold = {bracket.low, 0x7fffffff};
    if (wanted > 0 && bracket.wanted < bracket.inside) threshold = rank(keys, bracket);

    u32 selected = 0, resident = 0;  // one bit per item
#pragma unroll
    for (int i = ITEMS - 1; i >= 0; --i) selected = 2 * selected + threshold.reached(keys[i], position_of(i));
    if constexpr (kPagesInRegisters) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i)
            if ((selected >> i & 1) && static_cast<int>(frames[i]) >= 0) resident |= 1u << i;
    } else {
        resident = look_up<kTogether>(list, table, selected);
    }

    if (a.out_runners_up != nullptr && bracket.reach != kAlways) {
        u32 without = 0;
#pragma unroll
        for (int i = ITEMS - 1; i >= 0; --i) without = 2 * without + (keys[i] >= least);
        without &= ~selected;
        int* const out = a.out_runners_up + pair * a.runners_up;
        const auto put = [&](int page) {
            const int slot = static_cast<int>(atomicAdd(&shared.num_runners_up, 1u));
            if (slot < a.runners_up) out[slot] = page;
        };
        if constexpr (kPagesInRegisters) {
#pragma unroll
            for (int i = 0; i < ITEMS; ++i)
                if ((without >> i & 1) && static_cast<int>(frames[i]) < 0) put(pages[i]);
        } else {
            for (without &= ~look_up<kTogether>(list, table, without); without != 0; without &= without - 1)
                put(list[position_of(__ffs(without) - 1)]);
        }
    }

    // Hits in the low half, misses in the high half: how many come before each vector of items in this warp.
    u32 places[kVectors];
    u32 total = 0;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
        const u32 vector = selected >> 4 * v & 15, hits = resident >> 4 * v & vector;
        const u32 own = __popc(hits) | __popc(vector ^ hits) << 16;
        const u32 end = inclusive_scan(own);
        places[v] = total + end - own;
        total += __shfl_sync(kAll, end, 31);
    }
    if (lane == 0) shared.totals[warp] = total;
    __syncthreads();
    const u32 before = sum_of(shared.totals, warp), all = sum_of(shared.totals, kWarps);
    const int num_hits = all & 0xffff, num_selected = num_hits + (all >> 16);

    if (threadIdx.x == 0) {
        a.out_num_hits[pair] = num_hits;
        a.out_num_selected[pair] = num_selected;
        if (a.out_runners_up != nullptr)
            a.out_num_runners_up[pair] = min(static_cast<int>(shared.num_runners_up), a.runners_up);
        if (a.rates != nullptr) {
            const long long counter = row * a.stride_cr + head;
            atomicAdd(a.rates + counter, static_cast<float>(num_hits) / static_cast<float>(max(num_selected, 1)));
            atomicAdd(a.hit_total + counter, static_cast<u64>(num_hits));
            atomicAdd(a.selected_total + counter, static_cast<u64>(num_selected));
        }
    }

    for (int start = 0; start < a.width; start += kStaged) {
        if (start > 0) __syncthreads();
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            const u32 place = before + places[v];
            int hit_slot = static_cast<int>(place & 0xffff) - start;
            int miss_slot = num_hits + static_cast<int>(place >> 16) - start;
            if constexpr (kPagesInRegisters) {
#pragma unroll
                for (int i = 4 * v; i < 4 * v + 4; ++i)
                    if (selected >> i & 1) {
                        const int slot = resident >> i & 1 ? hit_slot++ : miss_slot++;
                        if (slot < 0 || slot >= kStaged) continue;
                        shared.index[slot] = position_of(i);
                        shared.page[slot] = pages[i];
                        shared.frame[slot] = frames[i];
                    }
            } else {
                for (u32 left = selected >> 4 * v & 15; left != 0; left &= left - 1) {
                    const int i = 4 * v + __ffs(left) - 1;
                    const int slot = resident >> i & 1 ? hit_slot++ : miss_slot++;
                    if (slot >= 0 && slot < kStaged) shared.index[slot] = position_of(i);
                }
            }
        }
        __syncthreads();
        for (int slot = threadIdx.x; slot < kStaged && start + slot < a.width; slot += THREADS) {
            const long long column = pair * a.width + start + slot;
            int index = -1, page = -1, frame = -1, valid = 0;
            if (start + slot < num_selected) {
                index = shared.index[slot];
                page = kPagesInRegisters ? shared.page[slot] : list[index];
                frame = max(kPagesInRegisters ? shared.frame[slot] : table[page], -1);
                valid = max(0, min(length - index * a.page_size, a.page_size));
            }
            a.out_pages[column] = page;
            a.out_hits[column] = frame;
            a.out_misses[column] = frame < 0 ? page : -1;
            a.out_valid[column] = valid;
            a.out_indices[column] = index;
            if (frame >= 0 && a.accessed != nullptr) a.accessed[head * a.stride_ah + frame] = 1;
            if (index >= 0 && a.stamped != nullptr) a.stamped[head * a.stride_mh + page] = now;
            if (index >= 0 && a.lse != nullptr)
                for (int g = 0; g < a.group; ++g)
                    a.lse[(pair * a.group + g) * a.columns + index] = __uint_as_float(0xff800000u);
        }
    }
}
