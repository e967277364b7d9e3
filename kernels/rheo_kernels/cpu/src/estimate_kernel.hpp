// estimate_kernel: what an instruction-set variant provides for estimates: the LSE of one page's rows, for one GQA group.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rheo {

// Groups of dimensions with a scale of their own, of rows and of the centre; steps between the lowest and the highest
// 4-bit code: rheo_kernels/types/subcentroids.py, which also says how summaries are laid out.
constexpr int kScaleGroups = 8;
constexpr int kCentreGroups = 2;
constexpr int kLevels = 15;
// Every array over heads is padded to the widest vector.
constexpr int kHeadLanes = 16;
constexpr int kWordColumns = 4;

struct EstimateShape {
    int group;
    int dim;
    int page_size;
    int row_tokens;
    int block_rows;  // rows that are interleaved
    int columns;     // runs of a row: 2 or 4
    int centre_bits;
    int centre_offset;
    int scales_offset;

    int rows() const { return page_size / row_tokens; }
    int words() const { return dim / 8 / columns; }  // of a run
    int padded_group() const { return (group + kHeadLanes - 1) / kHeadLanes * kHeadLanes; }
};

// What all pages share. A *slot* is four lanes of floats: one for each run of a row, all runs twice where there are two.
// Slot (i, half, b) has the dimensions in the low (0) or high (1) half of byte b of the runs' word i.
struct EstimateTables {
    const float* scales;         // [256]: what an 8-bit scale stands for
    const uint8_t* row_group;    // [words, 4 bytes, 4 lanes]
    const uint8_t* centre_group;
};

// Buffers of one thread. Query and energy are set once for each run of pages of a request and head.
struct EstimateScratch {
    float* query;   // [G, words, 2, 4, 4 lanes], in slots, times the softmax scale
    float* energy;  // [kScaleGroups, padded G]: sum of their squares over a group, / 24
    float* step;    // [words, 4, 4 lanes]
    float* base;    // [words, 2, 4, 4 lanes]: what code 0 of a row stands for
    float* logits;  // [R, padded G]
};

// Writes the estimates of a page, [padded G]; log_tokens [R] are the logarithms of its rows' tokens.
using EstimateFunction = void (*)(const EstimateShape&, const EstimateTables&, const std::byte* page,
                                  const float* log_tokens, EstimateScratch&, float* lse);

// The kernel of a variant, or null where its vectors are longer than a block of rows has words side by side.
namespace generic {
EstimateFunction estimate_kernel(const EstimateShape&);
}
#ifdef RHEO_X86
namespace avx2 {
EstimateFunction estimate_kernel(const EstimateShape&);
}
namespace avx512f {
EstimateFunction estimate_kernel(const EstimateShape&);
}
#endif

}  // namespace rheo
