#include "doorbell.hpp"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <chrono>
#include <csignal>

#include "pool.hpp"

namespace rheo {
namespace {

// Longer than what lies between two decode steps, prefills apart, which threads that attend stay awake for, too: a layer
// that rarely has a part for the CPU must not wait until they are; and when a server counts as idle.
constexpr std::chrono::milliseconds kPatience{20}, kIdle{1000};
constexpr timespec kNap{0, 50'000}, kIdleNap{0, 1'000'000};
constexpr int kSpinsPerLook = 256;

}  // namespace

Doorbell::Doorbell(uint32_t* words, int tasks)
    : words_(words), count_(tasks), tasks_(new std::atomic<Attention*>[tasks] {}) {
    // Python's signal handlers belong on its own threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const uint32_t seen = std::atomic_ref(words_[kRung]).load(std::memory_order_acquire);
    static_assert(kRung % 2 == 0 && kRequests == kRung + 1, "they are read as one");
    thread_ = std::thread([this, seen] { serve(seen); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
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

    std::atomic_ref<uint64_t> rung(*reinterpret_cast<uint64_t*>(words_ + kRung));
    std::atomic_ref<uint32_t> answered(words_[kAnswered]);
    auto heard = std::chrono::steady_clock::now();
    bool napping = false;
    for (int spins = 1; !closing_.load(std::memory_order_relaxed); ++spins) {
        const uint64_t ring = rung.load(std::memory_order_acquire);
        const auto now = static_cast<uint32_t>(ring);
        if (now != seen) {
            seen = now;
            const auto begin = std::chrono::steady_clock::now();
            Attention* const attention = tasks_[(now - 1) % count_].load(std::memory_order_acquire);
            const int late = attention ? attention->run(static_cast<int>(ring >> 32), now, kPatience) : 0;
            answered.store(now, std::memory_order_release);
            heard = std::chrono::steady_clock::now();
            napping = false;
            rings_.fetch_add(1, std::memory_order_relaxed);
            late_.fetch_add(late, std::memory_order_relaxed);
            busy_ns_.fetch_add(std::chrono::nanoseconds(heard - begin).count(), std::memory_order_relaxed);
            continue;
        }
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
        if (spins % kSpinsPerLook != 0 && !napping) continue;
        const auto silence = std::chrono::steady_clock::now() - heard;
        napping = silence > kPatience;
        if (napping) nanosleep(silence > kIdle ? &kIdleNap : &kNap, nullptr);
    }
}

}  // namespace rheo
