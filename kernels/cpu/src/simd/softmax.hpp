// softmax: one page's logits become weights, and the running maximum and sum move on.
#pragma once

#include <cmath>

#include "../page_kernel.hpp"

namespace rheo {
namespace {

// exp(x) for x <= 0 with a relative error below 2e-7; 0 below the smallest normal result.
// Range reduction by ln 2 in two parts and the degree-5 minimax polynomial of Cephes' expf.
template <class S>
typename S::Vec exp_nonpositive(typename S::Vec x) {
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

// Turns the scaled logits [G, P] of a page into weights exp(logit - max), 0 for masked tokens.
//
// Sets scratch.correction to exp(old max - new max) and moves state.max and state.sum on. The sum is of the
// weights as stored, so that rounding them to a narrow type does not bias the output.
template <class S, class Weights>
void softmax(const Shape& shape, int valid, Scratch& scratch, State& state) {
    const int tokens = shape.page_size;
    for (int g = 0; g < shape.group; ++g) {
        float* logits = scratch.logits + g * tokens;
        auto top = S::set1(-INFINITY);
        for (int t = 0; t < tokens; t += S::width) {
            const auto masked = S::keep_first(S::load(logits + t), valid - t, -INFINITY);
            S::store(logits + t, masked);
            top = S::max(masked, top);
        }
        const float page_max = S::reduce_max(top);
        const float old_max = state.max[g];
        const float new_max = page_max > old_max ? page_max : old_max;
        auto sum = S::set1(0.0f);
        for (int t = 0; t < tokens; t += S::width) {
            const auto weights = exp_nonpositive<S>(S::sub(S::load(logits + t), S::set1(new_max)));
            sum = S::add(sum, Weights::template store<S>(shape, scratch, g, t, weights));
        }
        const float correction = new_max == old_max ? 1.0f : __builtin_expf(old_max - new_max);
        scratch.correction[g] = correction;
        state.max[g] = new_max;
        state.sum[g] = state.sum[g] * correction + S::reduce_add(sum);
    }
}

}  // namespace
}  // namespace rheo
