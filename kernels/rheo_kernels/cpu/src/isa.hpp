// isa: the instruction-set variants, which of them this machine has, and which one serves a problem.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "estimate_kernel.hpp"
#include "page_kernel.hpp"

namespace rheo {

// From narrowest to widest; amx_emulated is for tests and never chosen by itself.
enum class Isa { generic, avx2, avx512f, avx512_bf16, amx_bf16, amx_emulated };

const char* isa_name(Isa);

// The variants this machine can run, narrowest first, without amx_emulated.
const std::vector<Isa>& available_isas();

// The variant called `name`. Throws std::invalid_argument if it is unknown or this machine lacks it.
Isa parse_isa(const std::string& name);

// The widest available variant that takes the shape's dtypes, no wider than `limit`.
struct Choice {
    Isa isa;
    const PageKernel* kernel;
};
Choice choose_kernel(const Shape&, std::optional<Isa> limit);

// The widest variant that takes the shape, no wider than `limit`.
EstimateFunction choose_estimate(const EstimateShape&, std::optional<Isa> limit);

ReadFunction choose_read();

}  // namespace rheo
