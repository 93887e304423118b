#!/usr/bin/env python3
"""Plants bugs in the CUDA kernels and asks the tests in emulation to find each.

By hand or nightly, with build/dev built: python tests/cuda/mutants.py [--all] [part of a file's name]. Every mutant is
compiled into the test program of its kernel, in a temporary folder and with the flags of CMakeLists.txt. It is caught
where one of three orders of threads says so, the race detector (whose build also counts bank conflicts), or
AddressSanitizer; --all asks all of them, in place of stopping at the first. The exit status is 1 if one survives.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/dev"
OBJECTS = BUILD / "tests/cuda/CMakeFiles"
RUNS = {"": ["forward", "reverse", "random"], "_race": ["forward"], "_asan": ["random"]}  # by build, cheapest first


class Mutant(NamedTuple):
    """One planted bug."""

    file: str
    old: str
    new: str
    source: str  # the .cu that is compiled anew
    test: str  # cuda_NAME


# By file: the .cu that is compiled anew, its test, and what is put in the place of what.
MUTANTS: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "tiles.cuh": (
        "linear_f32",
        "linear",
        [
            (
                "at = (int64_t(row_tile) * w.blocks + block) * 16 + row",
                "at = (int64_t(row_tile) * w.blocks + block) * 16",
            ),
            ("int(index >> w.nested_shift)", "int(index >> (w.nested_shift + 1))"),
            ("(int64_t(row_tile) * 16 + row) * w.blocks + block;", "(int64_t(row_tile) * 16 + row) * w.blocks;"),
            ("^ 0x80808080u, 0x4b000000u, 0x7440u", "^ 0x00808080u, 0x4b000000u, 0x7440u"),
            ("__fadd_rn(product, s.offset)", "product"),
        ],
    ),
    "gemv_common.cuh": (
        "linear_gemv",
        "linear",
        [
            ("if (last) command.counters[blockIdx.x] = 0;", ""),
            ("*y = part.accumulate ? *y + sum : sum;", "*y = sum;"),
            (
                "out.last_tile = int(all * (blockIdx.y + 1) / gridDim.y);",
                "out.last_tile = int(all * (blockIdx.y + 1) / gridDim.y) - 1;",
            ),
            (
                "    __threadfence();\n    __syncthreads();\n    if (threadIdx.x == 0) {",
                "    __syncthreads();\n    if (threadIdx.x == 0) {",
            ),
            ("if (last) __threadfence();", ""),
            ("if (feature >= part.weight.rows) return;", ""),
        ],
    ),
    "gemv_exact.cuh": (
        "linear_gemv",
        "linear",
        [
            (
                "col < w.cols ? __ldg(command.x + m * command.x_stride + col) : 0.0f",
                "__ldg(command.x + m * command.x_stride + col)",
            ),
            (
                "        __syncthreads();\n        for (int first = chunk + warp;",
                "        for (int first = chunk + warp;",
            ),
            ("i / 32 * 64 + i % 32", "i"),
            ("lop3<0xea>(at[e], 0xf00u, lane_bytes)", "lop3<0xea>(at[e], 0xf00u, 0u)"),
            ("value += __shfl_xor_sync(0xffffffffu, value, 2);", ""),
        ],
    ),
    "gemv_mma.cuh": (
        "linear_gemv",
        "linear",
        [
            ("mma_bf16(d, a[r], rest);", ""),
            ("row < command.rows && col + at < w.cols", "row < command.rows"),
            ("four_sum += __shfl_xor_sync(0xffffffffu, four_sum, 2);", ""),
            (
                "        __syncthreads();\n        for (int first = chunk; first",
                "        for (int first = chunk; first",
            ),
            ("if (row >= command.rows) continue;", ""),
            (
                "pack_bf16(__ldg(w.levels + i / 32 % 16), __ldg(w.levels + i / 512))",
                "pack_bf16(__ldg(w.levels + i / 512), __ldg(w.levels + i / 32 % 16))",
            ),
        ],
    ),
    "linear_f32.cu": (
        "linear_f32",
        "linear",
        [
            (
                "        __syncthreads();\n        const int m = thread / 16 * 4",
                "        const int m = thread / 16 * 4",
            ),
            (
                "        __syncthreads();\n    }\n#pragma unroll\n    for (int i = 0; i < 4; ++i)",
                "    }\n#pragma unroll\n    for (int i = 0; i < 4; ++i)",
            ),
            ("((n / 4) ^ (k % 8)) * 4", "(n / 4) * 4"),
            ("row < command.rows && col < w.cols ? __ldg", "row < command.rows ? __ldg"),
        ],
    ),
    "embed.cu": (
        "embed",
        "linear",
        [
            ("half == 0 ? level[i] : level[4 + i]", "level[i]"),
            ("if (col < w.cols) out[col]", "out[col]"),
            ("row % 8 * 4 + q, words", "row % 8 * 4, words"),
            (
                "fill_table(table, w.levels, thread, kThreads);\n        __syncthreads();",
                "fill_table(table, w.levels, thread, kThreads);",
            ),
        ],
    ),
    "gemm.cuh": (
        "linear_gemm",
        "gemm",
        [
            (
                "cp_async_wait<kStages - 2>();\n        auto& scales",
                "cp_async_wait<kStages - 1>();\n        auto& scales",
            ),
            ("__syncthreads();  // all have waited", "// all have waited"),
            ("(thread % 8 ^ (thread / 8 % 8)) * 16;", "thread % 8 * 16;"),
            ("scale_table[(tile - unit.first) % 2]", "scale_table[0]"),
            ("const bool valid = i * 16 < x_rows;", "const bool valid = true;"),
            (
                "a[0] = words[0], a[2] = words[1], a[1] = words[2], a[3] = words[3];",
                "a[0] = words[0], a[1] = words[1], a[2] = words[2], a[3] = words[3];",
            ),
            ("if (last) command.counters[block] = 0;", ""),
            ("constexpr int kPitch = kGemmFeatures + 4;", "constexpr int kPitch = kGemmFeatures;"),
            (
                "        __threadfence();\n        __syncthreads();\n        if (thread == 0) {",
                "        __syncthreads();\n        if (thread == 0) {",
            ),
            ("if (*flag == 0) return;\n        __threadfence();", "if (*flag == 0) return;"),
        ],
    ),
    "attention.cuh": (
        "attention_exact",
        "attention",
        [
            ("maximum == -INFINITY ? 0.0f : maximum", "maximum"),
            ("a.table_stride + tile]", "a.table_stride]"),
            ("s.keys - s.rows + i + 1 - a.window", "s.keys - s.rows + i - a.window"),
        ],
    ),
    "attention_prefill.cuh": (
        "attention_prefill",
        "attention",
        [
            ("ldmatrix_x4_trans(v, v_lane", "ldmatrix_x4(v, v_lane"),
            ("__syncthreads();  // what this half needs", "// what this half needs"),
            ("key < visible || key >= hidden", "key >= hidden"),
            ("key0 + kTileKeys > all_high;", "key0 + kTileKeys > all_high + 1;"),
            ("cp_async_wait<0>();\n        __syncthreads();  // what", "__syncthreads();  // what"),
            ("kRowBytes = 16 * (kChunks + 1)", "kRowBytes = 16 * kChunks"),
            ("q[t], k[2], k[3])", "q[t], k[1], k[3])"),
        ],
    ),
    "attention_exact.cuh": (
        "attention_exact",
        "attention",
        [
            ("if (!visible) score[j] = -INFINITY;", ""),
            ("sums[j][c] *= shrink[half + j];", ";"),
            ("                __syncthreads();\n#pragma unroll 8", "#pragma unroll 8"),
            (
                "                __syncthreads();\n                for (int i = warp; i < kExactQueries;",
                "                for (int i = warp; i < kExactQueries;",
            ),
        ],
    ),
    "attention_decode.cuh": (
        "attention_decode",
        "attention",
        [
            ("partials[split * (width + 2) + width + 1]", "partials[split * (width + 2) + width]"),
            (
                "        __syncthreads();\n\n#pragma unroll\n        for (int i = 0; i < kOwn; ++i) {",
                "\n#pragma unroll\n        for (int i = 0; i < kOwn; ++i) {",
            ),
            (
                "        __syncthreads();\n\n#pragma unroll\n        for (int r = 0; r < kQueries; ++r) {",
                "\n#pragma unroll\n        for (int r = 0; r < kQueries; ++r) {",
            ),
            ("buffer = tile & 1", "buffer = 0"),
            ("if (key < visible || key >= hidden) continue;", "if (key >= hidden) continue;"),
            ("for (int bits = kLanes; bits < 32; bits *= 2)", "for (int bits = 2 * kLanes; bits < 32; bits *= 2)"),
            (
                "sum += __shfl_xor_sync(0xffffffffu, odd ? a : b, kLanes / 4);",
                "sum += __shfl_xor_sync(0xffffffffu, odd ? a : b, kLanes / 2);",
            ),
            ("if (thread < 32) {\n        float peaks", "if (thread < 31) {\n        float peaks"),
        ],
    ),
    "store_kv.cuh": (
        "store_kv",
        "store_kv",
        [
            ("127.0f / most", "128.0f / most"),
            ("if (pair >= int64_t(c.tokens) * c.heads) return;", ""),
            ("head * c.rows + target", "target * c.heads + head"),
            ("if (target < 0 || target >= c.rows) return;", "if (target < 0) return;"),
            ("width = (c.head_dim + 15) / 16 * 16", "width = c.head_dim"),
        ],
    ),
    "block.cuh": (
        "transform_rows",
        "rows",
        [
            ("lane < warps ? room[lane] : T(0)", "room[lane]"),
            (
                "    if (lane == 0) room[threadIdx.x / 32] = value;\n    __syncthreads();",
                "    if (lane == 0) room[threadIdx.x / 32] = value;",
            ),
            ("c + 2 < cols ? row[c + 2] : 0.0f", "row[c + 2]"),
        ],
    ),
    "transform_rows.cu": (
        "transform_rows",
        "rows",
        [
            ("if (c + i < command.padded_cols)", "if (c + i < command.cols)"),
            ("z = left > 2 ? v.z - mean : 0.0f", "z = v.z - mean"),
        ],
    ),
    "rows.cu": (
        "rows",
        "rows",
        [
            ("quadrant == 1 || quadrant == 2 ? -first : first", "quadrant == 1 ? -first : first"),
            ("kInterleaved ? 2 * i : i", "i"),
            ("    room[group][lane] = value;\n    __syncthreads();", "    room[group][lane] = value;"),
        ],
    ),
    "adapters.cuh": (
        "adapters",
        "adapters",
        [
            ("y[r] = pivot + gain * (y[r] - pivot)", "y[r] = gain * (y[r] - pivot)"),
            ("entry.scale * total", "total"),
            ("            __syncthreads();\n            if (!exists) continue;", "            if (!exists) continue;"),
            ("__syncthreads();  // what the entry before left has been read", ""),
        ],
    ),
    "sample.cuh": (
        "sample",
        "sample",
        [
            ("before <= wanted && wanted < before + mine", "before < wanted && wanted <= before + mine"),
            ("if (lane >= by) through += before;", "through += before;"),
        ],
    ),
    "sample.cu": (
        "sample",
        "sample",
        [
            ("Amount(view.options.top_k - 1)", "Amount(view.options.top_k)"),
            ("weight.value >= min_p", "weight.value > 2 * min_p"),
            ("if (any_bad) atomicOr(&view.state->bad, 1u);", ""),
            ("low[i] = high[i] = 0;\n    __syncthreads();", "low[i] = high[i] = 0;"),
        ],
    ),
}


def flags(target: str) -> list[str]:
    """What tests/cuda/CMakeLists.txt compiles a target with."""
    text = (ROOT / "tests/cuda/CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf"target_compile_options\({target} \w+ ([^)]*)\)", text)
    if found is None:
        raise LookupError(f"tests/cuda/CMakeLists.txt has no target_compile_options of {target}")
    return found[1].replace("SHELL:", "").replace('"', "").split()


def toolkit() -> str:
    cache = (BUILD / "CMakeCache.txt").read_text(encoding="utf-8")
    return next(line.split("=", 1)[1] for line in cache.splitlines() if line.startswith("HALFBYTE_CUDA_INCLUDE"))


def plant(mutant: Mutant, folder: Path) -> None:
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    file = folder / "csrc/cuda/kernels" / mutant.file
    text = file.read_text(encoding="utf-8")
    if mutant.old not in text:
        raise LookupError(f"{mutant.file} has no {mutant.old!r}")
    file.write_text(text.replace(mutant.old, mutant.new, 1), encoding="utf-8")


def build(mutant: Mutant, folder: Path, kind: str) -> Path:
    """The test program of this kind, with the mutant in the place of one object."""
    changed, program = folder / f"kernel{kind}.o", folder / f"test{kind}"
    compiler = ["g++", "-std=c++20", "-g", "-w", *flags("cuda_emulation"), *flags(f"cuda_kernels{kind}")]
    compiler += ["-DHALFBYTE_CUDA_EMULATED", f"-I{ROOT}/tests/cuda/emulator", f"-I{folder}/csrc", "-isystem", toolkit()]
    source = folder / "csrc/cuda/kernels" / f"{mutant.source}.cu"
    subprocess.run([*compiler, "-c", "-x", "c++", str(source), "-o", str(changed)], check=True, capture_output=True)
    linked = list(OBJECTS.glob(f"cuda_machine{kind}.dir/**/*.o"))
    linked += list(OBJECTS.glob(f"cuda_{mutant.test}{kind}.dir/test_*.o"))
    linked += [o for o in OBJECTS.glob(f"cuda_kernels{kind}.dir/**/*.o") if o.name != f"{mutant.source}.cu.o"]
    linker = ["g++", *(["-fsanitize=address,undefined"] if kind == "_asan" else []), "-o", str(program)]
    libraries = [str(BUILD / "libhalfbyte_core.a"), "-lpthread", "-ldl"]
    subprocess.run([*linker, *map(str, linked), str(changed), *libraries], check=True, capture_output=True)
    return program


def run(program: Path, order: str) -> str:
    """The first line that says what went wrong, or "" where nothing did."""
    try:
        done = subprocess.run(
            [program, f"--order={order}"],
            capture_output=True,
            check=False,
            timeout=600,
            env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
        )
    except subprocess.TimeoutExpired:
        return "runs for ever"
    if done.returncode == 0:
        return ""
    for line in (done.stdout + done.stderr).decode(errors="replace").splitlines():
        if line.startswith("FAIL") or "ERROR: AddressSanitizer" in line or "runtime error" in line:
            return line.strip()
    return f"exit status {done.returncode}"


def hunt(mutant: Mutant, ask_all: bool) -> tuple[Mutant, dict[str, str]]:
    """What caught it, and how."""
    caught: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        plant(mutant, Path(name))
        for kind, orders in RUNS.items():
            program = build(mutant, Path(name), kind)
            for order in orders:
                if how := run(program, order):
                    caught[kind.strip("_") or order] = how
                    if not ask_all:
                        return mutant, caught
    return mutant, caught


def main() -> int:
    ask_all = "--all" in sys.argv
    parts = [a for a in sys.argv[1:] if a != "--all"] or [""]
    wanted = [
        Mutant(file, old, new, source, test)
        for file, (source, test, changes) in MUTANTS.items()
        for old, new in changes
        if any(part in file for part in parts)
    ]
    survivors = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, caught in pool.map(lambda m: hunt(m, ask_all), wanted):
            survivors += not caught
            change = f"{' '.join(mutant.old.split())} -> {' '.join(mutant.new.split()) or '(nothing)'}"
            print(f"{'caught' if caught else 'SURVIVED'}  {mutant.file}: {change}"[:150])
            for by, how in caught.items():
                print(f"        {by}: {how}"[:170], flush=True)
    print(f"{len(wanted) - survivors} of {len(wanted)} caught")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
