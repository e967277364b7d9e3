// avx512f: the variant for AVX-512 Foundation, float32 arithmetic on every KV dtype.
#include "../simd/avx512.hpp"
#include "../simd/estimate_page.hpp"
#include "../simd/float_page.hpp"

namespace rheo::avx512f {

const PageKernel* page_kernel(const Shape& shape) {
    return float_page_kernel<Avx512>(shape);
}

EstimateFunction estimate_kernel(const EstimateShape& shape) {
    return takes<Avx512>(shape) ? estimate_page<Avx512> : nullptr;
}

uint64_t read_block(const std::byte* block, const std::byte* next, size_t bytes) {
    Prefetcher ahead(next, bytes);
    __m512i even = _mm512_setzero_si512(), odd = even;
    for (size_t i = 0; i < bytes; i += 128) {
        even = _mm512_add_epi64(even, _mm512_loadu_si512(block + i));
        odd = _mm512_add_epi64(odd, _mm512_loadu_si512(block + i + 64));
        ahead.advance<128>();
    }
    return _mm512_reduce_add_epi64(_mm512_add_epi64(even, odd));
}

}  // namespace rheo::avx512f
