#!/usr/bin/env bash
# Runs the GPU kernels' tests under compute-sanitizer: sanitize_kernels.sh [memcheck|racecheck ...] (default: both).
#
# Needs a CUDA GPU, compute-sanitizer, the installed package and pytest; small shapes only, for it slows kernels down a
# lot. The tests are dealt out to JOBS processes a tool (default 6), all of which run at once.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
jobs=${JOBS:-6}
[ $# -gt 0 ] || set -- memcheck racecheck
shards=$(mktemp -d)
trap 'rm -rf "$shards"' EXIT
python3 -m pytest -p no:cacheprovider -q --collect-only tests/kernels \
    -k "(triton and not at_scale and not long and not gpu) \
        or (cuda_attend and d128p32 and not cpu_s_part) \
        or (cuda_select_resolve and test_equals_references_at_the_edges)" | grep '::' >"$shards/tests"
split -n "r/$jobs" "$shards/tests" "$shards/tests."
processes=()
for tool in "$@"; do
    for shard in "$shards"/tests.*; do
        log=$shards/$tool.${shard##*.}
        # Bindings ask the driver for entry points that it may not have: no error of a kernel.
        mapfile -t tests <"$shard"
        compute-sanitizer --tool "$tool" --report-api-errors no --error-exitcode 1 --print-limit 20 \
            python3 -m pytest -p no:cacheprovider -q "${tests[@]}" >"$log" 2>&1 &
        processes+=("$!:$log")
    done
done
failed=0
for process in "${processes[@]}"; do
    log=${process#*:}
    if wait "${process%%:*}"; then
        echo "${log##*/}: $(grep -E "passed|SUMMARY" "$log" | tr '\n' ' ')"
    else
        failed=1
        echo "${log##*/}: failed"
        tail -40 "$log"
    fi
done
exit "$failed"
