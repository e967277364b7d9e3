// read: the pure read of scattered blocks that attention is compared with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rheo {

// Reads `count` blocks of `bytes` bytes at base + offsets[i] with the widest loads this machine has, shared
// out over the pool's threads like the pages of an attention call. With `prefetch` each block is prefetched
// while the one before it is read. Returns the sum of their 64-bit words. `bytes` is a multiple of 128.
uint64_t read_blocks(const std::byte* base, const int64_t* offsets, int64_t count, size_t bytes, int threads,
                     bool prefetch);

}  // namespace rheo
