// estimate_page: the estimated LSE of one page, from its summary, for any vector width.
//
// A lane is a word of a row: eight codes, one product with each. Interleaved rows lie side by side, so that a load fills
// a vector, and a row's products are summed over its two or four lanes at the end. Work: R * D * (G + 2) multiply-adds a
// page for R * D / 2 bytes; bound by them from G = 1 on.
#pragma once

#include <cstring>

#include "../estimate_kernel.hpp"
#include "group.hpp"
#include "softmax.hpp"

namespace rheo {
namespace {

using FourFloats = float __attribute__((vector_size(16)));
using FourWords = int32_t __attribute__((vector_size(16)));

// The word of every run, in four lanes.
inline FourWords load_runs(const std::byte* p, int columns) {
    FourWords words;
    if (columns == kWordColumns) {
        std::memcpy(&words, p, sizeof words);
    } else {
        std::memcpy(&words, p, sizeof words / 2);
        words = FourWords{words[0], words[1], words[0], words[1]};
    }
    return words;
}

inline FourFloats gather(const float* values, const uint8_t* index) {
    return FourFloats{values[index[0]], values[index[1]], values[index[2]], values[index[3]]};
}

// Decodes the centre and all scales: step and base.
inline void open_page(const EstimateShape& shape, const EstimateTables& tables, const std::byte* page,
                      const float* step, EstimateScratch& scratch) {
    const auto* codes = reinterpret_cast<const uint8_t*>(page) + shape.scales_offset + kScaleGroups;
    const float unit[kCentreGroups] = {tables.scales[codes[0]], tables.scales[codes[1]]};
    const std::byte* centre = page + shape.centre_offset;
    for (int i = 0; i < shape.words(); ++i) {
        const bool wide = shape.centre_bits == 8;
        const std::byte* at = centre + 4 * i * shape.columns * (wide ? 2 : 1);
        FourWords halves[2];
        halves[0] = load_runs(at, shape.columns);
        halves[1] = wide ? load_runs(at + 4 * shape.columns, shape.columns) : halves[0] >> 4;
        for (int b = 0; b < 4; ++b) {
            const int slot = 4 * (4 * i + b);
            const FourFloats steps = gather(step, tables.row_group + slot);
            const FourFloats units = gather(unit, tables.centre_group + slot);
            std::memcpy(scratch.step + slot, &steps, sizeof steps);
            for (int half = 0; half < 2; ++half) {
                FourFloats code;
                if (wide)
                    code = __builtin_convertvector((halves[half] << (24 - 8 * b)) >> 24, FourFloats);
                else
                    code = __builtin_convertvector((halves[half] >> (8 * b)) & 15, FourFloats) - kLevels / 2.0f;
                const FourFloats base = code * units - steps * (kLevels / 2.0f);
                std::memcpy(scratch.base + 4 * (4 * (2 * i + half) + b), &base, sizeof base);
            }
        }
    }
}

// Logits of the rows that n vectors hold, from row r0 on, for `heads` query heads from g0.
template <class S, int heads, int n>
void row_block(const EstimateShape& shape, const std::byte* words, const float* log_tokens, int r0, int g0,
               const EstimateScratch& scratch) {
    typename S::Vec sums[heads][n];
    for (auto& row : sums)
        for (auto& sum : row) sum = S::set1(0.0f);
    const int slots = 32 * shape.words();
    const float* query = scratch.query + g0 * slots;
    const float *step = scratch.step, *base = scratch.base;
    for (int i = 0; i < shape.words(); ++i, step += 16, words += 4 * shape.block_rows * shape.columns) {
        typename S::Words loaded[n];
        for (int v = 0; v < n; ++v) loaded[v] = S::load_words(words + 4 * v * S::width);
        for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 4
            for (int b = 0; b < 4; ++b, base += 4, query += 4) {
                const auto steps = S::repeat(step + 4 * b), bases = S::repeat(base);
                typename S::Vec row[n];
                for (int v = 0; v < n; ++v) row[v] = S::fma(S::nibbles(loaded[v], 8 * b + 4 * half), steps, bases);
                for (int g = 0; g < heads; ++g) {
                    const auto q = S::repeat(query + g * slots);
                    for (int v = 0; v < n; ++v) sums[g][v] = S::fma(row[v], q, sums[g][v]);
                }
            }
        }
    }
    float* logits = scratch.logits + r0 * shape.padded_group() + g0;
    if (shape.columns == kWordColumns) {
        for (int g = 0; g < heads; g += 4) {
            for (int v = 0; v < n; ++v) {
                typename S::Vec four_heads[4];
                for (int k = 0; k < 4; ++k) four_heads[k] = g + k < heads ? sums[g + k][v] : S::set1(0.0f);
                float lanes[S::width];
                S::store(lanes, S::sum_fours(four_heads[0], four_heads[1], four_heads[2], four_heads[3]));
                for (int r = 0; r < S::width / 4; ++r) {
                    const int row = v * (S::width / 4) + r;
                    FourFloats four;
                    std::memcpy(&four, lanes + 4 * r, sizeof four);
                    four += log_tokens[r0 + row];
                    std::memcpy(logits + row * shape.padded_group() + g, &four, sizeof four);
                }
            }
        }
        return;
    }
    for (int g = 0; g < heads; ++g) {
        float lanes[n * S::width];
        for (int v = 0; v < n; ++v) S::store(lanes + v * S::width, sums[g][v]);
        for (int r = 0; r < n * S::width / 2; ++r)
            logits[r * shape.padded_group() + g] = lanes[2 * r] + lanes[2 * r + 1] + log_tokens[r0 + r];
    }
}

// LSE over the rows, the query heads side by side, less the noise.
template <class S>
void reduce_rows(const EstimateShape& shape, const float* step, const EstimateScratch& scratch, float* lse) {
    const int rows = shape.rows(), stride = shape.padded_group();
    for (int g = 0; g < shape.group; g += S::width) {
        const float* logits = scratch.logits + g;
        auto top = S::load(logits);
        for (int r = 1; r < rows; ++r) top = S::max(S::load(logits + r * stride), top);
        auto sum = S::set1(0.0f);
        for (int r = 0; r < rows; ++r)
            sum = S::add(sum, exp_up_to_slack<S>(S::sub(S::load(logits + r * stride), top)));
        auto noise = S::set1(0.0f);
        for (int k = 0; k < kScaleGroups; ++k)
            noise = S::fma(S::load(scratch.energy + k * stride + g), S::set1(step[k] * step[k]), noise);
        float sums[S::width];
        S::store(sums, sum);
        for (int i = 0; i < S::width && g + i < shape.group; ++i) sums[i] = std::log(sums[i]);
        S::store(lse + g, S::add(S::load(sums), S::sub(top, noise)));
    }
}

template <class S>
void estimate_page(const EstimateShape& shape, const EstimateTables& tables, const std::byte* page,
                   const float* log_tokens, EstimateScratch& scratch, float* lse) {
    float step[kScaleGroups];
    const auto* codes = reinterpret_cast<const uint8_t*>(page) + shape.scales_offset;
    for (int k = 0; k < kScaleGroups; ++k) step[k] = tables.scales[codes[k]];
    open_page(shape, tables, page, step, scratch);
    const int side_by_side = shape.block_rows * shape.columns;
    const std::byte* block = page;
    for (int r0 = 0; r0 < shape.rows(); r0 += shape.block_rows, block += shape.block_rows * shape.dim / 2) {
        for_each_chunk<S::group_chunk>(shape.group, [&](int g0, auto heads) {
            for (int word = 0; word < side_by_side;) {
                const int n = side_by_side - word >= 2 * S::width ? 2 : 1;
                with_constant<2>(n, [&](auto vectors) {
                    row_block<S, decltype(heads)::get, decltype(vectors)::get>(
                        shape, block + 4 * word, log_tokens, r0 + word / shape.columns, g0, scratch);
                });
                word += n * S::width;
            }
        });
    }
    reduce_rows<S>(shape, step, scratch, lse);
}

template <class S>
bool takes(const EstimateShape& shape) {
    return shape.block_rows * shape.columns >= S::width;
}

}  // namespace
}  // namespace rheo
