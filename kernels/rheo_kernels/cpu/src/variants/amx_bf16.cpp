// amx_bf16: the variant for AMX-BF16 tiles, bfloat16 queries, and KV in bfloat16 or eight bits.
#include "../simd/tile_page.hpp"

namespace rheo::amx_bf16 {
namespace {

// The instructions themselves rather than the compiler's intrinsics: those of GCC take literal tile numbers
// only and do not tell the compiler that they read and write memory.
struct HardwareTiles {
    template <int tile>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" : : "i"(tile));
    }
    template <int tile>
    static void load(const void* base, size_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride), "i"(tile) : "memory");
    }
    template <int tile>
    static void store(void* base, size_t stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(base), "r"(stride), "i"(tile) : "memory");
    }
    // AT&T order: right operand, left operand, sum.
    template <int sum, int left, int right>
    static void dot() {
        asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(left), "i"(right));
    }
};

void begin(const Shape& shape) {
    const TileConfiguration configuration = tile_configuration(shape);
    asm volatile("ldtilecfg %0" : : "m"(configuration));
}

// Without live tiles the kernel has nothing of them to save at a context switch.
void end() {
    asm volatile("tilerelease");
}

}  // namespace

const PageKernel* page_kernel(const Shape& shape) {
    return tile_page_kernel<HardwareTiles, begin, end>(shape);
}

}  // namespace rheo::amx_bf16
