#include "isa.hpp"

#include <algorithm>
#include <stdexcept>

#ifdef RHEO_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rheo {
namespace {

#ifdef RHEO_X86
// AMX tile data must be asked for once per process (Linux: ARCH_REQ_XCOMP_PERM, feature XTILEDATA); threads
// of the process then have it too. Asked for only where tiles are about to be used, since the permission
// enlarges every signal frame of the process.
bool may_use_tiles() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    return granted;
}

bool bit(unsigned word, int index) {
    return (word >> index) & 1;
}

// Processor features by CPUID leaf 1 and 7; what the operating system saves by XCR0.
std::vector<Isa> detect() {
    std::vector<Isa> found{Isa::generic};
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const bool fma = bit(c, 12), xgetbv = bit(c, 27), f16c = bit(c, 29);
    if (!xgetbv || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    unsigned saved, high;
    asm volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    const auto os_saves = [&](unsigned mask) { return (saved & mask) == mask; };

    if (!os_saves(0x6) || !bit(b, 5) || !fma || !f16c) return found;
    found.push_back(Isa::avx2);
    if (!os_saves(0xe6) || !bit(b, 16)) return found;
    found.push_back(Isa::avx512f);
    const bool dq_bw_vl = bit(b, 17) && bit(b, 30) && bit(b, 31);
    const bool amx = bit(d, 24) && bit(d, 22);
    unsigned features = 0;
    if (!dq_bw_vl || !__get_cpuid_count(7, 1, &features, &b, &c, &d) || !bit(features, 5)) return found;
    found.push_back(Isa::avx512_bf16);
    if (amx && os_saves(0x60000)) found.push_back(Isa::amx_bf16);
    return found;
}
#else
bool may_use_tiles() {
    return false;
}

std::vector<Isa> detect() {
    return {Isa::generic};
}
#endif

const PageKernel* kernel_of(Isa isa, const Shape& shape) {
    switch (isa) {
#ifdef RHEO_X86
        case Isa::avx2:
            return avx2::page_kernel(shape);
        case Isa::avx512f:
            return avx512f::page_kernel(shape);
        case Isa::avx512_bf16:
            return avx512_bf16::page_kernel(shape);
        case Isa::amx_bf16:
            return amx_bf16::page_kernel(shape);
        case Isa::amx_emulated:
            return amx_emulated::page_kernel(shape);
#endif
        default:
            return generic::page_kernel(shape);
    }
}

bool is_available(Isa isa) {
    const auto& available = available_isas();
    if (isa == Isa::amx_emulated) isa = Isa::avx512_bf16;
    return std::find(available.begin(), available.end(), isa) != available.end();
}

}  // namespace

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::generic:
            return "generic";
        case Isa::avx2:
            return "avx2";
        case Isa::avx512f:
            return "avx512f";
        case Isa::avx512_bf16:
            return "avx512_bf16";
        case Isa::amx_bf16:
            return "amx_bf16";
        case Isa::amx_emulated:
            return "amx_emulated";
    }
    return "";
}

const std::vector<Isa>& available_isas() {
    static const std::vector<Isa> isas = detect();
    return isas;
}

Isa parse_isa(const std::string& name) {
    for (int value = 0; value <= static_cast<int>(Isa::amx_emulated); ++value) {
        const Isa isa = static_cast<Isa>(value);
        if (name == isa_name(isa) && is_available(isa)) return isa;
    }
    std::string allowed;
    for (Isa isa : available_isas()) allowed += std::string(allowed.empty() ? "" : ", ") + isa_name(isa);
    throw std::invalid_argument("RHEO_CPU_ISA is '" + name + "'; allowed on this machine: " + allowed + ".");
}

Choice choose_kernel(const Shape& shape, std::optional<Isa> limit) {
    if (limit == Isa::amx_emulated) {
        if (const PageKernel* kernel = kernel_of(*limit, shape)) return {*limit, kernel};
    }
    const auto& available = available_isas();
    for (auto isa = available.rbegin(); isa != available.rend(); ++isa) {
        if (limit && *isa > *limit) continue;
        const PageKernel* kernel = kernel_of(*isa, shape);
        if (kernel && (*isa != Isa::amx_bf16 || may_use_tiles())) return {*isa, kernel};
    }
    return {Isa::generic, kernel_of(Isa::generic, shape)};
}

EstimateFunction choose_estimate(const EstimateShape& shape, std::optional<Isa> limit) {
#ifdef RHEO_X86
    const auto may_use = [&](Isa isa) { return is_available(isa) && !(limit && isa > *limit); };
    if (EstimateFunction kernel = avx512f::estimate_kernel(shape); kernel && may_use(Isa::avx512f)) return kernel;
    if (EstimateFunction kernel = avx2::estimate_kernel(shape); kernel && may_use(Isa::avx2)) return kernel;
#endif
    static_cast<void>(limit);
    return generic::estimate_kernel(shape);
}

ReadFunction choose_read() {
#ifdef RHEO_X86
    if (is_available(Isa::avx512f)) return avx512f::read_block;
    if (is_available(Isa::avx2)) return avx2::read_block;
#endif
    return generic::read_block;
}

}  // namespace rheo
