#include "pool.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "start_thread.hpp"
#include "topology.hpp"

namespace rheo {
namespace {

constexpr int kSpinsPerLook = 64;

std::atomic<Pool*> current{nullptr};

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Waits for what other running threads are about to do; yields now and then in case they have no core.
template <class Condition>
void spin_until(const Condition& condition) {
    for (int spins = 1; !condition(); ++spins) {
        pause();
        if (spins % kSpinsPerLook == 0) sched_yield();
    }
}

long futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
    return syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation | FUTEX_PRIVATE_FLAG, value,
                   nullptr, nullptr, 0);
}

// Named first: whoever moves the process's other threads knows this one by its name.
void name_and_pin(int index, int cpu) {
    pthread_setname_np(pthread_self(), ("rheo-cpu-" + std::to_string(index + 1)).c_str());
    cpu_set_t mask;
    CPU_ZERO(&mask);
    CPU_SET(cpu, &mask);
    pthread_setaffinity_np(pthread_self(), sizeof mask, &mask);
}

}  // namespace

Pool::Pool() : placement_(placement_order()), workers_(new Worker[kMaxThreads]) {}

Pool& Pool::instance() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
    (void)registered;
    Pool* pool = current.load(std::memory_order_acquire);
    if (pool) return *pool;
    auto fresh = std::unique_ptr<Pool>(new Pool);
    if (current.compare_exchange_strong(pool, fresh.get())) pool = fresh.release();
    return *pool;
}

void Pool::reserve(int participants) {
    const int wanted = std::min(participants, kMaxThreads) - 1;
    if (size_.load(std::memory_order_acquire) >= wanted) return;
    const std::lock_guard lock(one_job_);
    for (int index = size_.load(); index < wanted; ++index) {
        const std::string name = "thread " + std::to_string(index + 2) + " of " + std::to_string(wanted + 1);
        start_thread(name, [this, index] { work(index); }).detach();
        size_.store(index + 1, std::memory_order_release);
    }
}

uint32_t Pool::wait_for_job(int index, uint32_t seen) {
    Worker& self = workers_[index];
    const auto begin = std::chrono::steady_clock::now();
    const bool may_spin = size_.load(std::memory_order_relaxed) < cpus();
    for (int spins = 1;; ++spins) {
        const uint32_t epoch = job_.epoch.load(std::memory_order_acquire);
        if (epoch != seen) {
            if (index < job_.helpers.load(std::memory_order_relaxed)) return epoch;
            seen = epoch;
        }
        pause();
        if (may_spin && (spins % kSpinsPerLook != 0 || std::chrono::steady_clock::now() - begin <
                                                           job_.awake.load(std::memory_order_relaxed)))
            continue;
        self.asleep.store(1);
        if (job_.epoch.load() == seen) futex(self.asleep, FUTEX_WAIT, 1);
        self.asleep.store(0);
    }
}

void Pool::wake(Worker& worker) {
    if (worker.asleep.load() == 0) return;
    worker.asleep.store(0);
    futex(worker.asleep, FUTEX_WAKE, 1);
}

void Pool::work(int index) {
    name_and_pin(index, placement_[(index + 1) % placement_.size()]);
    Worker& self = workers_[index];
    for (uint32_t epoch = 0;;) {
        epoch = wait_for_job(index, epoch);
        // Announce first, then look whether the job is still open: its caller closes it first and then looks
        // who is inside, so one of the two sees the other.
        self.inside.store(epoch);
        if (job_.open.load() == epoch && index < job_.helpers.load(std::memory_order_relaxed)) {
            if (index + 1 < job_.firsts && claim_first(index, epoch)) job_.body(job_.context, index + 1, index + 1);
            take_shared(index + 1);
        }
        self.inside.store(0, std::memory_order_release);
    }
}

bool Pool::claim_first(int index, uint32_t job) {
    return workers_[index].claimed.exchange(job, std::memory_order_relaxed) != job;
}

void Pool::take_shared(int participant) {
    if (job_.firsts == job_.chunks) return;
    for (int chunk; (chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed)) < job_.chunks;)
        job_.body(job_.context, participant, chunk);
}

int Pool::run(int participants, int chunks, Body body, void* context, std::chrono::microseconds awake) {
    if (participants <= 1 || chunks <= 1) {
        for (int chunk = 0; chunk < chunks; ++chunk) body(context, 0, chunk);
        return 0;
    }
    try {
        reserve(participants);
    } catch (const std::runtime_error&) {
        // Where a thread is missing, the others do its part. Whoever can tell the user has reserved before.
    }
    const std::lock_guard lock(one_job_);
    const int firsts = std::min(participants, chunks);
    job_.body = body;
    job_.context = context;
    job_.chunks = chunks;
    job_.firsts = firsts;
    job_.helpers.store(participants - 1, std::memory_order_relaxed);
    job_.awake.store(awake, std::memory_order_relaxed);
    next_chunk_.store(firsts, std::memory_order_relaxed);
    uint32_t epoch = job_.epoch.load(std::memory_order_relaxed) + 1;
    if (epoch == 0) epoch = 1;
    job_.open.store(epoch);
    job_.epoch.store(epoch);
    for (int index = 0; index + 1 < participants; ++index) wake(workers_[index]);

    body(context, 0, 0);
    take_shared(0);
    int late = 0;
    for (int index = 0; index + 1 < firsts; ++index)
        if (claim_first(index, epoch)) body(context, 0, index + 1), ++late;
    // Every chunk is claimed, so that the job is done once nobody is inside.
    job_.open.store(0);
    for (int index = 0; index < size_.load(std::memory_order_relaxed); ++index)
        spin_until([&] { return workers_[index].inside.load() != epoch; });
    return late;
}

}  // namespace rheo
