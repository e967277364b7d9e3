// doorbell: a thread that runs a task when a word of memory changes, and writes its completion to another.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "attention.hpp"

namespace rheo {

// A GPU signals by writing a new sequence number, together with the number of requests, to memory that both sides see, and
// goes on once it reads that sequence number as completed. Sequence number n stands for task (n - 1) modulo the number of
// tasks. The lists that the task attends may arrive after the signal, in words with the tag n. Each side writes only words
// of its own, so no atomic operation crosses the bus.
//
// The thread spins while signals follow each other as in decode steps, and polls now and then after a pause.
class Doorbell {
  public:
    // Positions of the words, a cache line for either side: the sequence number of the signal and, in the same double word,
    // the number of requests; and the sequence number that was completed last.
    static constexpr int kSignal = 0, kRequests = 1, kCompleted = 16, kWords = 32;

    // `words`, aligned to double words, stay valid until the doorbell is closed.
    Doorbell(uint32_t* words, int tasks);
    ~Doorbell() { close(); }

    // Ends the thread; a task that runs is finished first.
    void close();

    // Has signals for `task` run `attention`, which outlives the object.
    void assign(int task, Attention* attention) { tasks_[task].store(attention, std::memory_order_release); }

    // Signals completed, threads that were late in their tasks (see Pool::run), and nanoseconds that tasks took.
    uint64_t signals() const { return signals_.load(std::memory_order_relaxed); }
    uint64_t late_threads() const { return late_threads_.load(std::memory_order_relaxed); }
    uint64_t busy_ns() const { return busy_ns_.load(std::memory_order_relaxed); }

  private:
    void serve(uint32_t seen);

    uint32_t* const words_;
    const uint32_t count_;
    const std::unique_ptr<std::atomic<Attention*>[]> tasks_;
    std::atomic<uint64_t> signals_{0}, late_threads_{0}, busy_ns_{0};
    std::atomic<bool> closing_{false};
    std::thread thread_;
};

}  // namespace rheo
