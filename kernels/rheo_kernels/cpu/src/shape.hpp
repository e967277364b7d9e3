// shape: what every page of one problem has in common.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rheo {

// float8 is e4m3fn: no infinity, one NaN of each sign.
enum class Dtype : int32_t { float32, bfloat16, float16, float8 };

constexpr size_t element_size(Dtype dtype) {
    return dtype == Dtype::float32 ? 4 : dtype == Dtype::float8 ? 1 : 2;
}

// G query heads share one KV head; a page is P tokens of it: K [D, P] token-inner, then V [P, D].
struct Shape {
    int heads;
    int group;
    int dim;
    int page_size;
    Dtype kv;
    Dtype query;
    float scale;
};

}  // namespace rheo
