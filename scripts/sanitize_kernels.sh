#!/usr/bin/env bash
# Runs the GPU kernels' tests under compute-sanitizer: sanitize_kernels.sh [memcheck|racecheck ...] (default: both).
#
# Needs a CUDA GPU, compute-sanitizer, the installed package, pytest and pytest-xdist; small shapes only, for it slows
# kernels down a lot. JOBS processes at once (default 8).
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
[ $# -gt 0 ] || set -- memcheck racecheck
for tool in "$@"; do
    echo "== $tool"
    # Bindings ask the driver for entry points that it may not have: no error of a kernel.
    compute-sanitizer --tool "$tool" --target-processes all --report-api-errors no --error-exitcode 1 --print-limit 20 \
        python3 -m pytest -p no:cacheprovider -q -n "${JOBS:-8}" --max-worker-restart 0 tests/kernels \
        -k "(triton and not at_scale and not long and not gpu) \
            or (cuda_attend and d128p32 and not cpu_s_part) \
            or (cuda_select_resolve and test_equals_references_at_the_edges)"
done
