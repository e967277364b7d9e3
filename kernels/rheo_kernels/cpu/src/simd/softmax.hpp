// softmax: one page's logits become weights, and the running sum moves on.
#pragma once

#include <cmath>

#include "../page_kernel.hpp"

namespace rheo {
namespace {

// How far a logit may outgrow its head's shift before the shift moves. Weights stay below e^8, so sums over any number
// of tokens stay far from the end of float32's range, and a shift that has seen one page rarely moves again.
constexpr float kSlack = 8.0f;

// exp(x) for x <= kSlack with a relative error below 2e-7; 0 below the smallest normal result.
// Range reduction by ln 2 in two parts and the degree-5 minimax polynomial of Cephes' expf.
template <class S>
typename S::Vec exp_up_to_slack(typename S::Vec x) {
    const auto clamped = S::max(S::set1(-87.0f), x);
    const auto n = S::round(S::mul(clamped, S::set1(1.44269504f)));
    auto r = S::fma(n, S::set1(-0.693359375f), clamped);
    r = S::fma(n, S::set1(2.12194440e-4f), r);
    auto y = S::set1(1.9875691500e-4f);
    y = S::fma(y, r, S::set1(1.3981999507e-3f));
    y = S::fma(y, r, S::set1(8.3334519073e-3f));
    y = S::fma(y, r, S::set1(4.1665795894e-2f));
    y = S::fma(y, r, S::set1(1.6666665459e-1f));
    y = S::fma(y, r, S::set1(5.0000001201e-1f));
    y = S::add(S::fma(y, S::mul(r, r), r), S::set1(1.0f));
    return S::zero_below(x, S::set1(-87.0f), S::scale_by_power(y, n));
}

template <class S>
inline void scale_values(float* values, int count, float factor) {
    const auto factors = S::set1(factor);
    for (int i = 0; i < count; i += S::width) S::store(values + i, S::mul(S::load(values + i), factors));
}

// Moves the shifts that a page's logits [G, P], times `scale`, outgrow to the page's largest, and the sums with them;
// rescale(g, factor) does the same for what was mixed for a head.
template <class S, class Rescale>
[[gnu::noinline]] void move_shifts(const Shape& shape, const float* logits, float scale, State& state,
                                   const Rescale& rescale) {
    for (int g = 0; g < shape.group; ++g, logits += shape.page_size) {
        auto top = S::set1(-INFINITY);
        for (int t = 0; t < shape.page_size; t += S::width) top = S::max(S::load(logits + t), top);
        const float page_max = scale * S::reduce_max(top), shift = state.shift[g];
        if (!(page_max > shift + kSlack)) continue;
        const float factor = std::exp(shift - page_max);
        scale_values<S>(state.sum + g * kSumLanes, kSumLanes, factor);
        rescale(g, factor);
        state.shift[g] = page_max;
    }
}

// Rescales State.mixed.
template <class S>
auto rescale_mixed(const Shape& shape, State& state) {
    return [&](int g, float factor) { scale_values<S>(state.mixed + g * shape.dim, shape.dim, factor); };
}

// Turns the scaled logits [G, P] of a page into weights exp(logit - shift) in their place, 0 for masked tokens, and
// adds them to the sums.
//
// Online softmax (Milakov and Gimelshein, 2018), whose shift need not be the largest logit: unless one has to move, no
// maximum or sum across lanes is taken, and nothing that was summed up before is touched.
template <class S>
void softmax(const Shape& shape, int valid, Scratch& scratch, State& state) {
    const int tokens = shape.page_size;
    if (valid < tokens) {
        for (int g = 0; g < shape.group; ++g) {
            float* logits = scratch.logits + g * tokens;
            for (int t = 0; t < tokens; t += S::width)
                S::store(logits + t, S::keep_first(S::load(logits + t), valid - t, -INFINITY));
        }
    }
    auto outgrown = S::none();
    for (int g = 0; g < shape.group; ++g) {
        const float* logits = scratch.logits + g * tokens;
        const auto bound = S::set1(state.shift[g] + kSlack);
        for (int t = 0; t < tokens; t += S::width)
            outgrown = S::either(outgrown, S::above(S::load(logits + t), bound));
    }
    if (S::any(outgrown)) [[unlikely]]
        move_shifts<S>(shape, scratch.logits, 1.0f, state, rescale_mixed<S>(shape, state));
    for (int g = 0; g < shape.group; ++g) {
        float* logits = scratch.logits + g * tokens;
        const auto shift = S::set1(state.shift[g]);
        float* sums = state.sum + g * kSumLanes;
        auto sum = S::load(sums);
        for (int t = 0; t < tokens; t += S::width) {
            const auto weights = exp_up_to_slack<S>(S::sub(S::load(logits + t), shift));
            S::store(logits + t, weights);
            sum = S::add(sum, weights);
        }
        S::store(sums, sum);
    }
}

}  // namespace
}  // namespace rheo
