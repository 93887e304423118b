#!/usr/bin/env bash
# The instruction sets of processors that are not here, for correctness alone: cross-compiles the core and its C and C++ tests for
# 64-bit Arm and runs them under qemu-user on three models of processor, and on x86-64 runs the native ones on two older models.
# For every set: it is chosen by the model that has it and refused by the one that lacks it, its op_values compares every op with
# float64, and the instruction that makes the set was executed (its encoding is in the emulator's record of translated code, whose
# disassembler does not know every name).
#
#   tools/test_emulated.sh          needs: apt-get install g++-aarch64-linux-gnu qemu-user; cmake, ninja, nlohmann-json
#
# tools/test.sh does not run it: some ten minutes on two cores, and packages that a test machine need not have.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "tools/test_emulated.sh: $1" >&2
    exit 1
}
for program in aarch64-linux-gnu-g++ qemu-aarch64 qemu-x86_64; do
    command -v "$program" >/dev/null || fail "no $program: apt-get install g++-aarch64-linux-gnu qemu-user"
done
for program in cmake ninja; do command -v "$program" >/dev/null || fail "no $program: pip install cmake ninja"; done
step() { printf '\n=== %s\n' "$*"; }

step "cross-compile for aarch64, warnings as errors"
cmake --preset aarch64 -G Ninja
cmake --build --preset aarch64
export QEMU_LD_PREFIX=/usr/aarch64-linux-gnu
build=build/aarch64
tests=$build/tests/kernels

step "no weak symbol in an instruction set"
for folder in "$build"/CMakeFiles/halfbyte_cpu_*.dir; do
    weak=$(find "$folder" -name '*.o' -exec aarch64-linux-gnu-nm --defined-only -C {} + | grep -E '^[0-9a-f]+ [WwVvu] ' || true)
    [ -z "$weak" ] || fail "$folder: $weak"
done

# A model of processor, the set that it must choose, a set that it lacks, the instruction that makes the set and its encoding
# (product by element: C7.2 of the Arm Architecture Reference Manual; the low 10 bits but one are registers).
while read -r model set lacking instruction encoding; do
    export QEMU_CPU=$model
    step "$model: $set is chosen"
    qemu-aarch64 "$tests/every_op" >"$build/every_op.txt" || fail "every_op on $model: $(tail -3 "$build/every_op.txt")"
    cat "$build/every_op.txt"
    head -1 "$build/every_op.txt" | grep -q "^cpu $set, " || fail "$model chose another set than $set"
    step "$model: values of $set, and $instruction was executed"
    qemu-aarch64 -d in_asm -D "$build/translated.txt" "$tests/op_values" "$set"
    count=$(grep -cE ":  $encoding " "$build/translated.txt" || true)
    echo "$count times $instruction in the code that ran"
    [ "$count" -gt 0 ] || fail "no $instruction was executed by $set"
    if [ "$lacking" != - ]; then
        step "$model: $lacking is refused"
        if qemu-aarch64 "$tests/op_values" "$lacking" >"$build/refused.txt"; then fail "$lacking ran on $model"; fi
        grep "cannot run here" "$build/refused.txt" || fail "$lacking on $model: $(cat "$build/refused.txt")"
    fi
    step "$model: the other C and C++ tests"
    ctest --preset aarch64 --exclude-regex '^(every_op|op_values)$'
done <<'MODELS'
cortex-a53 neon neon_dotprod smlal [04]f[4-7][0-9a-f]2[0-389ab][0-9a-f]{2}
cortex-a76 neon_dotprod neon_i8mm sdot 4f[89ab][0-9a-f]e[0-389ab][0-9a-f]{2}
max neon_i8mm - usdot 4f[89ab][0-9a-f]f[0-389ab][0-9a-f]{2}
MODELS
unset QEMU_CPU

[ "$(uname -m)" = x86_64 ] || exit 0
step "x86-64: older processors choose what they have"
cmake --preset dev -G Ninja
cmake --build --preset dev --target every_op
while read -r model set; do
    qemu-x86_64 -cpu "$model" build/dev/tests/kernels/every_op >"build/dev/every_op.txt" 2>/dev/null ||
        fail "every_op on $model: $(tail -3 build/dev/every_op.txt)"
    head -1 build/dev/every_op.txt | grep "^cpu $set, " || fail "$model chose another set than $set"
done <<'MODELS'
Nehalem scalar
Haswell avx2
MODELS
echo "all passed"
