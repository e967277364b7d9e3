#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer and runs its tests: sanitize.sh [PYTHON].
#
# PYTHON (default: python3) has torch, pytest, hypothesis, nanobind and scikit-build-core; an editable install of the
# package in it is left alone. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${1:-python3}
shift || true
target=$(mktemp -d)
trap 'rm -rf "$target"' EXIT

"$python" -m pip install --quiet --no-deps --no-build-isolation --target "$target" . \
    --config-settings=cmake.define.RHEO_SANITIZE=ON --config-settings=build-dir="$target/build"

# Without site (-S) no editable install comes before the sanitized build.
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
    PYTHONPATH="$target:$site${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1 \
    "$python" -S -m pytest -p no:cacheprovider -q tests/cpu "$@"
