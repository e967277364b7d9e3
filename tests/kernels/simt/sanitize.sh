#!/usr/bin/env bash
# Runs the CUDA C++ kernels' tests on the CPU with AddressSanitizer and UndefinedBehaviorSanitizer, what they offload to
# the CPU included: sanitize.sh [PYTHON [PYTEST-ARGUMENTS]].
#
# PYTHON (default: python3) has the package and pytest.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${1:-python3}
shift || true
[ $# -gt 0 ] || set -- tests/kernels/test_cuda_{attend,estimate,tail,partition,load,select_resolve}.py -k "not triton_kernel"
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
    SIMT_SANITIZE=1 OMP_NUM_THREADS=1 \
    "$python" -m pytest -p no:cacheprovider -q -s "$@"
