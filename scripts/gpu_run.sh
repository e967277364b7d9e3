#!/usr/bin/env bash
# Tests and benchmarks on a machine with a CUDA GPU: gpu_run.sh STEP ...
#
#   tests     kernel tests on the GPU          sanitize  the same under compute-sanitizer
#   bench     kernel benchmark                 prefill   prefill kernel benchmark
#   cpu       CPU attention                    misses    fetching misses, attending them on the CPU, both
#   server    rheo against SGLang's triton     exact     greedy tokens of SmolLM2 against fa3
#   fuzz      prefill of SmolLM2 against fa3   tpot      time per output token
#   ttft      time to first token              long      512K-token prefill, and decode after 1M tokens
#   contract  contract tests on the GPU        house     kernels and TPOT of the tree in $BEFORE and of this one, in turns
#   estimates kernels of estimating summaries  quality   answers against dense attention's, on a real model
#   admission throughput under overload, with and without admission by working set
#   serving   throughput that clients see: fa3, HiCache and rheo with the same HBM for KV
#   agents    agent sessions with four times the KV that HBM holds: fa3, HiCache and rheo
#   soak      random load for a while: nothing fails, nothing is left over
#   check     imports what servers import: the first step with a new bundle, and possible without a GPU
#
# Arguments go in TESTS, CONTRACT_ARGUMENTS, BENCH_ARGUMENTS, EXACT_ARGUMENTS, FUZZ_ARGUMENTS, TPOT_ARGUMENTS, TTFT_ARGUMENTS,
# LONG_ARGUMENTS, HOUSE_ARGUMENTS, ESTIMATES_ARGUMENTS, QUALITY_ARGUMENTS, ADMISSION_ARGUMENTS, SERVING_ARGUMENTS, AGENTS_ARGUMENTS and SOAK_ARGUMENTS (the last four: --model FOLDER at least). PYTEST_SECONDS (default: 1800) ends
# the steps tests and contract, which then say what failed by then. BEFORE is a folder, for example of `git archive e77c25d`, unpacked.
#
# Steps of several GPUs side by side: scripts/gpu_lanes.py; planned and packed for a machine without a network: scripts/lease/parcels.py.
#
# Results are written to $OUT (default: .gpu/out). A bundle of SGLang for machines without a network, made by
# scripts/environment/gpu_bundle.py, is unpacked onto PYTHONPATH if there is one: .gpu/site.tar.xz, .gpu/torch.tar.zst where
# a version brings its own torch, and .gpu/fa3.zst for FlashAttention-3, whole or in parts made by `split`.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
out=${OUT:-$root/.gpu/out}
unpacked=${TMPDIR:-/tmp}/rheo-gpu
mkdir -p "$out" "$unpacked"

if [ ! -d "$unpacked/site" ] && ls .gpu/site.tar.xz* >/dev/null 2>&1; then
    mkdir -p "$unpacked/site"
    if ! cat .gpu/site.tar.xz* | tar -xJ -C "$unpacked/site"; then
        rm -rf "$unpacked/site"
        echo "gpu_run.sh: .gpu/site.tar.xz* is not whole; carry every part of it" >&2
        exit 1
    fi
fi
export PYTHONPATH=$unpacked/site
if [ ! -d "$unpacked/site/torch" ] && ls .gpu/torch.tar.zst* >/dev/null 2>&1; then
    if ! cat .gpu/torch.tar.zst* | python3 -c "import sys, zstandard
zstandard.ZstdDecompressor(max_window_size=2**31).copy_stream(sys.stdin.buffer, sys.stdout.buffer)
" | tar -x -C "$unpacked/site"; then
        rm -rf "$unpacked/site/torch"
        echo "gpu_run.sh: .gpu/torch.tar.zst* is not whole; carry every part of it" >&2
        exit 1
    fi
fi
if [ ! -f "$unpacked/site/sgl_kernel/flash_ops.abi3.so" ] && ls .gpu/fa3.zst* >/dev/null 2>&1; then
    cat .gpu/fa3.zst* >"$unpacked/fa3.zst"
    library=$unpacked/site/sgl_kernel/flash_ops.abi3.so
    if ! python3 -c "import sys, zstandard
with open(sys.argv[1], 'rb') as source, open(sys.argv[2], 'wb') as target:
    size = zstandard.frame_content_size(source.read(64))
    source.seek(0)
    sys.exit(zstandard.ZstdDecompressor(max_window_size=2**31).copy_stream(source, target)[1] != size)
" "$unpacked/fa3.zst" "$library"; then
        rm -f "$library"
        echo "gpu_run.sh: .gpu/fa3.zst* is not whole; carry every part of it" >&2
        exit 1
    fi
fi
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 TQDM_DISABLE=1

installed=
install() {
    [ -n "$installed" ] || env -u PYTHONPATH python3 -m pip install -q --no-index --no-deps --no-build-isolation \
        --upgrade --target "$unpacked/package" . || return 1
    installed=yes
    export PYTHONPATH=$unpacked/package:$unpacked/site:$root/scripts
}

# pytest, ended in good order after $PYTEST_SECONDS, so that it says what failed by then: run_pytest LOG ARGUMENT ...
run_pytest() {
    local log=$1
    shift
    timeout --signal=INT --kill-after=60 "${PYTEST_SECONDS:-1800}" \
        python3 -m pytest -p no:cacheprovider -p no:benchmark -q -n 10 --tb=short "$@" 2>&1 | tee "$out/$log"
}

status=0
for step in "$@"; do
    case $step in
    check)
        install && python3 -W ignore -m environment.bundle_imports || status=1
        ;;
    tests)
        # shellcheck disable=SC2086
        install && run_pytest tests.log ${TESTS:-tests/kernels} || status=1
        ;;
    contract)
        # shellcheck disable=SC2086
        install && run_pytest contract.log tests/contract ${CONTRACT_ARGUMENTS:-} || status=1
        ;;
    house)
        if [ ! -f "${BEFORE:-}/pyproject.toml" ]; then
            echo "gpu_run.sh: BEFORE='${BEFORE:-}' holds no pyproject.toml; name the root of the tree to compare with" >&2
            status=2
            continue
        fi
        # shellcheck disable=SC2086
        install && env -u PYTHONPATH python3 -m pip install -q --no-index --no-deps --no-build-isolation --upgrade \
            --target "$unpacked/before" "$BEFORE" &&
            python3 -m benchmarks.compare_trees --before "$BEFORE" --before-path "$unpacked/before:$unpacked/site" \
                --after-path "$unpacked/package:$unpacked/site" --out "$out/house_gpu.json" ${HOUSE_ARGUMENTS:-} 2>&1 |
            tee "$out/house.log" | grep --line-buffered -E "^(==|bs[0-9]|[0-9]+k_bs|\{|\}| +\"|.*Error)" || status=1
        ;;
    estimates)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.estimate_kernels --out "$out/estimate_kernels.json" ${ESTIMATES_ARGUMENTS:-} 2>&1 |
            tee "$out/estimates.log" || status=1
        ;;
    quality)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.selection_coder --out "$out/selection_coder.json" ${QUALITY_ARGUMENTS:-} 2>&1 |
            tee "$out/quality.log" | grep -E "^(==|[a-z0-9_]+ failed|\{|\}| +\"|.*Error)" || status=1
        ;;
    admission)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.admission --out "$out/admission.json" --logs "$out" ${ADMISSION_ARGUMENTS:-} 2>&1 |
            tee "$out/admission.log" | grep -E "^(==|[0-9]+ at once|\{|\}| +\"|.*Error)" || status=1
        ;;
    serving)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.serving --out "$out/serving_gpu.json" --logs "$out" ${SERVING_ARGUMENTS:-} 2>&1 |
            tee "$out/serving.log" | grep -E "^(==|[0-9]+ tokens|\{|\}| +\"|.*Error)" || status=1
        ;;
    agents)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.agents --out "$out/agents_gpu.json" --logs "$out" ${AGENTS_ARGUMENTS:-} 2>&1 |
            tee "$out/agents.log" | grep -E "^(==|[a-z0-9_]+: \{|[a-z0-9_]+, SGLang|\{|\}| +\"|.*Error)" || status=1
        ;;
    soak)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.soak --out "$out/soak_gpu.json" --log "$out/soak_server.log" ${SOAK_ARGUMENTS:-} 2>&1 |
            tee "$out/soak.log" | tail -60 || status=1
        ;;
    sanitize)
        install && bash scripts/sanitize_kernels.sh 2>&1 | tee "$out/sanitize.log" | tail -20 || status=1
        ;;
    misses)
        install && python3 -m benchmarks.miss_path --out "$out/split_gpu.json" 2>&1 | tee "$out/misses.log" |
            tail -30 || status=1
        ;;
    exact)
        install && python3 -m exactness.greedy_gpu --out "$out/exactness_gpu.json" ${EXACT_ARGUMENTS:-} 2>&1 |
            tee "$out/exact.log" | grep -vE "Prefill batch|Decode batch" | tail -30 || status=1
        ;;
    fuzz)
        # shellcheck disable=SC2086
        install && python3 -m exactness.fuzz_prefill --out "$out/fuzz_prefill_gpu.json" ${FUZZ_ARGUMENTS:-} 2>&1 |
            tee "$out/fuzz.log" | grep -E "^(dense|chunks)|Error" || status=1
        ;;
    bench)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.kernels --out "$out/kernels_gpu.json" ${BENCH_ARGUMENTS:-} 2>&1 |
            tee "$out/bench.log" || status=1
        ;;
    prefill)
        install && python3 -m benchmarks.prefill_kernels --out "$out/transfers_gpu.json" 2>&1 |
            tee "$out/prefill.log" | tail -40 || status=1
        ;;
    server)
        install && python3 -m exactness.server_gpu --out "$out" 2>&1 | tee "$out/server.log" | tail -60 || status=1
        ;;
    cpu)
        install && python3 -m pytest -p no:cacheprovider -p no:benchmark -q -n 4 --tb=short tests/cpu 2>&1 | tail -20 &&
            python3 -m benchmarks.cpu_attention --out "$out/cpu_attention.json" 2>&1 | tee "$out/cpu.log" |
            tail -60 || status=1
        ;;
    tpot)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.tpot --out "$out/tpot_gpu.json" ${TPOT_ARGUMENTS:-} >"$out/tpot.log" 2>&1 ||
            status=1
        grep -E "^(==|started|[0-9]+k_bs|\{|\}| \"|.*Error|.*rheo:)" "$out/tpot.log" | tail -60
        ;;
    ttft)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.ttft --out "$out/prefill_gpu.json" ${TTFT_ARGUMENTS:-} 2>&1 |
            tee "$out/ttft.log" | grep --line-buffered -E "^(==|started|fa3|rheo|hicache|[a-z]+ prefix|\{|\}| \"|.*Error)" ||
            status=1
        ;;
    long)
        # shellcheck disable=SC2086
        install && python3 -m benchmarks.long_context --out "$out/prefill_gpu.json" ${LONG_ARGUMENTS:-} 2>&1 |
            tee "$out/long.log" | grep --line-buffered -E \
            "^(==|started|prefill|decode|long prompt|device memory|raw|settle|fitted|\{|\}| \"|.*(Error|rheo:|Prefill batch))" ||
            status=1
        ;;
    *)
        echo "gpu_run.sh: step '$step' is not known; allowed: check, tests, contract, house, admission, serving, agents, soak, estimates, quality, sanitize, bench, prefill, cpu, misses, server, exact, fuzz, tpot, ttft, long" >&2
        status=2
        ;;
    esac
done
exit $status
