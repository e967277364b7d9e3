// float_page: attention to one page in float32 arithmetic, for any vector width and KV dtype.
//
// Bytes: every line of the page is loaded once per chunk of query heads (once altogether up to S::group_chunk
// heads). Work: 2 G multiply-adds and one conversion per KV element; DRAM bound while that takes less than
// the page's share of the memory bandwidth.
#pragma once

#include "group.hpp"
#include "prefetch.hpp"
#include "softmax.hpp"

namespace rheo {
namespace {

// Vectors handled together: two while `left` elements of a row allow it. A pair may hold its 2 * width
// elements in any order that S::natural undoes.
template <class S>
int block_vectors(int left) {
    return left >= 2 * S::width ? 2 : 1;
}

// logits[g, t0 .. t0 + n * width) = scale * q . K for `heads` query heads from g0.
template <class S, Dtype kv, int heads, int n>
void key_block(const Shape& shape, const typename S::template Element<kv>* keys, int t0, int g0,
               Scratch& scratch, Prefetcher& ahead) {
    typename S::Vec sums[heads][n];
    for (auto& row : sums)
        for (auto& sum : row) sum = S::set1(0.0f);
    const float* query = scratch.query + g0 * shape.dim;
    for (int d = 0; d < shape.dim; ++d) {
        typename S::Vec row[n];
        S::template load_kv<kv>(keys + d * shape.page_size + t0, row);
        ahead.advance<n * S::width* static_cast<int>(element_size(kv))>();
        for (int g = 0; g < heads; ++g) {
            const auto q = S::set1(query[g * shape.dim + d]);
            for (int i = 0; i < n; ++i) sums[g][i] = S::fma(row[i], q, sums[g][i]);
        }
    }
    for (int g = 0; g < heads; ++g) {
        S::template natural<kv>(sums[g]);
        float* logits = scratch.logits + (g0 + g) * shape.page_size + t0;
        for (int i = 0; i < n; ++i) S::store(logits + i * S::width, S::mul(sums[g][i], S::set1(shape.scale)));
    }
}

// mixed[g, d0 .. d0 + n * width) += weights . V over the page's valid tokens.
template <class S, Dtype kv, int heads, int n>
void value_block(const Shape& shape, const typename S::template Element<kv>* values, int valid, int d0,
                 int g0, const Scratch& scratch, State& state, Prefetcher& ahead) {
    typename S::Vec sums[heads][n];
    for (auto& row : sums)
        for (auto& sum : row) sum = S::set1(0.0f);
    const float* weights = scratch.logits + g0 * shape.page_size;
    for (int t = 0; t < valid; ++t) {
        typename S::Vec row[n];
        S::template load_kv<kv>(values + t * shape.dim + d0, row);
        ahead.advance<n * S::width* static_cast<int>(element_size(kv))>();
        for (int g = 0; g < heads; ++g) {
            const auto weight = S::set1(weights[g * shape.page_size + t]);
            for (int i = 0; i < n; ++i) sums[g][i] = S::fma(row[i], weight, sums[g][i]);
        }
    }
    for (int g = 0; g < heads; ++g) {
        S::template natural<kv>(sums[g]);
        float* mixed = state.mixed + (g0 + g) * shape.dim + d0;
        for (int i = 0; i < n; ++i)
            S::store(mixed + i * S::width, S::add(S::load(mixed + i * S::width), sums[g][i]));
    }
}

template <class S, Dtype kv>
void attend_page(const Shape& shape, const Page& page, Scratch& scratch, State& state) {
    using Element = typename S::template Element<kv>;
    const int elements = shape.dim * shape.page_size;
    const auto* keys = reinterpret_cast<const Element*>(page.block);
    const Element* values = keys + elements;
    Prefetcher ahead(page.next, 2 * elements * sizeof(Element));

    for_each_chunk<S::group_chunk>(shape.group, [&](int g0, auto heads) {
        for (int t = 0; t < shape.page_size;) {
            const int n = block_vectors<S>(shape.page_size - t);
            with_constant<2>(n, [&](auto vectors) {
                key_block<S, kv, decltype(heads)::get, decltype(vectors)::get>(shape, keys, t, g0, scratch,
                                                                               ahead);
            });
            t += n * S::width;
        }
    });
    softmax<S>(shape, page.valid, scratch, state);
    for_each_chunk<S::group_chunk>(shape.group, [&](int g0, auto heads) {
        for (int d = 0; d < shape.dim;) {
            const int n = block_vectors<S>(shape.dim - d);
            with_constant<2>(n, [&](auto vectors) {
                value_block<S, kv, decltype(heads)::get, decltype(vectors)::get>(shape, values, page.valid, d,
                                                                                 g0, scratch, state, ahead);
            });
            d += n * S::width;
        }
    });
    ahead.finish();
}

template <class S>
const PageKernel* float_page_kernel(const Shape& shape) {
    static constexpr PageKernel float32{.attend = attend_page<S, Dtype::float32>};
    static constexpr PageKernel bfloat16{.attend = attend_page<S, Dtype::bfloat16>};
    static constexpr PageKernel float16{.attend = attend_page<S, Dtype::float16>};
    static constexpr PageKernel float8{.attend = attend_page<S, Dtype::float8>};
    switch (shape.kv) {
        case Dtype::float32:
            return &float32;
        case Dtype::bfloat16:
            return &bfloat16;
        case Dtype::float16:
            return &float16;
        case Dtype::float8:
            return &float8;
    }
    return nullptr;
}

}  // namespace
}  // namespace rheo
