// estimate: estimated LSEs of all pages of all requests, shared out over threads by runs of pages.
#pragma once

#include <optional>

#include "isa.hpp"

namespace rheo {

// Arrays are contiguous but for the summaries, whose strides count bytes.
struct EstimateProblem {
    EstimateShape shape;
    int batch;
    int heads;
    float scale;
    const float* query;          // [B, H, G, D]
    const std::byte* summaries;  // [H, N, W]
    int64_t summary_head_stride, summary_stride;
    int64_t num_pages;        // N
    const int32_t* pages;     // [B, M]
    const int32_t* seq_lens;  // [B]
    int width;                // M
    float* lse;               // [B, H, G, M]
};

// Returns how many pages of requests do not exist; their estimates are -inf.
int64_t estimate_pages(const EstimateProblem&, int threads, std::optional<Isa> limit);

}  // namespace rheo
