// fibers: the threads of a launch, each a fiber that runs until it waits for others or polls memory.
#pragma once

#if defined(_FORTIFY_SOURCE) && _FORTIFY_SOURCE > 0
#error "With _FORTIFY_SOURCE, as some compilers define it, glibc aborts where longjmp leaves one stack for another."
#endif

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <vector>

struct uint3 {
    unsigned x, y, z;
};

// Bounds of the variables that are declared __shared__, if any.
extern "C" {
extern unsigned char __start_simt_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_simt_shared[] __attribute__((weak, visibility("hidden")));
}

namespace simt {

constexpr int kLanes = 32;
constexpr std::size_t kStackBytes = 128 << 10;

struct Block;

// Where `count` threads meet.
struct Meeting {
    int arrived = 0;
    unsigned passed = 0;
};

struct Warp {
    Meeting meeting;
    const char* what = "";                            // the lanes came for
    alignas(16) unsigned char words[2][kLanes][64];  // that they brought, of the latest two meetings
};

// A barrier of bulk copies, as it lies in shared memory.
struct Arrival {
    int bytes;           // still to come
    std::uint16_t left;  // arrivals still to come
    std::uint16_t phase;
};
static_assert(sizeof(Arrival) == 8);

struct Fiber {
    Block* block = nullptr;
    Warp* warp = nullptr;
    uint3 thread{};
    unsigned meetings = 0;  // of its warp so far
    bool started = false, ended = false, polls = false;
    const Meeting* meeting = nullptr;  // that it waits for
    unsigned passed = 0;
    const Arrival* arrival = nullptr;  // that it waits for
    unsigned phase = 0;
    unsigned char* stack = nullptr;
    ucontext_t context{};
    jmp_buf here{};

    int lane() const { return thread.x % kLanes; }
    bool ready() const {
        if (meeting != nullptr) return meeting->passed != passed;
        if (arrival != nullptr) return arrival->phase != phase;
        return !ended;
    }
};

// A bulk copy under way.
struct Transfer {
    Fiber* issuer;
    unsigned char* target;
    const unsigned char* source;
    int bytes;
    Arrival* arrival;  // of a copy into shared memory; null: out of it
    bool committed = false, read = false, written = false;
    std::vector<unsigned char> content{};
};

struct Block {
    uint3 index{};
    Meeting meeting;
    int live = 0;
    unsigned held = 0, held_for = 0;  // a warp that does not run, and for how many turns
    std::vector<unsigned char> statics, dynamic;
    std::deque<Fiber> fibers;
    std::vector<Warp> warps;
    std::deque<Transfer> transfers;
};

// A word on its way to the host's memory.
struct Posted {
    unsigned long long* to;
    unsigned long long word;
};

struct Launch {
    uint3 grid{}, threads{};
    int shared_bytes = 0;
    std::function<void()> kernel;
    std::mt19937 random;
    bool lazy = false;           // of bulk copies and posted writes
    std::vector<Posted> posted;  // arrive in any order
    std::vector<unsigned char*> stacks;  // free ones
    std::string error;
    jmp_buf scheduler{};

    unsigned draw(unsigned below) { return static_cast<unsigned>(random() % below); }
};

inline Launch* launch;
inline Fiber* current;

inline void leave() {
    if (_setjmp(current->here) == 0) _longjmp(launch->scheduler, 1);
}

// End the launch.
[[noreturn]] inline void fail(const std::string& what) {
    const uint3 block = current->block->index;
    if (launch->error.empty())
        launch->error = what + " (block " + std::to_string(block.x) + ", " + std::to_string(block.y) + ", thread " +
                        std::to_string(current->thread.x) + ")";
    current->ended = true;
    _longjmp(launch->scheduler, 1);
}

// Let others run.
inline void poll() {
    current->polls = true;
    leave();
    current->polls = false;
}

inline void meet(Meeting& meeting, int count) {
    const unsigned passed = meeting.passed;
    if (++meeting.arrived == count) {
        meeting.arrived = 0;
        ++meeting.passed;
        return;
    }
    current->meeting = &meeting;
    current->passed = passed;
    leave();
    current->meeting = nullptr;
}

inline void meet_block() {
    Block& block = *current->block;
    if (block.live != static_cast<int>(block.fibers.size())) fail("a barrier after a thread of the block has ended");
    meet(block.meeting, block.live);
}

// All lanes of the warp come for the same, each with a value: everybody's.
template <typename Value>
const Value* meet_warp(const char* what, const Value& mine) {
    static_assert(sizeof(Value) <= sizeof(Warp::words[0][0]));
    Warp& warp = *current->warp;
    if (warp.meeting.arrived == 0) warp.what = what;
    if (std::strcmp(warp.what, what) != 0) fail(std::string("lanes of a warp wait for ") + warp.what + " and for " + what);
    auto* const all = reinterpret_cast<Value*>(warp.words[current->meetings++ % 2]);
    std::memcpy(all + current->lane(), &mine, sizeof mine);
    meet(warp.meeting, kLanes);
    return all;
}

inline void begin_fiber() {
    launch->kernel();
    current->ended = true;
    --current->block->live;
    _longjmp(launch->scheduler, 1);
}

inline void run(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(launch->scheduler) != 0) return;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.context, begin_fiber, 0);
    setcontext(&fiber.context);
}

}  // namespace simt
