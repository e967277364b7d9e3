#include "read.hpp"

#include <algorithm>
#include <atomic>

#include "isa.hpp"
#include "pool.hpp"

namespace rheo {
namespace {

constexpr int64_t kRunsPerThread = 4;

struct Read {
    ReadFunction read;
    const std::byte* base;
    const int64_t* offsets;
    int64_t count;
    size_t bytes;
    int runs;
    bool prefetch;
    std::atomic<uint64_t> sum{0};

    void process(int run) {
        uint64_t part = 0;
        const int64_t end = count * (run + 1) / runs;
        for (int64_t i = count * run / runs; i < end; ++i) {
            const int64_t next = prefetch && i + 1 < end ? i + 1 : i;
            part += read(base + offsets[i], base + offsets[next], bytes);
        }
        sum += part;
    }
};

}  // namespace

uint64_t read_blocks(const std::byte* base, const int64_t* offsets, int64_t count, size_t bytes, int threads,
                     bool prefetch) {
    const int runs = static_cast<int>(std::min(count, kRunsPerThread * threads));
    Read job{choose_read(), base, offsets, count, bytes, runs, prefetch};
    const auto body = [](void* context, int, int run) { static_cast<Read*>(context)->process(run); };
    Pool::instance().run(threads, runs, body, &job);
    return job.sum;
}

}  // namespace rheo
