#include "topology.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <memory>
#include <string>

// Neither iostreams nor std::filesystem: where a Python process holds two C++ runtimes, the facets of one are
// called through the tables of the other.

namespace rheo {
namespace {

// The first bytes of a small file, empty if it cannot be read.
std::string read_file(const std::string& path) {
    std::string text(4096, '\0');
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    const ssize_t size = file < 0 ? 0 : read(file, text.data(), text.size());
    if (file >= 0) close(file);
    text.resize(size > 0 ? size : 0);
    return text;
}

// CPUs of a list as Linux writes them: "0-3,8,10-11".
std::vector<int> read_cpu_list(const std::string& path) {
    const std::string text = read_file(path);
    const char *at = text.data(), *const end = at + text.size();
    std::vector<int> cpus;
    const auto number = [&](int& value) {
        const auto [next, error] = std::from_chars(at, end, value);
        at = next;
        return error == std::errc();
    };
    int first, last;
    while (number(first)) {
        last = first;
        if (at < end && *at == '-' && (++at, !number(last))) break;
        for (int cpu = first; cpu <= last; ++cpu) cpus.push_back(cpu);
        if (at == end || *at++ != ',') break;
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
    const std::string root = "/sys/devices/system/node";
    std::map<int, int> nodes;
    const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(root.c_str()), closedir);
    while (const dirent* entry = folder ? readdir(folder.get()) : nullptr) {
        const std::string name = entry->d_name;
        if (name.rfind("node", 0) != 0) continue;
        int node;
        const char* const end = name.data() + name.size();
        const auto [rest, error] = std::from_chars(name.data() + 4, end, node);
        if (error != std::errc() || rest != end) continue;
        for (int cpu : read_cpu_list(root + "/" + name + "/cpulist")) nodes[cpu] = node;
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
    const auto allowed = allowed_cpus();
    for (auto at = allowed.rbegin(); at != allowed.rend(); ++at) {
        const int cpu = *at;
        const int thread = thread_of_core(cpu), node = nodes[cpu];
        places.push_back({thread, turns[{thread, node}]++, node, cpu});
    }
    std::sort(places.begin(), places.end());
    std::vector<int> order;
    for (const Place& place : places) order.push_back(place.cpu);
    return order;
}

}  // namespace rheo
