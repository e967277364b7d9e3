#include "estimate.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "numeric.hpp"
#include "pool.hpp"

namespace rheo {
namespace {

constexpr int kPagesPerRun = 64;
constexpr int kLineBytes = 64;

// Of each request and KV head.
int runs_of(const EstimateProblem& problem) {
    return (problem.width + kPagesPerRun - 1) / kPagesPerRun;
}

// The vectors of one allocation, each at a multiple of a cache line.
class Arena {
  public:
    explicit Arena(size_t floats) : memory_(floats + kLineFloats) {
        const auto address = reinterpret_cast<uintptr_t>(memory_.data()) / sizeof(float);
        next_ = memory_.data() + (kLineFloats - address % kLineFloats) % kLineFloats;
    }
    static constexpr size_t size_of(size_t floats) { return (floats + kLineFloats - 1) / kLineFloats * kLineFloats; }
    float* take(size_t floats) {
        float* taken = next_;
        next_ += size_of(floats);
        return taken;
    }

  private:
    static constexpr size_t kLineFloats = kLineBytes / sizeof(float);
    std::vector<float> memory_;
    float* next_;
};

// A scale is the upper half of a positive float16, but for the bit below its sign.
std::array<float, 256> make_scales() {
    std::array<float, 256> scales;
    for (int code = 0; code < 256; ++code) scales[code] = float16_to_float(static_cast<uint16_t>(code << 7));
    return scales;
}

class Estimation {
  public:
    Estimation(const EstimateProblem& problem, int threads, std::optional<Isa> limit)
        : problem_(problem), shape_(problem.shape), function_(choose_estimate(problem.shape, limit)), runs_(runs_of(problem)) {
        const int slots = 16 * shape_.words();
        for (int slot = 0; slot < slots; ++slot) {
            const int d = dimension(slot / 16, slot / 4 % 4, slot % 4);
            row_group_.push_back(static_cast<uint8_t>(d / (shape_.dim / 2 / kScaleGroups)));
            centre_group_.push_back(static_cast<uint8_t>(d / (shape_.dim / 2 / kCentreGroups)));
        }
        tables_ = {scales_.data(), row_group_.data(), centre_group_.data()};
        const size_t group = shape_.group, padded = shape_.padded_group();
        const std::array<size_t, 6> sizes{group * 2 * slots,    kScaleGroups * padded,
                                          size_t(slots),        size_t(2 * slots),
                                          shape_.rows() * padded, size_t(shape_.rows())};
        size_t total = 0;
        for (size_t size : sizes) total += Arena::size_of(size);
        for (int thread = 0; thread < threads; ++thread) {
            Arena& arena = arenas_.emplace_back(total);
            float* parts[6];
            for (int part = 0; part < 6; ++part) parts[part] = arena.take(sizes[part]);
            scratch_.push_back({{parts[0], parts[1], parts[2], parts[3], parts[4]}, parts[5]});
        }
    }

    int64_t run(int threads) {
        const auto body = [](void* self, int participant, int run) {
            static_cast<Estimation*>(self)->process(participant, run);
        };
        Pool::instance().run(threads, problem_.batch * problem_.heads * runs_, body, this);
        return missing_;
    }

  private:
    struct Buffers {
        EstimateScratch kernel;
        float* log_tokens;
    };

    // The dimension in the low half of byte b of word i of a lane's run; that in its high half is D / 2 beyond.
    int dimension(int i, int b, int lane) const {
        return 4 * (lane % shape_.columns * shape_.words() + i) + b;
    }

    void load_query(int row, EstimateScratch& scratch) const {
        const int half_dim = shape_.dim / 2, padded = shape_.padded_group();
        std::fill_n(scratch.energy, kScaleGroups * padded, 0.0f);
        float* slots = scratch.query;
        int first[kWordColumns];
        for (int lane = 0; lane < kWordColumns; ++lane) first[lane] = dimension(0, 0, lane);
        for (int g = 0; g < shape_.group; ++g) {
            const float* query = problem_.query + (static_cast<int64_t>(row) * shape_.group + g) * shape_.dim;
            for (int i = 0; i < shape_.words(); ++i)
                for (int half = 0; half < 2; ++half)
                    for (int b = 0; b < 4; ++b)
                        for (int lane = 0; lane < kWordColumns; ++lane)
                            *slots++ = query[first[lane] + 4 * i + b + half * half_dim] * problem_.scale;
            const int width = half_dim / kScaleGroups;
            for (int k = 0; k < kScaleGroups; ++k) {
                float sum = 0.0f;
                for (int d = k * width; d < (k + 1) * width; ++d)
                    sum += query[d] * query[d] + query[half_dim + d] * query[half_dim + d];
                scratch.energy[k * padded + g] = sum * problem_.scale * problem_.scale / 24.0f;
            }
        }
    }

    // Logarithms of the tokens of every row of a page that holds `count`.
    void load_tokens(int count, float* log_tokens) const {
        for (int row = 0; row < shape_.rows(); ++row)
            log_tokens[row] = std::log(
                static_cast<float>(std::clamp(count - row * shape_.row_tokens, 0, shape_.row_tokens)));
    }

    void prefetch(const std::byte* summary) const {
        const int bytes = shape_.scales_offset + kScaleGroups + kCentreGroups;
        for (int byte = 0; byte < bytes + kLineBytes; byte += kLineBytes) __builtin_prefetch(summary + byte);
    }

    void process(int participant, int run) {
        const int row = run / runs_, request = row / problem_.heads, head = row % problem_.heads;
        const int begin = run % runs_ * kPagesPerRun, end = std::min(begin + kPagesPerRun, problem_.width);
        const int tokens = std::max(problem_.seq_lens[request], 0), size = shape_.page_size;
        const int stop = std::clamp(tokens / size + (tokens % size != 0), begin, end);
        float* lse = problem_.lse + static_cast<int64_t>(row) * shape_.group * problem_.width;
        const auto write_none = [&](int first, int last) {
            for (int g = 0; g < shape_.group; ++g)
                std::fill(lse + int64_t(g) * problem_.width + first, lse + int64_t(g) * problem_.width + last,
                          -std::numeric_limits<float>::infinity());
        };
        write_none(stop, end);
        if (stop == begin) return;

        Buffers& buffers = scratch_[participant];
        load_query(row, buffers.kernel);
        load_tokens(size, buffers.log_tokens);
        const int32_t* pages = problem_.pages + static_cast<int64_t>(request) * problem_.width;
        const std::byte* summaries = problem_.summaries + head * problem_.summary_head_stride;
        const auto exists = [&](int32_t page) { return page >= 0 && page < problem_.num_pages; };
        std::vector<float> found(shape_.padded_group());
        for (int place = begin; place < stop; ++place) {
            if (place + 1 < stop && exists(pages[place + 1]))
                prefetch(summaries + pages[place + 1] * problem_.summary_stride);
            if (!exists(pages[place])) {
                missing_.fetch_add(1, std::memory_order_relaxed);
                write_none(place, place + 1);
                continue;
            }
            if (tokens - place * size < size) load_tokens(tokens - place * size, buffers.log_tokens);
            function_(shape_, tables_, summaries + pages[place] * problem_.summary_stride, buffers.log_tokens,
                      buffers.kernel, found.data());
            for (int g = 0; g < shape_.group; ++g) lse[int64_t(g) * problem_.width + place] = found[g];
        }
    }

    const EstimateProblem& problem_;
    const EstimateShape& shape_;
    EstimateFunction function_;
    int runs_;
    std::array<float, 256> scales_ = make_scales();
    std::vector<uint8_t> row_group_, centre_group_;
    EstimateTables tables_;
    std::vector<Arena> arenas_;
    std::vector<Buffers> scratch_;
    std::atomic<int64_t> missing_ = 0;
};

}  // namespace

int64_t estimate_pages(const EstimateProblem& problem, int threads, std::optional<Isa> limit) {
    const int runs = problem.batch * problem.heads * runs_of(problem);
    if (runs == 0) return 0;
    threads = std::min(threads, runs);
    return Estimation(problem, threads, limit).run(threads);
}

}  // namespace rheo
