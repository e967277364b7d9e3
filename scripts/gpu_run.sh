#!/usr/bin/env bash
# Tests and benchmarks on a machine with a CUDA GPU: gpu_run.sh [tests] [bench] [server].
#
# Results are written to $OUT (default: .gpu/out). If .gpu/site.tar.xz exists, whole or in parts made by `split`, a
# bundle of SGLang for machines without a network, it is unpacked onto PYTHONPATH.
set -uo pipefail
cd "$(dirname "$0")/.."
root=$PWD
out=${OUT:-$root/.gpu/out}
mkdir -p "$out"

alias_folder=$(mktemp -d)
ln -s "$root/kernels" "$alias_folder/rheo_kernels"
export PYTHONPATH=$alias_folder:$root PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
if ls .gpu/site.tar.xz* >/dev/null 2>&1; then
    mkdir -p "$alias_folder/site"
    cat .gpu/site.tar.xz* | tar -xJ -C "$alias_folder/site"
    export PYTHONPATH=$PYTHONPATH:$alias_folder/site HF_HUB_OFFLINE=1
fi

[ $# -gt 0 ] || set -- tests bench
status=0
for step in "$@"; do
    case $step in
    tests)
        python3 -m pytest -p no:cacheprovider -q -n 12 --tb=short tests/kernels -k triton 2>&1 |
            tee "$out/tests.log" | tail -40 || status=1
        ;;
    bench)
        python3 scripts/bench_kernels.py --out "$out/kernels_gpu.json" 2>&1 | tee "$out/bench.log" || status=1
        ;;
    server)
        env -u PYTHONPATH python3 -m pip install -q --no-index --no-deps --no-build-isolation \
            --target "$alias_folder/package" . &&
            PYTHONPATH=$alias_folder/package:$alias_folder/site python3 scripts/check_gpu_server.py --out "$out" \
                2>&1 | tee "$out/server.log" | tail -60 || status=1
        ;;
    *)
        echo "gpu_run.sh: step '$step' is not known; allowed: tests, bench, server" >&2
        status=2
        ;;
    esac
done
exit $status
