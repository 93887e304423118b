#!/usr/bin/env bash
# Formats every source file in place, with the tools of the `test` extra.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ruff check --fix .
ruff format .
find csrc tests tools -name '*.c' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h' -o -name '*.hpp' | xargs clang-format -i
