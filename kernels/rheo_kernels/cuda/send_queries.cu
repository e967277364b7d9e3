// send_queries: copy a layer's queries to memory that the CPU sees, concurrently with the kernels that make the selection.
//
// Macros: QUERY_ELEMENTS (of one request), DIM, WARPS, ARGUMENTS_BYTES (what the launching side passes).

namespace {

struct Queries {
    const unsigned short* q;  // [B, Hq, D], two bytes an element
    unsigned short* cpu_q;    // [X, Hq, D], in memory that the CPU sees
    long long stride_qb, stride_qh;
};
static_assert(sizeof(Queries) == ARGUMENTS_BYTES, "send_queries.py declares other arguments");

}  // namespace

// One block per request.
extern "C" __global__ void __launch_bounds__(32 * WARPS) send_queries(const __grid_constant__ Queries a) {
    constexpr int kVectors = QUERY_ELEMENTS / 8;
    uint4* const target = reinterpret_cast<uint4*>(a.cpu_q) + static_cast<long long>(blockIdx.x) * kVectors;
    for (int i = threadIdx.x; i < kVectors; i += 32 * WARPS)
        target[i] = *reinterpret_cast<const uint4*>(a.q + blockIdx.x * a.stride_qb + 8 * i / DIM * a.stride_qh +
                                                    8 * i % DIM);
    // They must have arrived before any word of this layer is written.
    __syncthreads();
    if (threadIdx.x == 0) __threadfence_system();
}
