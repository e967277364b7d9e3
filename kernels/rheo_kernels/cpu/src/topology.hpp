// topology: the CPUs this process may use, in the order threads are placed on them.
#pragma once

#include <vector>

namespace rheo {

// CPUs of the calling thread's affinity mask: one per core before any second hardware thread, and taking the
// NUMA nodes in turn, so that any number of threads is spread evenly over cores and over memory controllers. The last
// cores come first, for interrupts and whatever else runs on a system tend to be on the first ones.
std::vector<int> placement_order();

}  // namespace rheo
