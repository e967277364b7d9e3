// pool: persistent threads pinned to cores that share out the chunks of one job at a time.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace rheo {

// The caller is participant 0 and works too; worker i is participant i + 1 and pinned to the CPU at i + 1 of
// placement_order(), which leaves the first for the caller (it is not pinned: the thread is not ours).
//
// Workers spin for a while after a job, so that what follows soon pays no wake-up, and then sleep on a futex, each on
// its own: those that jobs do without leave their cores to others. Every participant has
// a first chunk of its own, claimed in its own cache line, and takes others from a counter; the caller claims the
// first chunks of those that did not come, so that a worker that wakes late or lost its core delays nobody.
class Pool {
  public:
    using Body = void (*)(void* context, int participant, int chunk);

    static constexpr int kMaxThreads = 1024;

    // How long workers spin: longer than what lies between two layers, shorter than what an idle server should burn.
    static constexpr std::chrono::microseconds kBetweenLayers{1000};

    // The process's pool. It is never destroyed, so that its threads may outlive static destructors, and made
    // anew in a forked child, which inherits no threads.
    static Pool& instance();

    // CPUs of the affinity mask at the time the pool was made: how many, and the order in which they are used.
    int cpus() const { return static_cast<int>(placement_.size()); }
    const std::vector<int>& placement() const { return placement_; }

    // Starts threads, so that jobs of this many participants start none. At most kMaxThreads. Throws a sentence, as a
    // std::runtime_error, if the system has no more threads.
    void reserve(int participants);

    // Calls body(context, participant, chunk) once for every chunk of 0 .. chunks - 1 and returns when all
    // calls have: how many workers came too late for their first chunk. Afterwards workers spin for as long as `awake`
    // says. Jobs of concurrent callers run one after the other.
    int run(int participants, int chunks, Body body, void* context,
            std::chrono::microseconds awake = kBetweenLayers);

  private:
    // One cache line each: written by the worker, looked at by callers.
    struct alignas(64) Worker {
        std::atomic<uint32_t> inside{0};   // number of the job that it is at, 0 = none
        std::atomic<uint32_t> claimed{0};  // number of the latest job whose first chunk is taken
        std::atomic<uint32_t> asleep{0};   // 1 while it sleeps, or is about to
    };

    Pool();
    void work(int index);
    uint32_t wait_for_job(int index, uint32_t seen);
    static void wake(Worker& worker);
    bool claim_first(int index, uint32_t job);
    void take_shared(int participant);

    std::vector<int> placement_;
    std::mutex one_job_;
    const std::unique_ptr<Worker[]> workers_;
    std::atomic<int> size_{0};  // workers started

    // One cache line, which is all that a worker reads to begin.
    struct alignas(64) Job {
        std::atomic<uint32_t> epoch{0};  // number of the latest job
        std::atomic<uint32_t> open{0};   // number of the job that may be entered, 0 = none
        // Written between jobs only, while no worker is inside.
        Body body = nullptr;
        void* context = nullptr;
        int chunks = 0, firsts = 0;  // the first `firsts` chunks belong to one participant each
        std::atomic<int> helpers{0};
        std::atomic<std::chrono::microseconds> awake{kBetweenLayers};
    };

    Job job_;
    alignas(64) std::atomic<int> next_chunk_{0};
};

}  // namespace rheo
