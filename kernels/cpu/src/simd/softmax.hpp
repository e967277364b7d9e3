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

// Weights stay float32, in the place of the logits.
struct Float32Weights {
    template <class S>
    static typename S::Vec store(const Shape& shape, Scratch& scratch, int g, int token, typename S::Vec w) {
        S::store(scratch.logits + g * shape.page_size + token, w);
        return w;
    }
};

// Moves the shifts that a page's logits outgrow to the page's largest, and what was summed up with them.
template <class S>
[[gnu::noinline]] void move_shifts(const Shape& shape, const Scratch& scratch, State& state) {
    for (int g = 0; g < shape.group; ++g) {
        const float* logits = scratch.logits + g * shape.page_size;
        auto top = S::set1(-INFINITY);
        for (int t = 0; t < shape.page_size; t += S::width) top = S::max(S::load(logits + t), top);
        const float page_max = S::reduce_max(top), shift = state.shift[g];
        if (!(page_max > shift + kSlack)) continue;
        const auto correction = S::set1(std::exp(shift - page_max));
        const auto rescale = [&](float* values, int count) {
            for (int i = 0; i < count; i += S::width) S::store(values + i, S::mul(S::load(values + i), correction));
        };
        rescale(state.sum + g * kSumLanes, kSumLanes);
        rescale(state.mixed + g * shape.dim, shape.dim);
        state.shift[g] = page_max;
    }
}

// Turns the scaled logits [G, P] of a page into weights exp(logit - shift), 0 for masked tokens, and adds them to the
// sums. What is added is the weights as stored, so that rounding them to a narrow type does not bias the output.
//
// Online softmax (Milakov and Gimelshein, 2018), whose shift need not be the largest logit: unless one has to move, no
// maximum or sum across lanes is taken, and nothing that was summed up before is touched.
template <class S, class Weights>
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
        move_shifts<S>(shape, scratch, state);
    for (int g = 0; g < shape.group; ++g) {
        const float* logits = scratch.logits + g * tokens;
        const auto shift = S::set1(state.shift[g]);
        float* sums = state.sum + g * kSumLanes;
        auto sum = S::load(sums);
        for (int t = 0; t < tokens; t += S::width) {
            const auto weights = exp_up_to_slack<S>(S::sub(S::load(logits + t), shift));
            sum = S::add(sum, Weights::template store<S>(shape, scratch, g, t, weights));
        }
        S::store(sums, sum);
    }
}

}  // namespace
}  // namespace rheo
