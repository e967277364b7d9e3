#include "workspace.hpp"

#include <algorithm>
#include <cstring>
#include <new>

namespace rheo {
namespace {

constexpr size_t kAlignment = 64;
constexpr int kRunsPerThread = 4;

size_t round_up(size_t value, size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

void Workspace::Free::operator()(std::byte* memory) const {
    ::operator delete(memory, std::align_val_t{kAlignment});
}

std::byte* Workspace::allocate(size_t bytes) {
    bytes = round_up(bytes, kAlignment);
    memory_.emplace_back(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment})));
    std::memset(memory_.back().get(), 0, bytes);
    return memory_.back().get();
}

bool Workspace::fits(const Shape& shape, int rows, int threads) const {
    return rows <= rows_ && threads <= threads_ && shape.group == shape_.group && shape.dim == shape_.dim &&
           shape.page_size == shape_.page_size;
}

// The padding of query_bf16 and weights_bf16 is zeroed here once and never written.
void Workspace::reserve(const Shape& shape, int rows, int threads) {
    if (fits(shape, rows, threads)) return;
    const size_t group = shape.group, padded_group = round_up(group, kTileRows);
    const size_t dim = shape.dim, padded_dim = round_up(dim, 32);
    const size_t tokens = shape.page_size, padded_tokens = round_up(tokens, 32);
    const auto floats = [&](size_t count) {
        return reinterpret_cast<float*>(allocate(count * sizeof(float)));
    };
    const auto halves = [&](size_t count) { return reinterpret_cast<uint16_t*>(allocate(count * 2)); };
    const auto state = [&] { return State{floats(group), floats(group * kSumLanes), floats(group * dim)}; };

    memory_.clear();
    scratch_.clear();
    partials_.clear();
    for (int thread = 0; thread < threads; ++thread) {
        scratch_.push_back({
            .query = floats(group * dim),
            .query_bf16 = halves(padded_group * padded_dim),
            .logits = floats(padded_group * tokens),
            .weights_bf16 = halves(padded_group * padded_tokens),
            .tiles = allocate(kTileScratchBytes),
            .fresh = floats(kTileRows * 32),
            .mixed_tiles = floats(padded_group * dim),
            .state = state(),
        });
    }
    max_runs_ = kRunsPerThread * threads;
    for (int slot = 0; slot < 2 * max_runs_; ++slot) partials_.push_back(state());
    offsets_.assign(rows + 1, 0);
    arrived_ = std::make_unique<std::atomic<int32_t>[]>(rows);
    shape_ = shape;
    rows_ = rows;
    threads_ = threads;
}

}  // namespace rheo
