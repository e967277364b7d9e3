#!/usr/bin/env bash
# Runs the GPU kernels' tests under compute-sanitizer: sanitize_kernels.sh [memcheck|racecheck ...] (default: both).
#
# Needs a CUDA GPU, compute-sanitizer, torch, triton and pytest; small shapes only, for it slows kernels down a lot.
set -euo pipefail
cd "$(dirname "$0")/.."
alias_folder=$(mktemp -d)
trap 'rm -rf "$alias_folder"' EXIT
ln -s "$PWD/kernels" "$alias_folder/rheo_kernels"
export PYTHONPATH=$alias_folder:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTORCH_NO_CUDA_MEMORY_CACHING=1
[ $# -gt 0 ] || set -- memcheck racecheck
for tool in "$@"; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 --print-limit 20 \
        python3 -m pytest -p no:cacheprovider -q tests/kernels \
        -k "(triton and not at_scale and not long and not gpu) \
            or (cuda_attend and d128p32 and not cpu_s_part) \
            or (cuda_select_resolve and test_equals_references_at_the_edges)"
done
