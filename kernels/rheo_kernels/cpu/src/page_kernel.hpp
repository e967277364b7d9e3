// page_kernel: what an instruction-set variant provides: attention of one GQA group to one page.
#pragma once

#include <cstddef>
#include <cstdint>

#include "shape.hpp"

namespace rheo {

// Rows of the per-group buffers are padded to whole AMX tiles.
constexpr int kTileRows = 16;
constexpr int kTilePairs = 16;
constexpr int kTileBytes = 1024;
constexpr int kMaxPageSize = 64;
// B operands of one step of AMX: two buffers of one row of tiles each.
constexpr int kTileScratchBytes = 2 * (kMaxPageSize / 16) * kTileBytes;

// Lanes of a head's sum: those of the widest vector, so that adding to it takes no step across lanes.
constexpr int kSumLanes = 16;

// The running softmax of one group over the pages seen so far: weights are exp(logit - shift), and the shift [G] is at
// most kSlack (softmax.hpp) below the largest logit; sum of weights [G, kSumLanes], a head's in all of its lanes
// together; mixed (weighted V) [G, D].
struct State {
    float* shift;
    float* sum;
    float* mixed;
};

// Buffers of one thread. The query is set once for each run of pages of a request and head.
struct Scratch {
    float* query;            // [G, D]
    uint16_t* query_bf16;    // [padded G, D padded to 32], zero outside [G, D]; only for bfloat16 queries
    float* logits;           // [padded G, P]: logits, then float32 weights
    uint16_t* weights_bf16;  // [padded G, P padded to 32], zero outside [G, P]
    std::byte* tiles;        // kTileScratchBytes
    float* fresh;            // two tiles: weighted V of one page and 32 elements
    float* mixed_tiles;      // [padded G, D] in tiles: State.mixed, while the tiles of a row are summed up
    State state;             // for runs whose row no other run shares
};

// One page, and the page that follows it in the list, which is prefetched meanwhile.
struct Page {
    const std::byte* block;
    const std::byte* next;
    int valid;  // tokens to attend, 1 .. P
};

// All but `attend` may be null.
struct PageKernel {
    void (*begin)(const Shape&);                              // before a run of pages on a thread
    void (*open)(const Shape&, Scratch&);                     // before those of its pages that belong to one row
    void (*attend)(const Shape&, const Page&, Scratch&, State&);
    void (*close)(const Shape&, const Scratch&, State&);      // after them; the state is whole only now
    void (*end)();                                            // after the run
};

// The kernel of a variant for the shape's dtypes, or null: it leaves them to the next narrower variant.
namespace generic {
const PageKernel* page_kernel(const Shape&);
}
#ifdef RHEO_X86
namespace avx2 {
const PageKernel* page_kernel(const Shape&);
}
namespace avx512f {
const PageKernel* page_kernel(const Shape&);
}
namespace avx512_bf16 {
const PageKernel* page_kernel(const Shape&);
}
namespace amx_bf16 {
const PageKernel* page_kernel(const Shape&);
}
namespace amx_emulated {
const PageKernel* page_kernel(const Shape&);
}
#endif

// Reads every byte of a block and returns a checksum of it: the bandwidth that attention is compared with.
using ReadFunction = uint64_t (*)(const std::byte* block, const std::byte* next, size_t bytes);

namespace generic {
uint64_t read_block(const std::byte*, const std::byte*, size_t);
}
#ifdef RHEO_X86
namespace avx2 {
uint64_t read_block(const std::byte*, const std::byte*, size_t);
}
namespace avx512f {
uint64_t read_block(const std::byte*, const std::byte*, size_t);
}
#endif

}  // namespace rheo
