// amx_emulated: the AMX variant with the tiles emulated, to test its data layout on machines without AMX.
#include <cstring>

#include "../numeric.hpp"
#include "../simd/tile_page.hpp"

namespace rheo::amx_emulated {
namespace {

struct TileState {
    TileConfiguration configuration;
    alignas(64) std::byte tile[8][16][64];
};
thread_local TileState tiles;

// The operations as Intel's instruction set reference defines them.
struct EmulatedTiles {
    template <int tile>
    static void zero() {
        std::memset(tiles.tile[tile], 0, sizeof tiles.tile[tile]);
    }
    template <int tile>
    static void load(const void* base, size_t stride) {
        zero<tile>();
        for (int row = 0; row < tiles.configuration.rows[tile]; ++row)
            std::memcpy(tiles.tile[tile][row], static_cast<const std::byte*>(base) + row * stride,
                        tiles.configuration.row_bytes[tile]);
    }
    template <int tile>
    static void store(void* base, size_t stride) {
        for (int row = 0; row < tiles.configuration.rows[tile]; ++row)
            std::memcpy(static_cast<std::byte*>(base) + row * stride, tiles.tile[tile][row],
                        tiles.configuration.row_bytes[tile]);
    }
    template <int sum, int left, int right>
    static void dot() {
        for (int m = 0; m < tiles.configuration.rows[sum]; ++m) {
            for (int k = 0; k < tiles.configuration.row_bytes[left] / 4; ++k) {
                for (int n = 0; n < tiles.configuration.row_bytes[sum] / 4; ++n) {
                    float value;
                    std::memcpy(&value, tiles.tile[sum][m] + 4 * n, sizeof value);
                    for (int half = 0; half < 2; ++half)
                        value += element(left, m, 2 * k + half) * element(right, k, 2 * n + half);
                    std::memcpy(tiles.tile[sum][m] + 4 * n, &value, sizeof value);
                }
            }
        }
    }

  private:
    static float element(int tile, int row, int column) {
        uint16_t bits;
        std::memcpy(&bits, tiles.tile[tile][row] + 2 * column, sizeof bits);
        return bfloat16_to_float(bits);
    }
};

void begin(const Shape& shape) {
    tiles.configuration = tile_configuration(shape);
}

}  // namespace

const PageKernel* page_kernel(const Shape& shape) {
    return tile_page_kernel<EmulatedTiles, begin, nullptr>(shape);
}

}  // namespace rheo::amx_emulated
