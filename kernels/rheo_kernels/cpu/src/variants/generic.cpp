// generic: the variant for every architecture.
#include "../simd/estimate_page.hpp"
#include "../simd/float_page.hpp"
#include "../simd/portable.hpp"

namespace rheo::generic {

const PageKernel* page_kernel(const Shape& shape) {
    return float_page_kernel<Portable>(shape);
}

EstimateFunction estimate_kernel(const EstimateShape& shape) {
    return takes<Portable>(shape) ? estimate_page<Portable> : nullptr;
}

uint64_t read_block(const std::byte* block, const std::byte* next, size_t bytes) {
    Prefetcher ahead(next, bytes);
    uint64_t sums[8] = {};
    for (size_t i = 0; i < bytes; i += sizeof sums) {
        uint64_t words[8];
        std::memcpy(words, block + i, sizeof words);
        for (int j = 0; j < 8; ++j) sums[j] += words[j];
        ahead.advance<64>();
    }
    uint64_t sum = 0;
    for (uint64_t part : sums) sum += part;
    return sum;
}

}  // namespace rheo::generic
