#include "attention.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "numeric.hpp"

namespace rheo {
namespace {

// Shorter runs balance better, but each may leave two partials to merge.
constexpr int64_t kPagesPerRun = 4;

// Words arrive within microseconds of the signal; if not, their writer is gone.
constexpr std::chrono::seconds kPatience{1};
constexpr int kSpinsPerLook = 1024;
constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();  // no pool has a page of that number

// Waits until a word has the tag, and returns its value; or `otherwise`, if that takes too long.
uint32_t await(const uint64_t& word, uint32_t tag, uint32_t otherwise) {
    const auto look = [&] { return std::atomic_ref(const_cast<uint64_t&>(word)).load(std::memory_order_acquire); };
    uint64_t now = look();
    if (now >> kTagShift == tag) [[likely]]
        return static_cast<uint32_t>(now);
    const auto begin = std::chrono::steady_clock::now();
    for (int spins = 1; now >> kTagShift != tag; now = look(), ++spins)
        if (spins % kSpinsPerLook == 0 && std::chrono::steady_clock::now() - begin > kPatience) return otherwise;
    return static_cast<uint32_t>(now);
}

const int32_t* row_of(const int32_t* array, int64_t request_stride, int64_t head_stride, int heads, int row) {
    return array + row / heads * request_stride + row % heads * head_stride;
}

const int32_t* index_of(const Problem& p, int row) {
    return row_of(p.index, p.index_request_stride, p.index_head_stride, p.shape.heads, row);
}

bool is_page(const Problem& p, int32_t index, int32_t valid) {
    return index >= 0 && index < p.num_blocks && valid > 0;
}

const int32_t* valid_of(const Problem& p, int row) {
    return row_of(p.valid, p.valid_request_stride, p.valid_head_stride, p.shape.heads, row);
}

// Sum of a query head's weights.
float sum_of(const State& state, int g) {
    return std::accumulate(state.sum + g * kSumLanes, state.sum + (g + 1) * kSumLanes, 0.0f);
}

}  // namespace

// Walks the listed pages of all rows in order.
class Attention::Cursor {
  public:
    Cursor(const Attention& attention, int row, int64_t skip)
        : problem_(attention.problem_), offsets_(attention.workspace_.offsets()), tag_(attention.tag_) {
        enter(row);
        if (problem_.entries)
            column_ += static_cast<int>(skip);
        else
            while (skip-- > 0) next();
    }

    // The next listed page; there must be one. Without tokens if it does not exist, which only entries say.
    Listed next() {
        for (;;) {
            while (column_ < last_) {
                const Listed page = problem_.entries ? entry(column_) : column(column_);
                ++column_;
                if (page.valid > 0 || problem_.entries) return page;
            }
            enter(row_ + 1);
        }
    }

  private:
    void enter(int row) {
        row_ = row;
        column_ = 0;
        if (problem_.entries) {
            entries_ = problem_.entries + static_cast<int64_t>(row) * problem_.columns;
            last_ = static_cast<int>(offsets_[row + 1] - offsets_[row]);
        } else {
            index_ = index_of(problem_, row);
            valid_ = valid_of(problem_, row);
            last_ = problem_.columns;
        }
    }

    Listed column(int at) const { return listed(index_[at], valid_[at]); }

    Listed entry(int at) const {
        const uint32_t value = await(entries_[at], tag_, kNone);
        return listed(static_cast<int32_t>(value >> kTokenBits), static_cast<int>(value % (1u << kTokenBits)) + 1);
    }

    Listed listed(int32_t index, int valid) const {
        if (!is_page(problem_, index, valid)) return {problem_.blocks, 0};
        const int64_t element =
            problem_.block_head_stride * (row_ % problem_.shape.heads) + problem_.block_stride * index;
        return {problem_.blocks + element * static_cast<int64_t>(element_size(problem_.shape.kv)),
                std::min(valid, problem_.shape.page_size)};
    }

    const Problem& problem_;
    const int64_t* offsets_;
    uint32_t tag_;
    int row_;
    int column_, last_;
    const uint64_t* entries_ = nullptr;
    const int32_t *index_ = nullptr, *valid_ = nullptr;
};

Attention::Attention(const Problem& problem, Workspace& workspace, int threads, std::optional<Isa> limit)
    : problem_(problem),
      workspace_(workspace),
      choice_(choose_kernel(problem.shape, limit)),
      threads_(threads) {
    workspace_.reserve(problem.shape, problem.max_batch * problem.shape.heads, threads);
    Pool::instance().reserve(threads);
}

int Attention::run(int batch, uint32_t tag, std::chrono::microseconds awake) noexcept {
    tag_ = tag;
    rows_ = std::clamp(batch, 0, problem_.max_batch) * problem_.shape.heads;
    total_ = count_pages(rows_);
    if (total_ == 0) return 0;
    const int64_t most = std::min<int64_t>(total_, static_cast<int64_t>(workspace_.max_runs()));
    runs_ =
        static_cast<int>(std::clamp<int64_t>(total_ / kPagesPerRun, std::min<int64_t>(threads_, most), most));
    const auto body = [](void* self, int participant, int run) {
        static_cast<Attention*>(self)->process(participant, run);
    };
    return Pool::instance().run(threads_, runs_, body, this, awake);
}

int64_t Attention::count_pages(int rows) {
    int64_t* offsets = workspace_.offsets();
    const int64_t num_blocks = problem_.num_blocks;
    int64_t total = 0;
    for (int row = 0; row < rows; ++row) {
        offsets[row] = total;
        int listed = 0, missing = 0;
        if (problem_.entries) {
            listed = static_cast<int>(
                std::min(await(problem_.counts[row], tag_, 0), static_cast<uint32_t>(problem_.columns)));
        } else {
            const int32_t* index = index_of(problem_, row);
            const int32_t* valid = valid_of(problem_, row);
            for (int column = 0; column < problem_.columns; ++column) {
                const bool attended = (index[column] >= 0) & (valid[column] > 0);
                const bool exists = index[column] < num_blocks;
                listed += attended & exists;
                missing += attended & !exists;
            }
        }
        total += listed;
        missing_blocks_ += missing;
        if (listed == 0) write_empty(row);
    }
    offsets[rows] = total;
    return total;
}

void Attention::write_empty(int row) {
    std::memset(problem_.out + row * problem_.row_elements(), 0, problem_.row_elements() * sizeof(float));
    std::fill_n(problem_.lse + static_cast<int64_t>(row) * problem_.shape.group, problem_.shape.group,
                -std::numeric_limits<float>::infinity());
}

void Attention::process(int participant, int run) {
    const int64_t* offsets = workspace_.offsets();
    const Shape& shape = problem_.shape;
    Scratch& scratch = workspace_.scratch(participant);
    int64_t position = begin_of(run);
    const int64_t begin = position, end = begin_of(run + 1);
    int row = static_cast<int>(std::upper_bound(offsets, offsets + rows_ + 1, position) - offsets) - 1;
    Cursor cursor(*this, row, position - offsets[row]);
    Listed page = cursor.next();

    if (choice_.kernel->begin) choice_.kernel->begin(shape);
    for (; position < end; ++row) {
        const int64_t row_begin = offsets[row], row_end = offsets[row + 1];
        if (row_begin == row_end) continue;
        const bool whole = row_begin >= begin && row_end <= end;
        State& state = whole ? scratch.state : workspace_.partial(run, row_begin < begin ? 0 : 1);
        std::fill_n(state.shift, shape.group, -std::numeric_limits<float>::infinity());
        std::fill_n(state.sum, shape.group * kSumLanes, 0.0f);
        std::memset(state.mixed, 0, problem_.row_elements() * sizeof(float));
        load_query(row, scratch);
        if (choice_.kernel->open) choice_.kernel->open(shape, scratch);
        for (const int64_t stop = std::min(row_end, end); position < stop; ++position) {
            const Listed next = position + 1 < end ? cursor.next() : page;
            if (page.valid > 0)
                choice_.kernel->attend(shape, {page.block, next.block, page.valid}, scratch, state);
            else
                missing_blocks_.fetch_add(1, std::memory_order_relaxed);
            page = next;
        }
        if (choice_.kernel->close) choice_.kernel->close(shape, scratch, state);
        if (whole)
            finish(row, state);
        else
            arrive(row, participant);
    }
    if (choice_.kernel->end) choice_.kernel->end();
}

void Attention::load_query(int row, Scratch& scratch) const {
    const Shape& shape = problem_.shape;
    const int request = row / shape.heads, head = row % shape.heads;
    const size_t padded = (shape.dim + 31) / 32 * 32;
    for (int g = 0; g < shape.group; ++g) {
        const int64_t element = request * problem_.query_request_stride +
                                (static_cast<int64_t>(head) * shape.group + g) * problem_.query_head_stride;
        const std::byte* source = problem_.query + element * static_cast<int64_t>(element_size(shape.query));
        float* query = scratch.query + g * shape.dim;
        if (shape.query == Dtype::float32) {
            std::memcpy(query, source, shape.dim * sizeof(float));
            continue;
        }
        const auto* narrow = reinterpret_cast<const uint16_t*>(source);
        if (shape.query == Dtype::bfloat16) {
            std::memcpy(scratch.query_bf16 + g * padded, narrow, shape.dim * sizeof(uint16_t));
            for (int d = 0; d < shape.dim; ++d) query[d] = bfloat16_to_float(narrow[d]);
        } else {
            for (int d = 0; d < shape.dim; ++d) query[d] = float16_to_float(narrow[d]);
        }
    }
}

void Attention::finish(int row, const State& state) {
    const Shape& shape = problem_.shape;
    for (int g = 0; g < shape.group; ++g) {
        const int64_t query = static_cast<int64_t>(row) * shape.group + g;
        const float sum = sum_of(state, g);
        const float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
        const float* mixed = state.mixed + g * shape.dim;
        float* out = problem_.out + query * shape.dim;
        for (int d = 0; d < shape.dim; ++d) out[d] = mixed[d] * factor;
        problem_.lse[query] = state.shift[g] + std::log(sum);
    }
}

// Counts the runs of a row that are ready; the last one merges them.
void Attention::arrive(int row, int participant) {
    const int64_t* offsets = workspace_.offsets();
    const int first = run_of(offsets[row]), last = run_of(offsets[row + 1] - 1);
    std::atomic<int32_t>& arrived = workspace_.arrived()[row];
    if (arrived.fetch_add(1, std::memory_order_acq_rel) < last - first) return;
    arrived.store(0, std::memory_order_relaxed);
    merge(row, first, last, workspace_.scratch(participant).state);
}

void Attention::merge(int row, int first_run, int last_run, State& total) {
    const Shape& shape = problem_.shape;
    const int64_t row_begin = workspace_.offsets()[row];
    const auto partial = [&](int run) -> const State& {
        return workspace_.partial(run, row_begin < begin_of(run) ? 0 : 1);
    };
    for (int g = 0; g < shape.group; ++g) {
        float top = -std::numeric_limits<float>::infinity();
        for (int run = first_run; run <= last_run; ++run) top = std::max(top, partial(run).shift[g]);
        float sum = 0.0f;
        float* mixed = total.mixed + g * shape.dim;
        std::fill_n(mixed, shape.dim, 0.0f);
        for (int run = first_run; run <= last_run; ++run) {
            const State& part = partial(run);
            const float part_sum = sum_of(part, g);
            const float weight = part_sum > 0.0f ? std::exp(part.shift[g] - top) : 0.0f;
            sum += weight * part_sum;
            for (int d = 0; d < shape.dim; ++d) mixed[d] += weight * part.mixed[g * shape.dim + d];
        }
        total.shift[g] = top;
        std::fill_n(total.sum + g * kSumLanes, kSumLanes, 0.0f);
        total.sum[g * kSumLanes] = sum;
    }
    finish(row, total);
}

}  // namespace rheo
