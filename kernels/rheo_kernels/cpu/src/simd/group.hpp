// group: query heads in compile-time chunks, so that their accumulators live in registers.
#pragma once

namespace rheo {
namespace {

template <int value>
struct Constant {
    static constexpr int get = value;
};

template <int most, class Function>
void with_constant(int value, const Function& function) {
    if constexpr (most > 0) {
        if (value == most)
            function(Constant<most>{});
        else
            with_constant<most - 1>(value, function);
    }
}

// Calls function(first query head, Constant<number of heads>) for chunks of at most `chunk` heads.
template <int chunk, class Function>
void for_each_chunk(int group, const Function& function) {
    for (int first = 0; first < group; first += chunk) {
        const int count = group - first < chunk ? group - first : chunk;
        with_constant<chunk>(count, [&](auto size) { function(first, size); });
    }
}

}  // namespace
}  // namespace rheo
