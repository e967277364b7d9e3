// avx2: the variant for AVX2 with FMA and F16C.
#include "../simd/avx2.hpp"

#include "../simd/estimate_page.hpp"
#include "../simd/float_page.hpp"

namespace rheo::avx2 {

const PageKernel* page_kernel(const Shape& shape) {
    return float_page_kernel<Avx2>(shape);
}

EstimateFunction estimate_kernel(const EstimateShape& shape) {
    return takes<Avx2>(shape) ? estimate_page<Avx2> : nullptr;
}

uint64_t read_block(const std::byte* block, const std::byte* next, size_t bytes) {
    Prefetcher ahead(next, bytes);
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (size_t i = 0; i < bytes; i += 64) {
        even = _mm256_add_epi64(even, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + i)));
        odd = _mm256_add_epi64(odd, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + i + 32)));
        ahead.advance<64>();
    }
    uint64_t lanes[4];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(even, odd));
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

}  // namespace rheo::avx2
