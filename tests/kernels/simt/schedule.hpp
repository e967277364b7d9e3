// schedule: the order in which blocks, warps and lanes of a launch run, drawn from a seed.
//
// A few blocks are on the processor at a time, in the order of their index, as on a GPU. Only one of all threads of a launch
// runs at any time, so what races shows as another result under another seed, not as a torn word.
#pragma once

#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>

#include "transfers.hpp"

namespace simt {

constexpr int kGarbage = 0xcb;     // what shared memory holds before it is written: no index, no finite number
constexpr unsigned kManyIdle = 8;  // blocks of which none gets on, for each that runs, by which all are taken to be stuck
constexpr unsigned kLongestHeld = 7;  // the logarithm of the turns that a warp is held up for is below
constexpr auto kPatience = std::chrono::seconds(60);  // that all threads may poll for, with nothing else going on

inline unsigned char* take_stack() {
    if (launch->stacks.empty()) {
        void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stack == MAP_FAILED) throw std::bad_alloc();
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

// Every thread of a block that can runs once, but for a warp that is held up now and then. Whether any did more than poll.
inline bool step(Block& block) {
    const auto warps = static_cast<unsigned>(block.warps.size());
    const unsigned first = launch->draw(warps), turned = launch->draw(kLanes);
    if (block.held_for > 0) {
        --block.held_for;
    } else {
        block.held = launch->draw(warps);
        block.held_for = launch->draw(2) << launch->draw(kLongestHeld);
    }
    bool ran = false;
    for (unsigned i = 0; i < warps; ++i) {
        const unsigned warp = (first + i) % warps;
        if (warp == block.held && block.held_for > 0) continue;
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

template <typename Arguments>
void run_kernel(void (*kernel)(Arguments), const void* arguments, unsigned resident) {
    launch->kernel = [=] { kernel(*static_cast<const std::remove_cv_t<Arguments>*>(arguments)); };
    run_blocks(resident);
}

}  // namespace simt

// Launch with a struct of arguments. Writes what went wrong, if anything, into `error` and returns whether anything did.
#define SIMT_ENTRY(KERNEL)                                                                                             \
    extern "C" __attribute__((visibility("default"))) bool simt_launch(                                                \
        unsigned grid_x, unsigned grid_y, unsigned threads, int shared_bytes, const void* arguments, unsigned seed,    \
        unsigned resident, char* error, std::size_t room) {                                                            \
        simt::Launch launch;                                                                                           \
        launch.grid = {grid_x, grid_y, 1}, launch.threads = {threads, 1, 1};                                           \
        launch.shared_bytes = shared_bytes, launch.random.seed(seed), launch.lazy = launch.draw(2);                    \
        simt::launch = &launch;                                                                                        \
        simt::run_kernel(KERNEL, arguments, resident);                                                                 \
        std::strncpy(error, launch.error.c_str(), room - 1);                                                           \
        return !launch.error.empty();                                                                                  \
    }
