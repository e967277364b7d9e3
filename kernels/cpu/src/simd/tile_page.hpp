// tile_page: attention to one page with AMX tiles, bfloat16 KV and queries.
//
// Logits are Q [G, D] K [D, P], the output is W [G, P] V [P, D]: both products want their right operand as
// rows of pairs ([k / 2, n, 2]), which is two rows of the page interleaved. That interleaving (one unpack and
// one store per line) costs more than the products, which do 16 query heads in the time of one.
#pragma once

#include <utility>

#include "bfloat16_pairs.hpp"
#include "prefetch.hpp"

namespace rheo {
namespace {

// What LDTILECFG reads: palette 1, and rows and bytes per row of each of the eight tiles.
struct alignas(64) TileConfiguration {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(TileConfiguration) == 64);

// Tiles 0-3 hold sums [rows, 16], tile 4 the left operand [rows, 32], tile 5 the right operand [16, 16, 2].
constexpr int kLeft = 4;
constexpr int kRight = 5;
constexpr int kTileElements = kTileBytes / 2;

inline int tile_rows(const Shape& shape) {
    return shape.group < kTileRows ? shape.group : kTileRows;
}

inline TileConfiguration tile_configuration(const Shape& shape) {
    TileConfiguration configuration{};
    configuration.palette = 1;
    for (int tile = 0; tile <= kRight; ++tile) {
        configuration.row_bytes[tile] = 64;
        configuration.rows[tile] = static_cast<uint8_t>(tile == kRight ? kTilePairs : tile_rows(shape));
    }
    return configuration;
}

// Interleaves 32 rows of 16 n elements into n right operands; rows from `count` on are zero.
template <int n>
inline void interleave(const uint16_t* rows, int stride, int count, uint16_t* tiles, Prefetcher& ahead) {
    for (int pair = 0; pair < kTilePairs; ++pair) {
        const int row = 2 * pair;
        __m512i pairs[n];
        if (row < count) {
            const uint16_t* first = rows + row * stride;
            load_pairs(first, row + 1 < count ? first + stride : zero_row, pairs);
            ahead.advance<n * 64>();
        } else {
            for (auto& vector : pairs) vector = _mm512_setzero_si512();
        }
        for (int i = 0; i < n; ++i) _mm512_storeu_si512(tiles + i * kTileElements + pair * 32, pairs[i]);
    }
}

template <class Tiles, int... tile>
inline void zero_sums(std::integer_sequence<int, tile...>) {
    (Tiles::template zero<tile>(), ...);
}

// Adds one step of 32 products to every sum: left operand [rows, 32] times the interleaved rows.
template <class Tiles, int... tile>
inline void dot_step(const uint16_t* left, int left_stride, const uint16_t* tiles,
                     std::integer_sequence<int, tile...>) {
    Tiles::template load<kLeft>(left, left_stride * sizeof(uint16_t));
    ((Tiles::template load<kRight>(tiles + tile * kTileElements, 64),
      Tiles::template dot<tile, kLeft, kRight>()),
     ...);
}

template <class Tiles, int... tile>
inline void store_sums(float* sums, int stride, std::integer_sequence<int, tile...>) {
    (Tiles::template store<tile>(sums + 16 * tile, stride * sizeof(float)), ...);
}

// sums [rows, 16 n] = left [rows, 32 steps] times `count` rows of the page, as right operands of 32 rows.
//
// The rows of step s + 1 are interleaved before step s is multiplied, so that the stores have left for the
// cache when the tiles are loaded.
template <class Tiles, int n>
inline void tile_product(const uint16_t* left, int left_stride, const uint16_t* rows, int stride, int count,
                         Scratch& scratch, float* sums, int sum_stride, Prefetcher& ahead) {
    // Blocks of 64 tokens are two pairs of vectors side by side.
    constexpr int vectors = n == 1 ? 1 : 2;
    constexpr int blocks = n / vectors;
    constexpr std::make_integer_sequence<int, n> tiles_of_step{};
    auto* buffers = reinterpret_cast<uint16_t*>(scratch.tiles);
    const auto buffer = [&](int step) { return buffers + (step & 1) * n * kTileElements; };
    const int steps = (count + 31) / 32;
    zero_sums<Tiles>(tiles_of_step);
    for (int step = 0; step <= steps; ++step) {
        if (step < steps) {
            for (int block = 0; block < blocks; ++block)
                interleave<vectors>(rows + step * 32 * stride + block * 32, stride, count - step * 32,
                                    buffer(step) + block * vectors * kTileElements, ahead);
        }
        if (step > 0) dot_step<Tiles>(left + (step - 1) * 32, left_stride, buffer(step - 1), tiles_of_step);
    }
    store_sums<Tiles>(sums, sum_stride, tiles_of_step);
}

// Logits [padded G, P], as the sums of the products come: tokens in the order of load_pairs, not yet scaled.
template <class Tiles>
inline void tile_logits(const Shape& shape, const uint16_t* keys, Scratch& scratch, Prefetcher& ahead) {
    const int stride = padded_to_32(shape.dim), tokens = shape.page_size;
    for (int g = 0; g < shape.group; g += kTileRows) {
        const uint16_t* query = scratch.query_bf16 + g * stride;
        float* logits = scratch.logits + g * tokens;
        if (tokens == 16)
            tile_product<Tiles, 1>(query, stride, keys, tokens, shape.dim, scratch, logits, tokens, ahead);
        else if (tokens == 32)
            tile_product<Tiles, 2>(query, stride, keys, tokens, shape.dim, scratch, logits, tokens, ahead);
        else
            tile_product<Tiles, 4>(query, stride, keys, tokens, shape.dim, scratch, logits, tokens, ahead);
    }
}

// Scales the logits and brings their tokens into order.
inline void order_logits(const Shape& shape, Scratch& scratch) {
    const __m512 scale = _mm512_set1_ps(shape.scale);
    float* const end = scratch.logits + shape.group * shape.page_size;
    if (shape.page_size == 16) {
        for (float* logits = scratch.logits; logits < end; logits += 16)
            _mm512_storeu_ps(logits, _mm512_mul_ps(_mm512_loadu_ps(logits), scale));
        return;
    }
    for (float* logits = scratch.logits; logits < end; logits += 32) {
        __m512 pair[2] = {_mm512_loadu_ps(logits), _mm512_loadu_ps(logits + 16)};
        natural_pairs(pair);
        _mm512_storeu_ps(logits, _mm512_mul_ps(pair[0], scale));
        _mm512_storeu_ps(logits + 16, _mm512_mul_ps(pair[1], scale));
    }
}

// mixed[., d0 .. d0 + 16 n) += weights . V over the page's valid tokens.
template <class Tiles, int n>
inline void tile_values(const Shape& shape, const uint16_t* values, int valid, int d0, Scratch& scratch,
                        State& state, Prefetcher& ahead) {
    const int stride = padded_to_32(shape.page_size);
    for (int g0 = 0; g0 < shape.group; g0 += kTileRows) {
        tile_product<Tiles, n>(scratch.weights_bf16 + g0 * stride, stride, values + d0, shape.dim, valid,
                               scratch, scratch.fresh, 32, ahead);
        for (int g = g0; g < shape.group && g < g0 + kTileRows; ++g) {
            const float* fresh = scratch.fresh + (g - g0) * 32;
            __m512 sums[n];
            for (int i = 0; i < n; ++i) sums[i] = _mm512_loadu_ps(fresh + 16 * i);
            natural_pairs(sums);
            float* mixed = state.mixed + g * shape.dim + d0;
            for (int i = 0; i < n; ++i)
                _mm512_storeu_ps(mixed + 16 * i, _mm512_add_ps(_mm512_loadu_ps(mixed + 16 * i), sums[i]));
        }
    }
}

template <class Tiles>
void attend_page_with_tiles(const Shape& shape, const Page& page, Scratch& scratch, State& state) {
    const int elements = shape.dim * shape.page_size;
    const auto* keys = reinterpret_cast<const uint16_t*>(page.block);
    const uint16_t* values = keys + elements;
    Prefetcher ahead(page.next, 4 * elements);

    tile_logits<Tiles>(shape, keys, scratch, ahead);
    order_logits(shape, scratch);
    softmax<Avx512, Bfloat16Weights>(shape, page.valid, scratch, state);
    int d = 0;
    for (; d + 32 <= shape.dim; d += 32)
        tile_values<Tiles, 2>(shape, values, page.valid, d, scratch, state, ahead);
    if (d < shape.dim) tile_values<Tiles, 1>(shape, values, page.valid, d, scratch, state, ahead);
    ahead.finish();
}

}  // namespace
}  // namespace rheo
