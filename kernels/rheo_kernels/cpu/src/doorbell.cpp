#include "doorbell.hpp"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <chrono>

#include "pool.hpp"
#include "start_thread.hpp"

namespace rheo {
namespace {

// The thread spins for so long after a task, which is longer than the time between two decode steps without a prefill.
// The attending threads stay awake for as long, so that a layer that rarely offloads need not wait until they wake up.
constexpr std::chrono::milliseconds kSpinTime{20};
// A server that has not signalled for so long is idle.
constexpr std::chrono::milliseconds kIdle{1000};
constexpr timespec kNap{0, 50'000}, kIdleNap{0, 1'000'000};
constexpr int kSpinsPerLook = 256;

}  // namespace

Doorbell::Doorbell(uint32_t* words, int tasks)
    : words_(words), count_(tasks), tasks_(new std::atomic<Attention*>[tasks] {}) {
    const uint32_t seen = std::atomic_ref(words_[kSignal]).load(std::memory_order_acquire);
    static_assert(kSignal % 2 == 0 && kRequests == kSignal + 1, "they are read as one");
    thread_ = start_thread("the doorbell's thread", [this, seen] { serve(seen); });
}

void Doorbell::close() {
    closing_.store(true);
    if (thread_.joinable()) thread_.join();
}

void Doorbell::serve(uint32_t seen) {
    pthread_setname_np(pthread_self(), "rheo-doorbell");
    cpu_set_t mask;
    CPU_ZERO(&mask);
    CPU_SET(Pool::instance().placement().front(), &mask);
    pthread_setaffinity_np(pthread_self(), sizeof mask, &mask);

    std::atomic_ref<uint64_t> signal(*reinterpret_cast<uint64_t*>(words_ + kSignal));
    std::atomic_ref<uint32_t> completed(words_[kCompleted]);
    auto last = std::chrono::steady_clock::now();
    bool napping = false;
    for (int spins = 1; !closing_.load(std::memory_order_relaxed); ++spins) {
        const uint64_t now = signal.load(std::memory_order_acquire);
        const auto sequence = static_cast<uint32_t>(now);
        if (sequence != seen) {
            seen = sequence;
            const auto begin = std::chrono::steady_clock::now();
            Attention* const attention = tasks_[(sequence - 1) % count_].load(std::memory_order_acquire);
            const int late = attention ? attention->run(static_cast<int>(now >> 32), sequence, kSpinTime) : 0;
            completed.store(sequence, std::memory_order_release);
            last = std::chrono::steady_clock::now();
            napping = false;
            signals_.fetch_add(1, std::memory_order_relaxed);
            late_threads_.fetch_add(late, std::memory_order_relaxed);
            busy_ns_.fetch_add(std::chrono::nanoseconds(last - begin).count(), std::memory_order_relaxed);
            continue;
        }
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
        if (spins % kSpinsPerLook != 0 && !napping) continue;
        const auto silence = std::chrono::steady_clock::now() - last;
        napping = silence > kSpinTime;
        if (napping) nanosleep(silence > kIdle ? &kIdleNap : &kNap, nullptr);
    }
}

}  // namespace rheo
