#!/usr/bin/env bash
# The engine's tests with the address and undefined-behaviour sanitizers, in a virtual environment of
# its own: native/sanitize.sh PYTHON_OF_A_DEV_ENVIRONMENT
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-.venv/dev/bin/python}
built=$(mktemp -d)
trap 'rm -rf "$built"' EXIT
"$python" -m pip install -q --target "$built" --no-deps ./native \
  -C cmake.define.ENROBE_SANITIZE=ON -C cmake.build-type=RelWithDebInfo
# Python itself is not instrumented: it leaks at its end, and does not free what it keeps.
runtime=$(c++ -print-file-name=libasan.so)
LD_PRELOAD="$runtime $(c++ -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$built" PYTHONMALLOC=malloc \
  "$python" -m pytest -q -p no:cacheprovider tests/engines/test_native.py \
  tests/nn/test_own_kernels.py "${@:2}"
