#!/usr/bin/env python3
"""Plants bugs in the CUDA kernels and asks the tests in emulation to find each.

By hand or nightly, with build/dev built: python tests/cuda/mutants.py [part of a file's name]. Every mutant is compiled
into the test program of its kernel, plain and with the race detector; it is caught where one of three orders of
threads, the detector or the counted accesses says so. The exit status is 1 if one survives.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/dev"
PLAIN = ["-O2"]
RACE = ["-O1", "-fno-tree-sra", "-fno-tree-vectorize", "-fno-tree-slp-vectorize", "-finline-functions"]
RACE += ["-finline-small-functions", "-finline-limit=4000", "--param", "inline-unit-growth=4000"]
RACE += ["--param", "large-function-growth=4000", "-fsanitize=thread"]


class Mutant(NamedTuple):
    """One planted bug."""

    file: str
    old: str
    new: str
    source: str  # the .cu that is compiled anew
    test: str  # cuda_NAME


MUTANTS = [
    # tiles: decoding and scales
    Mutant(
        "tiles.cuh",
        "at = (int64_t(row_tile) * w.blocks + block) * 16 + row",
        "at = (int64_t(row_tile) * w.blocks + block) * 16",
        "linear_f32",
        "linear",
    ),
    Mutant("tiles.cuh", "int(index >> w.nested_shift)", "int(index >> (w.nested_shift + 1))", "linear_f32", "linear"),
    Mutant(
        "tiles.cuh",
        "(int64_t(row_tile) * 16 + row) * w.blocks + block;",
        "(int64_t(row_tile) * 16 + row) * w.blocks;",
        "linear_f32",
        "linear",
    ),
    Mutant(
        "tiles.cuh",
        "^ 0x80808080u, 0x4b000000u, 0x7440u",
        "^ 0x00808080u, 0x4b000000u, 0x7440u",
        "linear_f32",
        "linear",
    ),
    Mutant("tiles.cuh", "__fadd_rn(product, s.offset)", "product", "linear_f32", "linear"),
    # products with few rows
    Mutant(
        "gemv_exact.cuh",
        "col < w.cols ? __ldg(command.x + m * command.x_stride + col) : 0.0f",
        "__ldg(command.x + m * command.x_stride + col)",
        "linear_gemv",
        "linear",
    ),
    Mutant(
        "gemv_exact.cuh",
        "        __syncthreads();\n        for (int first = chunk + warp;",
        "        for (int first = chunk + warp;",
        "linear_gemv",
        "linear",
    ),
    Mutant("gemv_common.cuh", "if (last) command.counters[blockIdx.x] = 0;", "", "linear_gemv", "linear"),
    Mutant("gemv_common.cuh", "*y = part.accumulate ? *y + sum : sum;", "*y = sum;", "linear_gemv", "linear"),
    Mutant(
        "gemv_common.cuh",
        "out.last_tile = int(all * (blockIdx.y + 1) / gridDim.y);",
        "out.last_tile = int(all * (blockIdx.y + 1) / gridDim.y) - 1;",
        "linear_gemv",
        "linear",
    ),
    Mutant("gemv_mma.cuh", "mma_bf16(d, a[r], rest);", "", "linear_gemv", "linear"),
    Mutant("gemv_mma.cuh", "row < command.rows && col + at < w.cols", "row < command.rows", "linear_gemv", "linear"),
    # products with many rows
    Mutant(
        "gemm.cuh",
        "cp_async_wait<kStages - 2>();\n        auto& scales",
        "cp_async_wait<kStages - 1>();\n        auto& scales",
        "linear_gemm",
        "gemm",
    ),
    Mutant("gemm.cuh", "__syncthreads();  // all have waited", "// all have waited", "linear_gemm", "gemm"),
    Mutant("gemm.cuh", "(thread % 8 ^ (thread / 8 % 8)) * 16;", "thread % 8 * 16;", "linear_gemm", "gemm"),
    Mutant("gemm.cuh", "scale_table[(tile - unit.first) % 2]", "scale_table[0]", "linear_gemm", "gemm"),
    Mutant("gemm.cuh", "const bool valid = i * 16 < x_rows;", "const bool valid = true;", "linear_gemm", "gemm"),
    Mutant(
        "gemm.cuh",
        "a[0] = words[0], a[2] = words[1], a[1] = words[2], a[3] = words[3];",
        "a[0] = words[0], a[1] = words[1], a[2] = words[2], a[3] = words[3];",
        "linear_gemm",
        "gemm",
    ),
    Mutant("gemm.cuh", "if (last) command.counters[block] = 0;", "", "linear_gemm", "gemm"),
    Mutant(
        "gemm.cuh",
        "constexpr int kPitch = kGemmFeatures + 4;",
        "constexpr int kPitch = kGemmFeatures;",
        "linear_gemm",
        "gemm",
    ),
    # attention
    Mutant(
        "attention_prefill.cuh",
        "ldmatrix_x4_trans(v, v_lane",
        "ldmatrix_x4(v, v_lane",
        "attention_prefill",
        "attention",
    ),
    Mutant(
        "attention_prefill.cuh",
        "__syncthreads();  // what this half needs",
        "// what this half needs",
        "attention_prefill",
        "attention",
    ),
    Mutant(
        "attention_prefill.cuh", "key < visible || key >= hidden", "key >= hidden", "attention_prefill", "attention"
    ),
    Mutant(
        "attention_prefill.cuh",
        "key0 + kTileKeys > all_high;",
        "key0 + kTileKeys > all_high + 1;",
        "attention_prefill",
        "attention",
    ),
    Mutant("attention_exact.cuh", "if (!visible) score[j] = -INFINITY;", "", "attention_exact", "attention"),
    Mutant("attention_exact.cuh", "sums[j][c] *= shrink[half + j];", ";", "attention_exact", "attention"),
    Mutant(
        "attention_decode.cuh",
        "partials[split * (width + 2) + width + 1]",
        "partials[split * (width + 2) + width]",
        "attention_decode",
        "attention",
    ),
    Mutant("store_kv.cuh", "127.0f / most", "128.0f / most", "store_kv", "store_kv"),
    Mutant("store_kv.cuh", "if (pair >= int64_t(c.tokens) * c.heads) return;", "", "store_kv", "store_kv"),
    # rows
    Mutant(
        "transform_rows.cu", "if (c + i < command.padded_cols)", "if (c + i < command.cols)", "transform_rows", "rows"
    ),
    Mutant("transform_rows.cu", "z = left > 2 ? v.z - mean : 0.0f", "z = v.z - mean", "transform_rows", "rows"),
    Mutant(
        "rows.cu", "quadrant == 1 || quadrant == 2 ? -first : first", "quadrant == 1 ? -first : first", "rows", "rows"
    ),
    Mutant("rows.cu", "kInterleaved ? 2 * i : i", "i", "rows", "rows"),
    Mutant(
        "rows.cu",
        "    room[group][lane] = value;\n    __syncthreads();",
        "    room[group][lane] = value;",
        "rows",
        "rows",
    ),
    # adapters
    Mutant(
        "adapters.cuh", "y[r] = pivot + gain * (y[r] - pivot)", "y[r] = gain * (y[r] - pivot)", "adapters", "adapters"
    ),
    Mutant("adapters.cuh", "entry.scale * total", "total", "adapters", "adapters"),
    Mutant(
        "adapters.cuh",
        "            __syncthreads();\n            if (!exists) continue;",
        "            if (!exists) continue;",
        "adapters",
        "adapters",
    ),
    Mutant("adapters.cuh", "__syncthreads();  // what the entry before left has been read", "", "adapters", "adapters"),
    # the sampler
    Mutant("sample.cu", "Amount(view.options.top_k - 1)", "Amount(view.options.top_k)", "sample", "sample"),
    Mutant("sample.cu", "weight.value >= min_p", "weight.value > 2 * min_p", "sample", "sample"),
    Mutant("sample.cu", "if (any_bad) atomicOr(&view.state->bad, 1u);", "", "sample", "sample"),
    Mutant("sample.cu", "low[i] = high[i] = 0;\n    __syncthreads();", "low[i] = high[i] = 0;", "sample", "sample"),
]


def toolkit() -> str:
    cache = (BUILD / "CMakeCache.txt").read_text(encoding="utf-8")
    return next(line.split("=", 1)[1] for line in cache.splitlines() if line.startswith("HALFBYTE_CUDA_INCLUDE"))


def build(mutant: Mutant, folder: Path, include: str) -> dict[str, Path]:
    """The test program with the mutant in the place of one object: "plain" and "race"."""
    sources = folder / "csrc"
    shutil.copytree(ROOT / "csrc", sources)
    file = sources / "cuda/kernels" / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) == 0:
        raise LookupError(f"{mutant.file} has no {mutant.old!r}")
    file.write_text(text.replace(mutant.old, mutant.new, 1), encoding="utf-8")
    programs = {}
    objects = BUILD / "tests/cuda/CMakeFiles"
    for kind, suffix, flags in (("plain", "", PLAIN), ("race", "_race", RACE)):
        changed = folder / f"{kind}.o"
        command = [
            "g++",
            "-std=c++20",
            "-g",
            "-Wno-unknown-pragmas",
            "-fno-strict-aliasing",
            "-ffp-contract=off",
            *flags,
        ]
        command += [
            "-DHALFBYTE_CUDA_EMULATED",
            f"-I{ROOT}/tests/cuda/emulator",
            f"-I{sources}",
            "-isystem",
            include,
            "-w",
        ]
        command += ["-c", "-x", "c++", str(sources / f"cuda/kernels/{mutant.source}.cu"), "-o", str(changed)]
        subprocess.run(command, check=True, capture_output=True)
        linked = list(objects.glob(f"cuda_machine{suffix}.dir/**/*.o"))
        linked += list(objects.glob(f"cuda_{mutant.test}{suffix}.dir/test_*.o"))
        linked += [o for o in objects.glob(f"cuda_kernels{suffix}.dir/**/*.o") if o.name != f"{mutant.source}.cu.o"]
        programs[kind] = folder / kind
        libraries = [str(BUILD / "libhalfbyte_core.a"), "-lpthread", "-ldl"]
        link = ["g++", "-o", str(programs[kind]), *map(str, linked), str(changed), *libraries]
        subprocess.run(link, check=True, capture_output=True)
    return programs


def hunt(mutant: Mutant) -> tuple[Mutant, str]:
    """What caught it, or "" for nothing."""
    with tempfile.TemporaryDirectory() as name:
        try:
            programs = build(mutant, Path(name), toolkit())
        except LookupError as error:
            return mutant, f"?? {error}"
        runs = [(order, [programs["plain"], f"--order={order}"]) for order in ("forward", "reverse", "random")]
        for what, command in [*runs, ("the race build", [programs["race"]])]:
            done = subprocess.run(command, capture_output=True, check=False, timeout=600)
            if done.returncode != 0:
                return mutant, what
    return mutant, ""


def main() -> int:
    wanted = [m for m in MUTANTS if len(sys.argv) < 2 or sys.argv[1] in m.file]
    survivors = 0
    with ThreadPoolExecutor(2) as pool:
        for mutant, caught in pool.map(hunt, wanted):
            lost = caught == "" or caught.startswith("??")
            survivors += lost
            change = " ".join(mutant.new.split()) or "(nothing)"
            print(
                f"{'SURVIVED ' + caught if lost else 'caught: ' + caught:24}  {mutant.file}: {change}"[:150], flush=True
            )
    print(f"{len(wanted) - survivors} of {len(wanted)} caught")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
