// module: the Python binding. Arrays come as addresses and strides; the Python side has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>

#include "attention.hpp"
#include "doorbell.hpp"
#include "estimate.hpp"
#include "pool.hpp"
#include "read.hpp"

namespace nb = nanobind;
using namespace nb::literals;

// What a CUDA graph's host-function node calls with a task's address: no Python, no GIL.
extern "C" void rheo_cpu_run_task(void* task) {
    static_cast<rheo::Attention*>(task)->run();
}

namespace rheo {
namespace {

std::optional<Isa> parse_limit(const std::optional<std::string>& name) {
    return name ? std::optional(parse_isa(*name)) : std::nullopt;
}

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Problem make_problem(int heads, int group, int dim, int page_size, Dtype kv, Dtype query_dtype, float scale,
                     uintptr_t query, int64_t query_request_stride, int64_t query_head_stride,
                     uintptr_t blocks, int64_t block_head_stride, int64_t block_stride, int64_t num_blocks,
                     uintptr_t index, int64_t index_request_stride, int64_t index_head_stride,
                     uintptr_t valid, int64_t valid_request_stride, int64_t valid_head_stride, int columns,
                     uintptr_t entries, uintptr_t counts, uintptr_t out, uintptr_t lse,
                     uintptr_t batch, int max_batch) {
    return {
        .shape = {heads, group, dim, page_size, kv, query_dtype, scale},
        .query = pointer<const std::byte>(query),
        .query_request_stride = query_request_stride,
        .query_head_stride = query_head_stride,
        .blocks = pointer<const std::byte>(blocks),
        .block_head_stride = block_head_stride,
        .block_stride = block_stride,
        .num_blocks = num_blocks,
        .index = pointer<const int32_t>(index),
        .index_request_stride = index_request_stride,
        .index_head_stride = index_head_stride,
        .valid = pointer<const int32_t>(valid),
        .valid_request_stride = valid_request_stride,
        .valid_head_stride = valid_head_stride,
        .columns = columns,
        .entries = pointer<const uint64_t>(entries),
        .counts = pointer<const uint64_t>(counts),
        .out = pointer<float>(out),
        .lse = pointer<float>(lse),
        .batch = pointer<const int32_t>(batch),
        .max_batch = max_batch,
    };
}

// An attention call whose operands stay where they are; it owns its buffers.
class Task {
  public:
    Task(const Problem& problem, int threads, const std::optional<std::string>& isa)
        : attention_(problem, workspace_, threads, parse_limit(isa)) {}

    void run() { rheo_cpu_run_task(&attention_); }
    uintptr_t address() { return reinterpret_cast<uintptr_t>(&attention_); }
    const Attention& attention() const { return attention_; }

  private:
    Workspace workspace_;
    Attention attention_;
};

// Attends once, with buffers that stay with the calling thread. Returns the number of blocks that do not
// exist.
int64_t attend(const Problem& problem, int threads, const std::optional<std::string>& isa) {
    static thread_local Workspace workspace;
    Attention attention(problem, workspace, threads, parse_limit(isa));
    attention.run();
    return attention.missing_blocks();
}

// Returns the number of listed pages that do not exist.
int64_t estimate(int batch, int heads, int group, int dim, int page_size, int row_tokens, int block_rows, int columns,
                 int centre_bits, int centre_offset, int scales_offset, float scale, uintptr_t query,
                 uintptr_t summaries, int64_t summary_head_stride, int64_t summary_stride, int64_t num_pages,
                 uintptr_t pages, uintptr_t seq_lens, int width, uintptr_t lse, int threads,
                 const std::optional<std::string>& isa) {
    const EstimateProblem problem{
        .shape = {group, dim, page_size, row_tokens, block_rows, columns, centre_bits, centre_offset, scales_offset},
        .batch = batch,
        .heads = heads,
        .scale = scale,
        .query = pointer<const float>(query),
        .summaries = pointer<const std::byte>(summaries),
        .summary_head_stride = summary_head_stride,
        .summary_stride = summary_stride,
        .num_pages = num_pages,
        .pages = pointer<const int32_t>(pages),
        .seq_lens = pointer<const int32_t>(seq_lens),
        .width = width,
        .lse = pointer<float>(lse),
    };
    return estimate_pages(problem, threads, parse_limit(isa));
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
    return names;
}

}  // namespace
}  // namespace rheo

NB_MODULE(_native, m) {
    using namespace rheo;
    using without_gil = nb::call_guard<nb::gil_scoped_release>;

    nb::enum_<Dtype>(m, "Dtype")
        .value("float32", Dtype::float32)
        .value("bfloat16", Dtype::bfloat16)
        .value("float16", Dtype::float16)
        .value("float8", Dtype::float8);

    nb::class_<Problem>(m, "Problem");
    m.def("problem", &make_problem, nb::kw_only(), "heads"_a, "group"_a, "dim"_a, "page_size"_a, "kv"_a,
          "query_dtype"_a, "scale"_a, "query"_a, "query_request_stride"_a, "query_head_stride"_a, "blocks"_a,
          "block_head_stride"_a, "block_stride"_a, "num_blocks"_a, "index"_a, "index_request_stride"_a,
          "index_head_stride"_a, "valid"_a, "valid_request_stride"_a, "valid_head_stride"_a, "columns"_a,
          "entries"_a, "counts"_a, "out"_a, "lse"_a, "batch"_a, "max_batch"_a);
    m.attr("tag_shift") = kTagShift;
    m.attr("token_bits") = kTokenBits;

    nb::class_<Task>(m, "Task")
        .def(nb::init<const Problem&, int, const std::optional<std::string>&>(), "problem"_a, "threads"_a,
             "isa"_a.none())
        .def("run", &Task::run, without_gil())
        .def_prop_ro("address", &Task::address)
        .def_prop_ro("isa", [](const Task& task) { return isa_name(task.attention().isa()); })
        .def_prop_ro("threads", [](const Task& task) { return task.attention().threads(); })
        .def_prop_ro("missing_blocks", [](const Task& task) { return task.attention().missing_blocks(); });
    nb::class_<Doorbell>(m, "Doorbell")
        .def(
            "__init__",
            [](Doorbell* self, uintptr_t words, int tasks) { new (self) Doorbell(pointer<uint32_t>(words), tasks); },
            "words"_a, "tasks"_a)
        .def(
            "assign", [](Doorbell& self, int task, uintptr_t address) { self.assign(task, pointer<Attention>(address)); },
            "task"_a, "address"_a)
        .def("close", &Doorbell::close, without_gil())
        .def_prop_ro("signals", &Doorbell::signals)
        .def_prop_ro("late_threads", &Doorbell::late_threads)
        .def_prop_ro("busy_ns", &Doorbell::busy_ns);
    m.attr("doorbell_words") = Doorbell::kWords;
    m.attr("doorbell_positions") = std::vector<int>{Doorbell::kSignal, Doorbell::kRequests, Doorbell::kCompleted};
    m.attr("task_function") = reinterpret_cast<uintptr_t>(&rheo_cpu_run_task);

    m.def("attend", &attend, "problem"_a, "threads"_a, "isa"_a.none(), without_gil());
    m.def("estimate", &estimate, nb::kw_only(), "batch"_a, "heads"_a, "group"_a, "dim"_a, "page_size"_a,
          "row_tokens"_a, "block_rows"_a, "columns"_a, "centre_bits"_a, "centre_offset"_a, "scales_offset"_a,
          "scale"_a, "query"_a, "summaries"_a, "summary_head_stride"_a, "summary_stride"_a, "num_pages"_a,
          "pages"_a, "seq_lens"_a, "width"_a, "lse"_a, "threads"_a, "isa"_a.none(), without_gil());
    m.def("isas", &isas);
    m.def("placement", [] { return Pool::instance().placement(); });
    m.attr("max_threads") = Pool::kMaxThreads;
    m.def(
        "read_blocks",
        [](uintptr_t base, uintptr_t offsets, int64_t count, size_t bytes, int threads, bool prefetch) {
            return read_blocks(pointer<const std::byte>(base), pointer<const int64_t>(offsets), count, bytes,
                               threads, prefetch);
        },
        "base"_a, "offsets"_a, "count"_a, "bytes"_a, "threads"_a, "prefetch"_a, without_gil());
}
