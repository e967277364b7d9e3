// doorbell: a thread that runs tasks when a word of memory changes, and answers in another.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

#include "attention.hpp"

namespace rheo {

// A GPU rings by writing a new number, and with it for how many requests, to memory that both sides see, and goes on
// once it reads that number back. Ring n asks for task (n - 1) modulo the number of tasks; what that attends may come
// after the ring, in words that bear the tag n. Either side only ever writes its own words, so no atomic operation
// crosses the bus.
//
// The thread spins while rings follow each other as the layers of decode steps do, and looks every now and then when
// they have not for a while.
class Doorbell {
  public:
    // Positions of the words, a cache line for either side: the ring and, above it in one double word, the requests;
    // and the answer.
    static constexpr int kRung = 0, kRequests = 1, kAnswered = 16, kWords = 32;

    // `words`, aligned to double words, stay valid until the doorbell is closed.
    Doorbell(uint32_t* words, int tasks);
    ~Doorbell() { close(); }

    // Ends the thread; a task that runs is finished first.
    void close();

    // Has rings for `task` run `attention`, which outlives the object.
    void assign(int task, Attention* attention) { tasks_[task].store(attention, std::memory_order_release); }

    // Rings answered, threads that came late to them, and the nanoseconds that tasks took.
    uint64_t rings() const { return rings_.load(std::memory_order_relaxed); }
    uint64_t late() const { return late_.load(std::memory_order_relaxed); }
    uint64_t busy_ns() const { return busy_ns_.load(std::memory_order_relaxed); }

  private:
    void serve(uint32_t seen);

    uint32_t* const words_;
    const uint32_t count_;
    const std::unique_ptr<std::atomic<Attention*>[]> tasks_;
    std::atomic<uint64_t> rings_{0}, late_{0}, busy_ns_{0};
    std::atomic<bool> closing_{false};
    std::thread thread_;
};

}  // namespace rheo
