#!/usr/bin/env bash
# Builds the libFuzzer targets (clang 14 or newer: apt-get install clang libclang-rt-14-dev) and runs each for a while under
# AddressSanitizer and UBSan. Says how many inputs each has run, and what it found.
#
#   tests/fuzz/run.sh [seconds for each target: 60] [target ...]
#
# What is found lies in build/fuzz-found/TARGET afterwards; a file that once was a bug belongs into tests/fuzz/corpus/TARGET, which
# ctest replays. RUNS=n stops after n inputs instead, on machines where time says little.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds=${1:-60}
shift || true
targets=("$@")
[ $# -gt 0 ] || for folder in tests/fuzz/corpus/*/; do targets+=("$(basename "$folder")"); done

cmake --preset fuzz -G Ninja >/dev/null && cmake --build --preset fuzz || exit 1

limit=(-max_total_time="$seconds")
[ -z "${RUNS:-}" ] || limit=(-runs="$RUNS")
failed=0
for target in "${targets[@]}"; do
    found=build/fuzz-found/$target grown=build/fuzz-corpus/$target log=build/fuzz-found/$target.log
    mkdir -p "$found" "$grown"
    # 64 MiB is far more than any file of 16 KB can ask for with reason, and far less than one can claim.
    build/fuzz/tests/fuzz/fuzz_"$target" "${limit[@]}" -max_len=16384 -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=1024 \
        -dict=tests/fuzz/words.dict -artifact_prefix="$found/" -print_final_stats=1 -verbosity=1 \
        "$grown" "tests/fuzz/corpus/$target" >"$log" 2>&1
    status=$?
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    spent=$(sed -n 's/^Done [0-9]* runs in \([0-9]*\) second.*/\1/p' "$log")
    printf '%-14s %10s runs  %5s s  ' "$target" "${runs:-?}" "${spent:-?}"
    if [ $status -eq 0 ]; then
        echo "nothing found"
    else
        failed=1
        echo "FOUND: $(grep -m1 -E 'ERROR: |runtime error: |SUMMARY: ' "$log") (see $log)"
    fi
done
exit $failed
