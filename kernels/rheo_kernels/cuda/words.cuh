// words: short names of unsigned integers, and the mask of a whole warp.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

namespace {

constexpr u32 kAll = 0xffffffffu;

}  // namespace
