// attention: one attention call over listed pages: split over threads by pages, reduced by LSE.
#pragma once

#include <atomic>
#include <optional>

#include "isa.hpp"
#include "pool.hpp"
#include "problem.hpp"
#include "workspace.hpp"

namespace rheo {

// The pages listed for all requests and heads are one flat list, cut into even runs that the threads take. A
// run reduces its pages to one (max, sum, weighted V) per row (request and KV head); a row that lies in one
// run is finished there, others are merged from the partials of their runs by whichever thread comes last.
class Attention {
  public:
    // Threads beyond what the problem can use cost nothing. The workspace must outlive the object.
    Attention(const Problem&, Workspace&, int threads, std::optional<Isa> limit);

    // Attends for this many requests, whose words have this tag, and returns how many threads were late. Afterwards
    // threads stay awake for a while. Does not allocate, throw, or touch Python. One call at a time.
    int run(int batch, uint32_t tag, std::chrono::microseconds awake = Pool::kBetweenLayers) noexcept;
    // The same for as many requests as `Problem::batch` says, whose words, if there are any, have the tag 0.
    int run() noexcept { return run(*problem_.batch, 0); }

    Isa isa() const { return choice_.isa; }
    int threads() const { return threads_; }
    // Listed blocks that do not exist, in the calls so far; they were left out.
    int64_t missing_blocks() const { return missing_blocks_; }

  private:
    struct Listed {
        const std::byte* block;
        int valid;
    };
    class Cursor;

    int64_t count_pages(int rows);
    void write_empty(int row);
    void process(int participant, int run);
    void load_query(int row, Scratch&) const;
    void finish(int row, const State&);
    void arrive(int row, int participant);
    void merge(int row, int first_run, int last_run, State& total);
    int64_t begin_of(int run) const { return total_ * run / runs_; }
    int run_of(int64_t page) const { return static_cast<int>(((page + 1) * runs_ - 1) / total_); }

    Problem problem_;
    Workspace& workspace_;
    Choice choice_;
    int threads_;
    uint32_t tag_ = 0;
    int rows_ = 0;
    int runs_ = 0;
    int64_t total_ = 0;
    std::atomic<int64_t> missing_blocks_ = 0;
};

}  // namespace rheo
