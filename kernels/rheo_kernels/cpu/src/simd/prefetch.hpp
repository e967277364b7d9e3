// prefetch: brings the next page in, one line for each line of the present page that is consumed.
#pragma once

#include <cstddef>

namespace rheo {
namespace {

// Pages are scattered blocks of a few KB: the hardware prefetchers lose the stream at the end of each, and
// the softmax between K and V stalls the loads. Asking for one line of the next page per line consumed keeps
// the number of lines in flight even over the whole page; a variant that spends long between K and V asks there, too.
class Prefetcher {
  public:
    Prefetcher(const std::byte* block, size_t bytes) : line_(block), end_(block + bytes) {}

    template <int bytes>
    void advance() {
        if (line_ >= end_) return;
        for (int offset = 0; offset < bytes; offset += 64) __builtin_prefetch(line_ + offset, 0, kLocality);
        line_ += bytes;
    }

    void finish() {
        while (line_ < end_) advance<64>();
    }

  private:
    // Into L2: with the next page in L1 as well, a page takes longer (docs/kernels.md).
    static constexpr int kLocality = 2;
    const std::byte* line_;
    const std::byte* end_;
};

}  // namespace
}  // namespace rheo
