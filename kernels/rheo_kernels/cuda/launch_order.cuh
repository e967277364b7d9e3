// launch_order: a kernel's launch overlaps those in front of it and behind it (programmatic dependent launch).
//
// Macro: PDL (else a kernel runs alone).
#pragma once

namespace {

// The next kernel may begin as soon as all blocks have come here.
__device__ __forceinline__ void release_next_kernel() {
#ifdef PDL
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until the kernel in front has ended; what it wrote is read behind this.
__device__ __forceinline__ void wait_for_last_kernel() {
#ifdef PDL
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace
