#!/usr/bin/env bash
# Runs the GPU kernels' tests under compute-sanitizer: sanitize_kernels.sh [memcheck|racecheck ...] (default: both).
#
# Needs a CUDA GPU, compute-sanitizer, the installed package and pytest. It slows kernels down a lot: small shapes only,
# and of every test the first CASES (default 3). They are dealt out to JOBS processes a tool (default 6), all at once.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
[ $# -gt 0 ] || set -- memcheck racecheck
shards=$(mktemp -d)
trap 'rm -rf "$shards"' EXIT
python3 -m pytest -p no:cacheprovider -q --collect-only tests/kernels \
    -k "(triton and not at_scale and not long and not gpu) \
        or (cuda_attend and d128p32 and not cpu_s_part) \
        or cuda_load \
        or (cuda_select_resolve and (test_equals_references_at_the_edges or runners_up_are))" |
    awk -F'[' -v cases="${CASES:-3}" '/::/ && seen[$1]++ < cases' >"$shards/tests"
split -n "r/${JOBS:-6}" "$shards/tests" "$shards/tests."

run_shard() { # TOOL FILE-OF-TESTS
    local log=$shards/$1.${2##*.} tests
    mapfile -t tests <"$2"
    # Bindings ask the driver for entry points that it may not have: no error of a kernel.
    if compute-sanitizer --tool "$1" --report-api-errors no --error-exitcode 1 --print-limit 20 \
        python3 -m pytest -p no:cacheprovider -q "${tests[@]}" >"$log" 2>&1; then
        echo "$1, ${#tests[@]} tests: $(grep -E "passed|SUMMARY" "$log" | tr '\n' ' ')"
    else
        echo "$1: failed"
        tail -40 "$log"
        return 1
    fi
}

processes=()
for tool in "$@"; do
    for shard in "$shards"/tests.*; do
        run_shard "$tool" "$shard" &
        processes+=("$!")
    done
done
failed=0
for process in "${processes[@]}"; do
    wait "$process" || failed=1
done
exit "$failed"
