// problem: where the operands of one attention call lie.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shape.hpp"

namespace rheo {

// A word that a GPU hands over: a value, and above it the tag of the call that it belongs to. Words are written and read
// as a whole, so that whoever knows the tag needs nothing else to tell whether a word has come.
inline constexpr int kTagShift = 32;
// A page that it hands over: the page's number above its tokens less one.
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
    const uint64_t* entries;  // [B, H, S], contiguous, or null: words in the place of index and valid
    const uint64_t* counts;   // [B, H], contiguous, if there are entries: words that say how many of each row are pages
    float* out;            // [B, Hq, D], contiguous
    float* lse;            // [B, Hq], contiguous
    const int32_t* batch;  // read at every call that does not say how many
    int max_batch;         // requests beyond it are left out

    int64_t row_elements() const { return static_cast<int64_t>(shape.group) * shape.dim; }
    size_t block_elements() const { return 2 * static_cast<size_t>(shape.dim) * shape.page_size; }
};

}  // namespace rheo
