// tile_page: attention to one page with AMX tiles, bfloat16 queries, and KV in bfloat16 or eight bits.
//
// Logits are Q [G, D] K [D, P], the output is W [G, P] V [P, D]: both products want their right operand as rows of
// pairs ([k / 2, n, 2]), which is two rows of the page interleaved. That interleaving (one unpack and one store per
// line) costs more than the products, which do 16 query heads in the time of one. A product reads what was interleaved
// one step before, so that the stores have left for the cache when the tiles are loaded; the first step of V is
// interleaved in front of the last product of K.
#pragma once

#include <cstring>
#include <utility>

#include "pair_softmax.hpp"

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

// Of four pairs interleaved, three ask for as many lines of the next page as they read. The others' lines are asked for
// while softmax and sums read none, or memory would idle then.
constexpr int kPairsToSkip = 4;

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

// Interleaves the pairs of 32 rows of 16 n elements into n right operands; rows from `count` on are zero.
template <int n, bool unpacked, class Element>
inline void interleave(const Element* rows, int stride, int count, uint16_t* tiles, Prefetcher& ahead) {
    const auto pair_up = [&](int pair, const Element* first, const Element* second) {
        __m512i pairs[n];
        load_pairs(first, second, pairs);
        if (pair % kPairsToSkip != kPairsToSkip - 1) ahead.advance<n * 32 * sizeof(Element)>();
        for (int i = 0; i < n; ++i) _mm512_store_si512(tiles + i * kTileElements + pair * 32, pairs[i]);
    };
    if (count >= 32) {
#pragma GCC unroll 16
        for (int pair = 0; pair < kTilePairs; ++pair) {
            const Element* first = rows + first_token<unpacked>(pair) * stride;
            pair_up(pair, first, first + stride);
        }
        return;
    }
    for (int pair = 0; pair < kTilePairs; ++pair) {
        const int row = first_token<unpacked>(pair);
        pair_up(pair, row < count ? rows + row * stride : zero_row<Element>,
                row + 1 < count ? rows + (row + 1) * stride : zero_row<Element>);
    }
}

// Adds one step of 32 products to the sums: left operand [rows, 32] times the interleaved rows.
template <class Tiles, int... tile>
inline void dot_step(const uint16_t* left, int left_stride, const uint16_t* tiles,
                     std::integer_sequence<int, tile...>) {
    Tiles::template load<kLeft>(left, left_stride * sizeof(uint16_t));
    ((Tiles::template load<kRight>(tiles + tile * kTileElements, 64),
      Tiles::template dot<tile, kLeft, kRight>()),
     ...);
}

template <class Tiles, int... tile>
inline void zero_sums(std::integer_sequence<int, tile...>) {
    (Tiles::template zero<tile>(), ...);
}

// Stores tile i at sums + i * offset, its rows `stride` apart.
template <class Tiles, int... tile>
inline void store_sums(float* sums, int offset, int stride, std::integer_sequence<int, tile...>) {
    (Tiles::template store<tile>(sums + tile * offset, stride * sizeof(float)), ...);
}

// Attention of up to 16 query heads from g0 to a page of `tokens` tokens.
template <class Tiles, class Element, int tokens>
class TilePage {
  public:
    TilePage(const Shape& shape, const Page& page, Scratch& scratch, Prefetcher& ahead, int g0)
        : shape_(shape),
          keys_(reinterpret_cast<const Element*>(page.block)),
          values_(keys_ + shape.dim * tokens),
          valid_(page.valid),
          scratch_(scratch),
          ahead_(ahead),
          g0_(g0) {}

    // Logits [rows, P] as the products come: in unpacked order, not yet scaled.
    void logits() {
        const int stride = padded_to_32(shape_.dim);
        const uint16_t* query = scratch_.query_bf16 + g0_ * stride;
        zero_sums<Tiles>(key_tiles);
        interleave_keys(0);
        for (int step = 0; step < key_steps(); ++step) {
            if (step + 1 < key_steps())
                interleave_keys(step + 1);
            else
                interleave_values(0);
            dot_step<Tiles>(query + step * 32, stride, buffer(step), key_tiles);
        }
        store_sums<Tiles>(scratch_.logits + g0_ * tokens, 16, tokens, key_tiles);
    }

    // mixed_tiles += weights . V over the page's valid tokens; `logits` comes first.
    void values() {
        const int steps = (valid_ + 31) / 32, count = (shape_.dim + 31) / 32 * steps;
        if (g0_ > 0) interleave_values(0);
        for (int at = 0; at < count; ++at) {
            if (at + 1 < count) interleave_values(at + 1);
            const int step = at % steps, block = at / steps;
            if (step == 0) zero_sums<Tiles>(two_tiles);
            dot_step<Tiles>(scratch_.weights_bf16 + g0_ * kPadded + step * 32, kPadded, buffer(key_steps() + at),
                            two_tiles);
            if (step == steps - 1) add_sums(block);
        }
    }

  private:
    static constexpr int kPadded = padded_to_32(tokens);
    static constexpr int kBufferTiles = tokens == 64 ? 4 : 2;
    static constexpr std::make_integer_sequence<int, tokens / 16> key_tiles{};
    static constexpr std::make_integer_sequence<int, 2> two_tiles{};
    static_assert(2 * kBufferTiles * kTileBytes <= kTileScratchBytes);

    int key_steps() const { return padded_to_32(shape_.dim) / 32; }

    uint16_t* buffer(int turn) const {
        return reinterpret_cast<uint16_t*>(scratch_.tiles) + turn % 2 * kBufferTiles * kTileElements;
    }

    void interleave_keys(int step) {
        constexpr int n = tokens == 16 ? 1 : 2;
        for (int block = 0; block < tokens / (16 * n); ++block)
            interleave<n, false>(keys_ + step * 32 * tokens + block * 32, tokens, shape_.dim - step * 32,
                                 buffer(step) + block * n * kTileElements, ahead_);
    }

    // The `at`-th step of V: 32 tokens of 32 elements, or of the last 16.
    void interleave_values(int at) {
        constexpr bool unpacked = tokens > 16;
        const int steps = (valid_ + 31) / 32, token = at % steps * 32, d = at / steps * 32;
        const Element* rows = values_ + token * shape_.dim + d;
        uint16_t* tiles = buffer(key_steps() + at);
        if (d + 32 <= shape_.dim)
            interleave<2, unpacked>(rows, shape_.dim, valid_ - token, tiles, ahead_);
        else
            interleave<1, unpacked>(rows, shape_.dim, valid_ - token, tiles, ahead_);
    }

    // Adds the sums of 32 elements, or of the last 16, to their tiles.
    void add_sums(int block) {
        const int rows = tile_rows(shape_), tiles = block * 32 + 32 <= shape_.dim ? 2 : 1;
        store_sums<Tiles>(scratch_.fresh, rows * 16, 16, two_tiles);
        float* mixed = scratch_.mixed_tiles + g0_ * shape_.dim + block * 32 * rows;
        for (int i = 0; i < tiles * rows * 16; i += 32) {
            ahead_.advance<64>();
            for (int j = i; j < i + 32 && j < tiles * rows * 16; j += 16)
                _mm512_storeu_ps(mixed + j,
                                 _mm512_add_ps(_mm512_loadu_ps(mixed + j), _mm512_loadu_ps(scratch_.fresh + j)));
        }
    }

    const Shape& shape_;
    const Element* const keys_;
    const Element* const values_;
    const int valid_;
    Scratch& scratch_;
    Prefetcher& ahead_;
    const int g0_;
};

// A head's 16 elements in a tile of mixed_tiles [padded G / rows, D / 16, rows, 16].
inline float* mixed_row(const Shape& shape, const Scratch& scratch, int g, int tile) {
    const int rows = tile_rows(shape);
    return scratch.mixed_tiles + g / rows * rows * shape.dim + (tile * rows + g % rows) * 16;
}

inline void open_tiles(const Shape& shape, Scratch& scratch) {
    const int rows = tile_rows(shape);
    std::memset(scratch.mixed_tiles, 0, sizeof(float) * ((shape.group + rows - 1) / rows * rows) * shape.dim);
}

template <class Tiles, class Element, int tokens>
void attend_page_with_tiles(const Shape& shape, const Page& page, Scratch& scratch, State& state) {
    Prefetcher ahead(page.next, 2 * sizeof(Element) * shape.dim * tokens);
    for (int g = 0; g < shape.group; g += kTileRows)
        TilePage<Tiles, Element, tokens>(shape, page, scratch, ahead, g).logits();
    pair_softmax(shape, page.valid, scratch, state, ahead, [&](int g, float factor) {
        for (int tile = 0; tile < shape.dim / 16; ++tile)
            scale_values<Avx512>(mixed_row(shape, scratch, g, tile), 16, factor);
    });
    for (int g = 0; g < shape.group; g += kTileRows)
        TilePage<Tiles, Element, tokens>(shape, page, scratch, ahead, g).values();
    ahead.finish();
}

inline void close_tiles(const Shape& shape, const Scratch& scratch, State& state) {
    for (int g = 0; g < shape.group; ++g) {
        float* mixed = state.mixed + g * shape.dim;
        for (int tile = 0; tile < shape.dim / 16; tile += 2) {
            __m512 pair[2] = {_mm512_loadu_ps(mixed_row(shape, scratch, g, tile))};
            if (tile + 1 < shape.dim / 16) {
                pair[1] = _mm512_loadu_ps(mixed_row(shape, scratch, g, tile + 1));
                natural_pairs(pair);
                _mm512_storeu_ps(mixed + 16 * tile + 16, pair[1]);
            }
            _mm512_storeu_ps(mixed + 16 * tile, pair[0]);
        }
    }
}

template <class Tiles, void (*begin)(const Shape&), void (*end)(), class Element, int tokens>
constexpr PageKernel tile_kernel{begin, open_tiles, attend_page_with_tiles<Tiles, Element, tokens>, close_tiles, end};

template <class Tiles, void (*begin)(const Shape&), void (*end)(), class Element>
const PageKernel* tile_page_kernel_of(int page_size) {
    switch (page_size) {
        case 16:
            return &tile_kernel<Tiles, begin, end, Element, 16>;
        case 32:
            return &tile_kernel<Tiles, begin, end, Element, 32>;
        case 64:
            return &tile_kernel<Tiles, begin, end, Element, 64>;
    }
    return nullptr;
}

template <class Tiles, void (*begin)(const Shape&), void (*end)()>
const PageKernel* tile_page_kernel(const Shape& shape) {
    if (!takes_pairs(shape)) return nullptr;
    if (shape.kv == Dtype::float8) return tile_page_kernel_of<Tiles, begin, end, uint8_t>(shape.page_size);
    return tile_page_kernel_of<Tiles, begin, end, uint16_t>(shape.page_size);
}

}  // namespace
}  // namespace rheo
