// problem: where the operands of one attention call lie.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shape.hpp"

namespace rheo {

// A GPU writes lists as tagged 64-bit words: the upper half is the call's tag, the lower half a value. Words are written and
// read as a whole, so a reader that finds the tag it expects has the value, without a fence.
inline constexpr int kTagShift = 32;
// The value for a page: its number, shifted by this, plus its tokens minus one.
inline constexpr int kTokenBits = 6;

// Strides count elements; the innermost dimension of every array is contiguous.
struct Problem {
    Shape shape;
    const std::byte* query;  // [B, Hq, D]
    int64_t query_request_stride, query_head_stride;
    const std::byte* blocks;  // [H, X, 2 D P]
    int64_t block_head_stride, block_stride;
    int64_t num_blocks;    // X
    const int32_t* index;  // [B, H, S]: block of each column, -1 = none
    int64_t index_request_stride, index_head_stride;
    const int32_t* valid;  // [B, H, S]: tokens of it to attend
    int64_t valid_request_stride, valid_head_stride;
    int columns;           // S
    const uint64_t* entries;  // [B, H, S], contiguous, or null: words for pages, instead of index and valid
    const uint64_t* counts;   // [B, H], contiguous, if there are entries: words for the pages of each row
    float* out;            // [B, Hq, D], contiguous
    float* lse;            // [B, Hq], contiguous
    const int32_t* batch;  // read at every call that does not say how many
    int max_batch;         // requests beyond it are left out

    int64_t row_elements() const { return static_cast<int64_t>(shape.group) * shape.dim; }
    size_t block_elements() const { return 2 * static_cast<size_t>(shape.dim) * shape.page_size; }
};

}  // namespace rheo
