// fibers: the threads of a launch, each a fiber, and the order in which they run, drawn from a seed.
//
// A few blocks are on the processor at a time, in the order of their index, as on a GPU. A thread runs until it waits for
// others or polls memory. Only one of all threads of a launch runs at any time, so what races shows as another result
// under another seed, not as a torn word. What the hardware does on its own, bulk copies and posted writes to the host,
// it does now and then, or, in every second launch, only when no thread can go on without.
#pragma once

#include <sched.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
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
constexpr int kGarbage = 0xcb;     // what shared memory holds before it is written: no index, no finite number
constexpr unsigned kManyIdle = 8;  // blocks of which none gets on, for each that runs, by which all are taken to be stuck
constexpr auto kPatience = std::chrono::seconds(60);  // that all threads may poll for, with nothing else going on

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

inline unsigned char* take_stack() {
    if (launch->stacks.empty()) {
        void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) return nullptr;
        return static_cast<unsigned char*>(stack);
    }
    unsigned char* const stack = launch->stacks.back();
    launch->stacks.pop_back();
    return stack;
}

inline std::unique_ptr<Block> begin_block(unsigned number) {
    auto block = std::make_unique<Block>();
    block->index = {number % launch->grid.x, number / launch->grid.x, 0};
    block->statics.assign(__stop_simt_shared - __start_simt_shared, kGarbage);
    block->dynamic.assign(launch->shared_bytes, kGarbage);
    block->warps.resize(launch->threads.x / kLanes);
    block->live = static_cast<int>(launch->threads.x);
    for (unsigned i = 0; i < launch->threads.x; ++i) {
        Fiber& fiber = block->fibers.emplace_back();
        fiber.block = block.get();
        fiber.warp = &block->warps[i / kLanes];
        fiber.thread = {i, 0, 0};
        fiber.stack = take_stack();
    }
    return block;
}

inline void complete(Arrival& arrival) {
    if (arrival.bytes != 0 || arrival.left != 0) return;
    arrival.left = 1;
    arrival.phase ^= 1;
}

inline void read(Transfer& transfer) {
    if (transfer.read) return;
    transfer.content.assign(transfer.source, transfer.source + transfer.bytes);
    transfer.read = true;
}

inline void write(Transfer& transfer) {
    read(transfer);
    if (transfer.written) return;
    std::memcpy(transfer.target, transfer.content.data(), transfer.bytes);
    transfer.written = true;
    if (transfer.arrival == nullptr) return;
    transfer.arrival->bytes -= transfer.bytes;
    complete(*transfer.arrival);
}

// Some bulk copies of a block get on, or one if no thread of the launch could. Whether any did.
inline bool move_transfers(Block& block, bool stuck) {
    auto& transfers = block.transfers;
    if (transfers.empty() || (launch->lazy && !stuck)) return false;
    const auto get_on = [](Transfer& transfer) { transfer.read ? write(transfer) : read(transfer); };
    bool moved = stuck;
    if (stuck) get_on(transfers[launch->draw(static_cast<unsigned>(transfers.size()))]);
    for (auto& transfer : transfers)
        if (!stuck && launch->draw(4) == 0) get_on(transfer), moved = true;
    std::erase_if(transfers, [](const Transfer& transfer) { return transfer.written; });
    return moved;
}

// The same for words on their way to the host, which wait for bulk copies in a lazy launch.
inline bool move_posted(bool stuck) {
    auto& posted = launch->posted;
    if (posted.empty() || (!stuck && (launch->lazy || launch->draw(4) != 0))) return false;
    for (unsigned some = 1 + launch->draw(static_cast<unsigned>(posted.size())); some > 0; --some) {
        std::swap(posted[launch->draw(static_cast<unsigned>(posted.size()))], posted.back());
        __atomic_store_n(posted.back().to, posted.back().word, __ATOMIC_RELAXED);
        posted.pop_back();
    }
    return true;
}

// Every thread of a block that can runs once, of most warps. Whether any did more than poll.
inline bool step(Block& block) {
    const auto warps = static_cast<unsigned>(block.warps.size());
    const unsigned first = launch->draw(warps), skipped = launch->draw(2 * warps), turned = launch->draw(kLanes);
    bool ran = false;
    for (unsigned i = 0; i < warps; ++i) {
        const unsigned warp = (first + i) % warps;
        if (warp == skipped) continue;
        for (unsigned j = 0; j < kLanes; ++j) {
            Fiber& fiber = block.fibers[warp * kLanes + (j ^ turned)];
            if (fiber.ended || !fiber.ready()) continue;
            const bool polled = fiber.polls;
            run(fiber);
            if (!launch->error.empty()) return true;
            ran = ran || !polled || !fiber.polls;
        }
    }
    return ran;
}

inline void end_block(Block& block) {
    for (auto& transfer : block.transfers) {
        if (transfer.arrival != nullptr || !transfer.read)
            if (launch->error.empty()) launch->error = "a block ended while bulk copies used its shared memory";
        write(transfer);
    }
}

// Run a launch of up to `resident` blocks at a time to its end.
inline void run_blocks(unsigned resident) {
    const unsigned blocks = launch->grid.x * launch->grid.y;
    std::vector<std::unique_ptr<Block>> running;
    unsigned begun = 0, idle = 0;  // blocks in a row of which none got on
    auto moved = std::chrono::steady_clock::now();
    while ((begun < blocks || !running.empty()) && launch->error.empty()) {
        while (running.size() < resident && begun < blocks) running.push_back(begin_block(begun++));
        const unsigned chosen = launch->draw(static_cast<unsigned>(running.size()));
        Block& block = *running[chosen];
        std::copy(block.statics.begin(), block.statics.end(), __start_simt_shared);
        const bool stuck = idle > kManyIdle * running.size();
        const bool copies = std::any_of(running.begin(), running.end(), [](auto& each) { return !each->transfers.empty(); });
        bool ran = move_transfers(block, stuck) || move_posted(stuck && !copies);
        for (unsigned rounds = 1 + launch->draw(16); rounds > 0 && block.live > 0 && launch->error.empty(); --rounds) {
            if (!step(block)) break;
            ran = true;
            move_transfers(block, false);
        }
        std::copy(__start_simt_shared, __stop_simt_shared, block.statics.begin());
        idle = ran ? 0 : idle + 1;
        const auto now = std::chrono::steady_clock::now();
        if (ran) moved = now;
        if (now - moved > kPatience && launch->error.empty())
            launch->error = "no thread gets on: they wait for each other, or for an answer that does not come";
        if (stuck) sched_yield();
        if (block.live > 0) continue;
        end_block(block);
        for (auto& fiber : block.fibers) launch->stacks.push_back(fiber.stack);
        running.erase(running.begin() + chosen);
        moved = now;
    }
    while (move_posted(true)) {}
    for (auto& block : running)
        for (auto& fiber : block->fibers) launch->stacks.push_back(fiber.stack);
    for (unsigned char* stack : launch->stacks) munmap(stack, kStackBytes);
}

}  // namespace simt
