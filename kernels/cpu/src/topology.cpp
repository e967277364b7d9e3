#include "topology.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

namespace rheo {
namespace {

// CPUs of a list as Linux writes them: "0-3,8,10-11".
std::vector<int> read_cpu_list(const std::filesystem::path& path) {
    std::ifstream file(path);
    std::vector<int> cpus;
    std::string part;
    while (std::getline(file, part, ',')) {
        std::istringstream range(part);
        int first, last;
        char dash;
        if (!(range >> first)) break;
        if (!(range >> dash >> last)) last = first;
        for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
    }
    return cpus;
}

std::vector<int> allowed_cpus() {
    std::vector<int> cpus;
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) {
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
            if (CPU_ISSET(cpu, &mask)) cpus.push_back(cpu);
    }
    if (cpus.empty()) cpus.push_back(0);
    return cpus;
}

std::map<int, int> node_of_cpu() {
    std::map<int, int> nodes;
    std::error_code missing;
    for (const auto& entry : std::filesystem::directory_iterator("/sys/devices/system/node", missing)) {
        const std::string name = entry.path().filename();
        if (name.rfind("node", 0) != 0) continue;
        for (int cpu : read_cpu_list(entry.path() / "cpulist")) nodes[cpu] = std::stoi(name.substr(4));
    }
    return nodes;
}

// How many hardware threads of the CPU's core come before it.
int thread_of_core(int cpu) {
    const auto siblings =
        read_cpu_list("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    return static_cast<int>(
        std::count_if(siblings.begin(), siblings.end(), [=](int other) { return other < cpu; }));
}

}  // namespace

std::vector<int> placement_order() {
    struct Place {
        int thread, turn, node, cpu;
        auto operator<=>(const Place&) const = default;
    };
    auto nodes = node_of_cpu();
    std::map<std::pair<int, int>, int> turns;
    std::vector<Place> places;
    for (int cpu : allowed_cpus()) {
        const int thread = thread_of_core(cpu), node = nodes[cpu];
        places.push_back({thread, turns[{thread, node}]++, node, cpu});
    }
    std::sort(places.begin(), places.end());
    std::vector<int> order;
    for (const Place& place : places) order.push_back(place.cpu);
    return order;
}

}  // namespace rheo
