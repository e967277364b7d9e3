// problem: where the operands of one attention call lie.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shape.hpp"

namespace rheo {

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
    const int32_t* first;  // [B, H], contiguous, or null: columns before it are not looked at
    const int32_t* last;   // [B, H], contiguous, or null: columns from it on are not looked at
    bool packed;           // every column from first to last is a page
    float* out;            // [B, Hq, D], contiguous
    float* lse;            // [B, Hq], contiguous
    const int32_t* batch;  // read at every call
    int max_batch;         // requests beyond it are left out

    int64_t row_elements() const { return static_cast<int64_t>(shape.group) * shape.dim; }
    size_t block_elements() const { return 2 * static_cast<size_t>(shape.dim) * shape.page_size; }
};

}  // namespace rheo
