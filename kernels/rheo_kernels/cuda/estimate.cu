// estimate: the attention that each page draws, as a log-sum-exp for every query head, from its summary alone.
//
// A warp takes eight consecutive pages of one request and KV head at a time. Logits are computed as S = K q on tensor
// cores, m16n8k16 in float16: rows of summaries are the rows, query heads, few, the columns, which stay in registers. The
// order of dimensions within a product is free: it is chosen such that a word of the summary, as it is read, holds what
// one lane needs for two products. Codes become float16 by inserting them into the mantissa of a constant. Noise is one
// more product, in tf32, of the groups' squared steps with the energy of each head's query in them. All reads of a unit are on
// their way before the first of them is needed.
//
// Reads a page's summary up to its mean V once for all query heads of the group; bound by HBM, and by latency where
// pages are few.
//
// With PAIRS, warps take the partner's queries along in the units that both requests of a pair list, and each request's warps
// take half of these: summaries are read and decoded once for both. The two fill the columns of one product.
//
// Macros: BF16 (queries; else fp16), DIM (64, 128 or 256), PAGE (tokens), ROWS (of a page: 2, 4, 8 or 16), GROUP (query heads
// per KV head, up to 16), PAIRS (1 where requests come in pairs; groups of up to 4), CENTRE_BITS (8 or 4), CENTRE, SCALES, WIDTH (offsets and bytes of a summary), PAGES_PER_BLOCK (8),
// WARPS (of a block), BLOCKS (of a multiprocessor), PDL (see launch_order.cuh).

#include "exponentials.cuh"
#include "halves.cuh"
#include "launch_order.cuh"
#include "words.cuh"

namespace {

constexpr int kUnit = PAGES_PER_BLOCK;         // pages at a time
constexpr int kWords = DIM / 32;               // of a row, in one lane
constexpr int kProducts = DIM / 16;            // to make a logit
constexpr int kQueries = GROUP * (1 + PAIRS);  // of a request and KV head, and those of its partner
constexpr int kHeadTiles = (kQueries + 7) / 8; // eight query heads each
constexpr int kRowTokens = PAGE / ROWS;
constexpr float kMiddle = -7.5f;               // what a code of 0 stands for
constexpr float kRowWeight = kRowTokens == 2 ? 1 : kRowTokens == 4 ? 2 : 3;  // its logarithm
constexpr int kTogether = ROWS < 8 ? ROWS : 8; // rows of a page that are interleaved
constexpr int kTiles = kUnit * ROWS / 8;       // of eight rows, in a unit; two make a product
constexpr int kPageTiles = ROWS / kTogether;   // of a page
constexpr int kTilePages = 8 / kTogether;      // pages of a tile
constexpr int kItems = kTiles / kPageTiles;    // pages, or tiles of several: what lanes reduce to one each
constexpr int kWordsInFlight = 32;
constexpr int kTilesInFlight = kTiles * kWords > kWordsInFlight ? kWordsInFlight / kWords : kTiles;
static_assert(kUnit == 8 && (DIM == 64 || DIM == 128 || DIM == 256) && kQueries <= (PAIRS ? 8 : 16));
static_assert(ROWS == 2 || ROWS == 4 || ROWS == 8 || ROWS == 16);

struct Arguments {
    const unsigned char* q;  // [B, Hq, D], 16-bit floating
    const unsigned char* summaries;  // [H, N, W]
    const int* pages;        // [B, M]
    const int* seq_lens;     // [B], 32 or 64 bits, below 2^31
    float* lse;              // [B, Hq, M]
    float* block_lse;        // [B, Hq, units]
    const int* partner;      // [B], and
    const int* shared_units; // [B]: see PrefixPairs; with PAIRS
    long long stride_qb, stride_qh, stride_sh, stride_pb;  // of summaries in bytes, else in elements
    float scale;             // of logits to the base of 2
    float inverse_scale;
    float noise_scale;       // of a query's energy
    int heads, width;
    int words_per_length;    // 2 where seq_lens are 64 bits wide
};

// The page of a unit that lane (row, column) = (lane / 4, lane % 4) reduces, by its row; rows and tiles of pages that are
// smaller than a tile bring this order about.
__device__ __forceinline__ int page_of(int row) {
    if constexpr (ROWS == 2) return row << 2 & 4 | row >> 1;
    if constexpr (ROWS == 4) return row << 1 & 6 | row >> 2;
    return row;
}

// The inverse of `page_of`.
__device__ __forceinline__ int row_of(int page) {
    if constexpr (ROWS == 2) return page << 1 & 6 | page >> 2;
    if constexpr (ROWS == 4) return page << 2 & 4 | page >> 1;
    return page;
}

// Two float16 numbers a word. Scales are multiplied by 1 / kStepScale, so that products with kLowMagic, and of queries'
// sums, are finite; what the least scale, 2^-14, makes is still exact.
constexpr float kStepScale = 128;
constexpr u32 kLowMagic = 0x64006400u, kHighMagic = 0x54005400u, k1152 = 0x64806480u;  // 1024, 64: bits 0 and 4 of a mantissa are 1
constexpr u32 kStepFactor = 0x20002000u, kLowBias = 0xc800c800u, kHighBias = 0xb800b800u;  // 1 / kStepScale, times -1024, times -64
constexpr u32 kSixteenth = 0x2c002c00u, kMinus64 = 0xd400d400u, kMinusMiddle = 0xc780c780u;

// Products with eight query heads each: lane (row, column) has those of rows `row` and then `row + 8` with heads 2 column
// and 2 column + 1.
using Products = float[kHeadTiles][4];
// The query heads `row` of such eights, two parts each.
using Fragment = u32[kHeadTiles][2];

__device__ __forceinline__ void multiply(Products& products, const Fragment& queries, u32 low, u32 next_low, u32 high, u32 next_high) {
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(products[h][0]), "+f"(products[h][1]), "+f"(products[h][2]), "+f"(products[h][3])
            : "r"(low), "r"(next_low), "r"(high), "r"(next_high), "r"(queries[h][0]), "r"(queries[h][1]));
}

__device__ __forceinline__ void multiply_tf32(Products& products, const Fragment& queries, float low, float high) {
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(products[h][0]), "+f"(products[h][1]), "+f"(products[h][2]), "+f"(products[h][3])
            : "r"(__float_as_uint(low)), "r"(0u), "r"(__float_as_uint(high)), "r"(0u), "r"(queries[h][0]), "r"(queries[h][1]));
}

// A lane's part of the query heads of a group: in run `column` of the dimensions, word i of the summaries' rows has
// dimensions 4 j + 0 .. 3 and, in its high half, those DIM / 2 further on, j = column kWords + i. Of them product 2 i + s takes
// s and s + 2, first the low ones.
struct Queries {
    Fragment parts[kProducts];
};

// What a lane keeps of them for each unit once, in shared memory, since registers are full: of the scale groups 2 column and
// 2 column + 1, in two terms, what is multiplied with their squared steps, and with their steps, for a code of 0.
struct QuerySums {
    Fragment energy, energy_rest, offset;
};

__shared__ QuerySums query_sums[32 * WARPS];

__device__ __forceinline__ void load_numbers(float (&numbers)[4], const unsigned char* from) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    const u32 both[2] = {words.x, words.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#if BF16
        numbers[2 * i] = __uint_as_float(both[i] << 16);
        numbers[2 * i + 1] = __uint_as_float(both[i] & 0xffff0000u);
#else
        numbers[2 * i] = from_half(both[i]);
        numbers[2 * i + 1] = from_half(both[i] >> 16);
#endif
    }
}

// The query heads of a group, and behind them those of a partner, if there is one.
__device__ __forceinline__ void load_queries(Queries& queries, const unsigned char* q, const unsigned char* partner_q, long long stride,
                                             float noise_scale) {
    const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4;
    QuerySums& sums = query_sums[threadIdx.x];
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h) {
        const int head = row + 8 * h;
        const bool own = head < GROUP, present = own || head < kQueries && partner_q != nullptr;
        const unsigned char* const head_q = own ? q + 2 * head * stride : partner_q + 2 * (head - GROUP) * stride;
        float energy[2] = {}, total[2] = {};
#pragma unroll
        for (int i = 0; i < kWords; ++i) {
            float numbers[2][4] = {};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (present) load_numbers(numbers[half], head_q + 2 * (half * DIM / 2 + 4 * (column * kWords + i)));
#pragma unroll
                for (int d = 0; d < 4; ++d) {
                    energy[2 * i / kWords] += numbers[half][d] * numbers[half][d];
                    total[2 * i / kWords] += numbers[half][d];
                }
#pragma unroll
                for (int s = 0; s < 2; ++s)
                    queries.parts[2 * i + s][h][half] = pack_halves(numbers[half][s], numbers[half][s + 2]);
            }
        }
#pragma unroll
        for (int group = 0; group < 2; ++group) {
            split(sums.energy[h][group], sums.energy_rest[h][group], energy[group] * noise_scale);
            total[group] *= kMiddle / kStepScale;
        }
        const u32 first = sums.offset[h][0] = pack_halves(total[0], total[1]);
        sums.offset[h][1] = pack_halves(total[0] - from_half(first), total[1] - from_half(first >> 16));
    }
}

// Both halves of a word: the scale that byte `which` of a word of scales stands for.
__device__ __forceinline__ u32 scale_halves(u32 codes, int which) { return __byte_perm(codes, 0, which == 0 ? 0x0404 : 0x1414) >> 1; }

__device__ __forceinline__ float scale_number(u32 code) { return __uint_as_float((code << 20) + (112u << 23)); }

// The codes of bytes s and s + 2 of a word, in scales: `low` of their low halves.
__device__ __forceinline__ void decode(u32 word, int s, u32 step, u32 bias, u32& low, u32& high) {
    const u32 bytes = word >> 8 * s;
    low = fma_halves(subtract_halves(insert_bits(bytes, 0x000f000fu, kLowMagic), kLowMagic), step, bias);
    high = fma_halves(fma_halves(insert_bits(bytes, 0x00f000f0u, kLowMagic), kSixteenth, kMinus64), step, bias);
}

// What a lane reads of the page that it reduces.
struct Centre {
    u32 words[kWords * CENTRE_BITS / 4];
    u32 steps;  // codes of the scale groups 2 column and 2 column + 1
    u32 unit;   // of the centre's scale in this run
};

__device__ __forceinline__ void load_centre(Centre& centre, const unsigned char* summary) {
    const int column = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < kWords * CENTRE_BITS / 4; ++i)
        centre.words[i] = reinterpret_cast<const u32*>(summary + CENTRE)[4 * i + column];
    centre.steps = reinterpret_cast<const unsigned short*>(summary + SCALES)[column];
    centre.unit = (summary + SCALES + 8)[column / 2];
}

// Dot products with the centres plus what a code of 0 makes, divided by kStepScale, and noise.
__device__ __forceinline__ void multiply_centre(Products& products, Products& noise, const Queries& queries, const Centre& centre) {
    const u32 unit = multiply_halves(scale_halves(centre.unit, 0), kStepFactor);
#if CENTRE_BITS == 4
    const u32 bias = multiply_halves(unit, kMinusMiddle);
#endif
#pragma unroll
    for (int i = 0; i < kWords; ++i)
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            u32 low, high;
#if CENTRE_BITS == 4
            decode(centre.words[i], s, unit, bias, low, high);
#else
            const int bytes = s == 0 ? 0x4240 : 0x4341;
            low = __byte_perm(centre.words[2 * i] ^ 0x80808080u, kLowMagic >> 8, bytes);
            high = __byte_perm(centre.words[2 * i + 1] ^ 0x80808080u, kLowMagic >> 8, bytes);
            low = multiply_halves(subtract_halves(low, k1152), unit);
            high = multiply_halves(subtract_halves(high, k1152), unit);
#endif
            multiply(products, queries.parts[2 * i + s], low, 0, high, 0);
        }
    const float first = scale_number(centre.steps & 0xff), second = scale_number(centre.steps >> 8);
    const QuerySums& sums = query_sums[threadIdx.x];
    multiply_tf32(noise, sums.energy, first * first, second * second);
    multiply_tf32(noise, sums.energy_rest, first * first, second * second);
    const u32 steps = __byte_perm(centre.steps, 0, 0x1404) >> 1;
    multiply(products, sums.offset, steps, 0, steps, 0);
}

// A lane's words of a tile, whose first one is given.
__device__ __forceinline__ void load_tile(u32 (&words)[kWords], const u32* from) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = from[i * 4 * kTogether];
}

struct Steps {
    u32 step[2], low_bias[2], high_bias[2];

    __device__ __forceinline__ explicit Steps(u32 codes) {
#pragma unroll
        for (int group = 0; group < 2; ++group) {
            const u32 scale = scale_halves(codes, group);
            step[group] = multiply_halves(scale, kStepFactor);
            low_bias[group] = multiply_halves(scale, kLowBias);
            high_bias[group] = multiply_halves(scale, kHighBias);
        }
    }
    // The codes of bytes s and s + 2 of a word, 0 to 15, in steps: `low` of their low halves.
    __device__ __forceinline__ void decode(u32 word, int s, int group, u32& low, u32& high) const {
        const u32 bytes = word >> 8 * s;
        low = fma_halves(insert_bits(bytes, 0x000f000fu, kLowMagic), step[group], low_bias[group]);
        high = fma_halves(insert_bits(bytes, 0x00f000f0u, kHighMagic), step[group], high_bias[group]);
    }
};

// Dot products of two tiles' rows, divided by kStepScale, less what a code of 0 makes.
__device__ __forceinline__ void multiply_tiles(Products& products, const Queries& queries, const u32 (&words)[kWords],
                                               const u32 (&next_words)[kWords], const Steps& steps, const Steps& next_steps) {
#pragma unroll
    for (int i = 0; i < kWords; ++i)
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            u32 low, high, next_low, next_high;
            steps.decode(words[i], s, 2 * i / kWords, low, high);
            next_steps.decode(next_words[i], s, 2 * i / kWords, next_low, next_high);
            multiply(products, queries.parts[2 * i + s], low, next_low, high, next_high);
        }
}

// About the greatest ones of two heads' numbers, in lanes whose rows differ in the lowest BITS bits.
template <int BITS>
__device__ __forceinline__ u32 greatest(float first, float second) {
    u32 pair = pack_bfloat16(first, second);
#pragma unroll
    for (int bit = 0; bit < BITS; ++bit) pair = larger(pair, __shfl_xor_sync(kAll, pair, 4 << bit));
    return pair;
}

__device__ __forceinline__ float first_of(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float second_of(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Whether this lane's row is in the upper half of SIZE.
template <int SIZE>
__device__ __forceinline__ bool in_upper() { return threadIdx.x % 32 / 4 & SIZE / 2; }

// Of SIZE values the one of this lane's row, added up over lanes whose rows differ in as many bits as SIZE has places.
template <int SIZE>
__device__ __forceinline__ float scattered_sum(const float* values) {
    if constexpr (SIZE == 1) {
        return values[0];
    } else {
        float halves[SIZE / 2];
#pragma unroll
        for (int i = 0; i < SIZE / 2; ++i) {
            const float kept = in_upper<SIZE>() ? values[i + SIZE / 2] : values[i];
            const float sent = in_upper<SIZE>() ? values[i] : values[i + SIZE / 2];
            halves[i] = kept + __shfl_xor_sync(kAll, sent, 2 * SIZE);
        }
        return scattered_sum<SIZE / 2>(halves);
    }
}

// Of SIZE values the one of this lane's row.
template <int SIZE>
__device__ __forceinline__ u32 own(const u32* values) {
    if constexpr (SIZE == 1) {
        return values[0];
    } else {
        u32 halves[SIZE / 2];
#pragma unroll
        for (int i = 0; i < SIZE / 2; ++i) halves[i] = in_upper<SIZE>() ? values[i + SIZE / 2] : values[i];
        return own<SIZE / 2>(halves);
    }
}

__device__ constexpr int log2_of(int power) { return power == 1 ? 0 : 1 + log2_of(power / 2); }

// Logarithm of a sum of powers of 2 over `shift`, which is about the greatest. Where they are so large that the rounding of
// `shift` leaves float32's range, as good as `shift` is.
__device__ __forceinline__ float log_sum(float shift, float total) {
    return shift + logarithm(fminf(fmaxf(total, 0x1p-126f), 0x1p127f));
}

// Logarithms of the sums of 2 to the power of `scale` times logits, each lane's page's, of heads 2 column and 2 column + 1.
__device__ __forceinline__ void reduce(float (&result)[2], const float (&logits)[kTiles][2], float scale) {
    float totals[2][kItems];
    u32 tops[kItems];
#pragma unroll
    for (int item = 0; item < kItems; ++item) {
        const float (&first)[2] = logits[item * kPageTiles], (&last)[2] = logits[(item + 1) * kPageTiles - 1];
        tops[item] = kPageTiles == 1 ? greatest<log2_of(kItems)>(first[0], first[1])
                                     : greatest<log2_of(kItems)>(fmaxf(first[0], last[0]), fmaxf(first[1], last[1]));
        const float shifts[2] = {-scale * first_of(tops[item]), -scale * second_of(tops[item])};
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            totals[k][item] = power_of_2(first[k] * scale + shifts[k]);
            if constexpr (kPageTiles == 2) totals[k][item] += power_of_2(last[k] * scale + shifts[k]);
        }
    }
    const u32 top = own<kItems>(tops);
    result[0] = log_sum(scale * first_of(top), scattered_sum<kItems>(totals[0]));
    result[1] = log_sum(scale * second_of(top), scattered_sum<kItems>(totals[1]));
}

// The logits of rows that hold fewer tokens than others, where only `left` tokens are left from the unit's first page on.
__device__ __forceinline__ void weigh_rows(float (&logits)[kHeadTiles][kTiles][2], int left, float inverse_scale) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
        const int held = min(max(left - (8 * tile + static_cast<int>(threadIdx.x % 32 / 4)) * kRowTokens, 0), kRowTokens);
        const float weight = (logarithm(held) - kRowWeight) * inverse_scale;
#pragma unroll
        for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
            for (int k = 0; k < 2; ++k) logits[h][tile][k] += weight;
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS) estimate(const __grid_constant__ Arguments a) {
    const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4, warp = threadIdx.x / 32;
    const int pair = blockIdx.y, request = pair / a.heads, head = pair % a.heads;
    const int units = (a.width + kUnit - 1) / kUnit, step = gridDim.x * WARPS;
    const unsigned char* const summaries = a.summaries + head * a.stride_sh;
    // of a tile, from where a page is
    const unsigned char* const tiles = summaries + 16 * (row % kTogether) + 4 * column;
    const int* const pages = a.pages + request * a.stride_pb;
    const float scale = a.scale * kStepScale;
    int turn = blockIdx.x * WARPS + warp;
    release_next_kernel();
    wait_for_last_kernel();

    const int tokens = a.seq_lens[request * a.words_per_length];
    int partner = -1, shared = 0;  // what is taken along, in so many units
#if PAIRS
    partner = a.partner[request];
    shared = a.shared_units[request];
#endif
    const int listed = min((tokens + PAGE - 1) / PAGE, a.width);
    // On their way together with the list's length.
    const auto number = [&](int unit) {
        const int position = unit * kUnit + lane % kUnit;
        return position < a.width ? pages[position] : 0;
    };
    int next = number(turn);
    // Of the units that a pair lists, the request in front takes the first half, its partner the second.
    const int half = (shared + 1) / 2, jump_from = request < partner ? half : 0, jump = request < partner ? shared - half : half;
    const auto unit_of = [&](int turn) { return turn < jump_from ? turn : turn + jump; };
    int unit = unit_of(turn);
    if (unit != turn) next = number(unit);
    // Where results of heads 2 column and 2 column + 1 of each eight go.
    int lines[kHeadTiles][2];
#pragma unroll
    for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const int query = 8 * h + 2 * column + k;
            lines[h][k] = query < GROUP ? pair * GROUP + query : (partner * a.heads + head) * GROUP + query - GROUP;
        }
    Queries queries;
    bool queries_loaded = false;

    for (; unit < units; unit = unit_of(turn += step)) {
        const int first = unit * kUnit, left = tokens - first * PAGE, position = first + page_of(row);
        float values[kHeadTiles][2];
#pragma unroll
        for (int h = 0; h < kHeadTiles; ++h) values[h][0] = values[h][1] = minus_infinity();
        if (first < listed) {
            const int numbers = first + lane % kUnit < listed ? next : 0;
            const auto offset = [&](int page) { return static_cast<u64>(static_cast<u32>(__shfl_sync(kAll, numbers, page))) * WIDTH; };
            const auto page_of_tile = [&](int tile) { return tile / kPageTiles * kTilePages + row / kTogether; };
            Centre centre;
            u32 words[kTilesInFlight][kWords];
            const auto load_tiles = [&](int from) {
#pragma unroll
                for (int t = 0; t < kTilesInFlight; t += kPageTiles) {
                    const u32* const page = reinterpret_cast<const u32*>(tiles + offset(page_of_tile(from + t)));
#pragma unroll
                    for (int u = 0; u < kPageTiles; ++u) load_tile(words[t + u], page + u * DIM);
                }
            };
            load_centre(centre, summaries + offset(page_of(row)));
            load_tiles(0);
            next = number(unit_of(turn + step));
            __syncwarp();  // reads stay in front of this
            if (!queries_loaded) {  // while the pages are on their way
                const unsigned char* const q = a.q + 2 * head * GROUP * a.stride_qh;
                load_queries(queries, q + 2 * request * a.stride_qb, shared > 0 ? q + 2 * partner * a.stride_qb : nullptr,
                             a.stride_qh, a.noise_scale);
                queries_loaded = true;
            }
            Products middle = {}, noise = {};
            multiply_centre(middle, noise, queries, centre);
            float logits[kHeadTiles][kTiles][2];
#pragma unroll
            for (int tile = 0; tile < kTiles; tile += 2) {
                const int t = tile % kTilesInFlight;
                if (tile > 0 && t == 0) load_tiles(tile);
                const Steps steps(__shfl_sync(kAll, centre.steps, 4 * row_of(page_of_tile(tile)) + column));
                const Steps next_steps(__shfl_sync(kAll, centre.steps, 4 * row_of(page_of_tile(tile + 1)) + column));
                Products products = {};
                multiply_tiles(products, queries, words[t], words[t + 1], steps, next_steps);
#pragma unroll
                for (int h = 0; h < kHeadTiles; ++h)
#pragma unroll
                    for (int i = 0; i < 4; ++i) logits[h][tile + i / 2][i % 2] = products[h][i];
            }
            if (left < kUnit * PAGE) weigh_rows(logits, left, a.inverse_scale / kStepScale);
#pragma unroll
            for (int h = 0; h < kHeadTiles; ++h) {
                float rows[2];
                reduce(rows, logits[h], scale);
#pragma unroll
                for (int k = 0; k < 2; ++k)
                    if (position < listed) values[h][k] = rows[k] + kRowWeight + middle[h][k] * scale - noise[h][k];
            }
        }
#pragma unroll
        for (int h = 0; h < kHeadTiles; ++h) {
            const u32 tops = greatest<3>(values[h][0], values[h][1]);
            const float top[2] = {first_of(tops), second_of(tops)};
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const int query = 8 * h + 2 * column + k;
                const bool real = query < GROUP || PAIRS && query < kQueries && unit < shared;
                if (real && position < a.width) a.lse[static_cast<long long>(lines[h][k]) * a.width + position] = values[h][k] * kLn2;
                float total = first < listed ? power_of_2(values[h][k] - top[k]) : 0.f;
#pragma unroll
                for (int lanes = 4; lanes < 32; lanes *= 2) total += __shfl_xor_sync(kAll, total, lanes);
                if (real && row == 0) a.block_lse[static_cast<long long>(lines[h][k]) * units + unit] = log_sum(top[k], total) * kLn2;
            }
        }
    }
}
