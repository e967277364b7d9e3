// workspace: every buffer of an attention call, allocated beforehand.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "page_kernel.hpp"

namespace rheo {

class Workspace {
  public:
    // Makes room for problems of this shape, rows = requests * KV heads, and number of threads; keeps what is
    // there if it is large enough.
    void reserve(const Shape&, int rows, int threads);

    int max_runs() const { return max_runs_; }
    Scratch& scratch(int participant) { return scratch_[participant]; }
    // Partials of a run: 0 for a row that an earlier run began, 1 for a row that a later run goes on with.
    State& partial(int run, int which) { return partials_[2 * run + which]; }
    // Pages listed before each row, [rows + 1].
    int64_t* offsets() { return offsets_.data(); }
    // Runs of a row that have arrived, [rows], 0 between calls.
    std::atomic<int32_t>* arrived() { return arrived_.get(); }

  private:
    std::byte* allocate(size_t bytes);

    bool fits(const Shape&, int rows, int threads) const;

    Shape shape_{};
    int rows_ = -1;
    int threads_ = 0;
    int max_runs_ = 0;
    std::vector<Scratch> scratch_;
    std::vector<State> partials_;
    std::vector<int64_t> offsets_;
    std::unique_ptr<std::atomic<int32_t>[]> arrived_;
    struct Free {
        void operator()(std::byte* memory) const;
    };
    std::vector<std::unique_ptr<std::byte, Free>> memory_;
};

}  // namespace rheo
