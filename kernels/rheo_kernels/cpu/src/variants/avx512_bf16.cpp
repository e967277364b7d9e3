// avx512_bf16: the variant for AVX512-BF16 dot products, bfloat16 queries, and KV in bfloat16 or eight bits.
//
// Each loaded line costs one unpack (pairs of rows interleaved) and G dot products of 32 elements, half the
// multiply-adds of float32 arithmetic and no conversion but that of eight bits.
#include "../simd/group.hpp"
#include "../simd/pair_softmax.hpp"

namespace rheo::avx512_bf16 {
namespace {

inline __m512 dot(__m512 sum, __m512i pairs, __m512i broadcast) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(broadcast));
}

inline __m512i broadcast_pair(const uint16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
}

template <int heads, int n, class Element>
void key_block(const Shape& shape, const Element* keys, int t0, int g0, Scratch& scratch,
               Prefetcher& ahead) {
    __m512 sums[heads][n];
    for (auto& row : sums)
        for (auto& sum : row) sum = _mm512_setzero_ps();
    const int stride = padded_to_32(shape.dim);
    const uint16_t* query = scratch.query_bf16 + g0 * stride;
    for (int d = 0; d < shape.dim; d += 2) {
        const Element* row = keys + d * shape.page_size + t0;
        __m512i pairs[n];
        load_pairs(row, row + shape.page_size, pairs);
        ahead.advance<n * 32 * sizeof(Element)>();
        for (int g = 0; g < heads; ++g) {
            const __m512i q = broadcast_pair(query + g * stride + d);
            for (int i = 0; i < n; ++i) sums[g][i] = dot(sums[g][i], pairs[i], q);
        }
    }
    for (int g = 0; g < heads; ++g) {
        float* logits = scratch.logits + (g0 + g) * shape.page_size + t0;
        for (int i = 0; i < n; ++i) _mm512_storeu_ps(logits + 16 * i, sums[g][i]);
    }
}

template <bool unpacked, int heads, int n, class Element>
void value_block(const Shape& shape, const Element* values, int valid, int d0, int g0,
                 const Scratch& scratch, State& state, Prefetcher& ahead) {
    __m512 sums[heads][n];
    for (auto& row : sums)
        for (auto& sum : row) sum = _mm512_setzero_ps();
    const int stride = padded_to_32(shape.page_size);
    const uint16_t* weights = scratch.weights_bf16 + g0 * stride;
    for (int t0 = 0; t0 < valid; t0 += 32) {
        for (int pair = 0; pair < 16; ++pair) {
            const int t = t0 + first_token<unpacked>(pair);
            if (t >= valid) continue;
            const Element* row = values + t * shape.dim + d0;
            __m512i pairs[n];
            load_pairs(row, t + 1 < valid ? row + shape.dim : zero_row<Element>, pairs);
            ahead.advance<n * 32 * sizeof(Element)>();
            for (int g = 0; g < heads; ++g) {
                const __m512i weight = broadcast_pair(weights + g * stride + t0 + 2 * pair);
                for (int i = 0; i < n; ++i) sums[g][i] = dot(sums[g][i], pairs[i], weight);
            }
        }
    }
    for (int g = 0; g < heads; ++g) {
        natural_pairs(sums[g]);
        float* mixed = state.mixed + (g0 + g) * shape.dim + d0;
        for (int i = 0; i < n; ++i)
            _mm512_storeu_ps(mixed + 16 * i, _mm512_add_ps(_mm512_loadu_ps(mixed + 16 * i), sums[g][i]));
    }
}

template <class Element, bool unpacked>
void attend_page(const Shape& shape, const Page& page, Scratch& scratch, State& state) {
    const int elements = shape.dim * shape.page_size;
    const auto* keys = reinterpret_cast<const Element*>(page.block);
    const Element* values = keys + elements;
    Prefetcher ahead(page.next, 2 * sizeof(Element) * elements);

    for_each_chunk<Avx512::group_chunk>(shape.group, [&](int g0, auto heads) {
        constexpr int count = decltype(heads)::get;
        int t = 0;
        for (; t + 32 <= shape.page_size; t += 32) key_block<count, 2>(shape, keys, t, g0, scratch, ahead);
        if (t < shape.page_size) key_block<count, 1>(shape, keys, t, g0, scratch, ahead);
    });
    pair_softmax(shape, page.valid, scratch, state, ahead, rescale_mixed<Avx512>(shape, state));
    for_each_chunk<Avx512::group_chunk>(shape.group, [&](int g0, auto heads) {
        constexpr int count = decltype(heads)::get;
        int d = 0;
        for (; d + 32 <= shape.dim; d += 32)
            value_block<unpacked, count, 2>(shape, values, page.valid, d, g0, scratch, state, ahead);
        if (d < shape.dim) value_block<unpacked, count, 1>(shape, values, page.valid, d, g0, scratch, state, ahead);
    });
    ahead.finish();
}

template <class Element>
const PageKernel* page_kernel_of(const Shape& shape) {
    static constexpr PageKernel natural{.attend = attend_page<Element, false>};
    static constexpr PageKernel unpacked{.attend = attend_page<Element, true>};
    return shape.page_size == 16 ? &natural : &unpacked;
}

}  // namespace

const PageKernel* page_kernel(const Shape& shape) {
    if (!takes_pairs(shape)) return nullptr;
    return shape.kv == Dtype::float8 ? page_kernel_of<uint8_t>(shape) : page_kernel_of<uint16_t>(shape);
}

}  // namespace rheo::avx512_bf16
