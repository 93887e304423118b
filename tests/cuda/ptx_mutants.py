#!/usr/bin/env python3
"""Plants bugs in what only nvcc sees, the inline PTX of device.h, and asks test_ptx.py to find each.

By hand or nightly: python tests/cuda/ptx_mutants.py. The exit status is 1 if one was not found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
# (what is wrong, family of cases that must see it, text of device.h, the text in its place)
MUTANTS = [
    (
        "mma bf16: a's registers swapped",
        "gemm",
        '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])',
        '"r"(a[0]), "r"(a[2]), "r"(a[1]), "r"(a[3])',
    ),
    ("mma bf16: b's registers swapped", "gemm", '"r"(b[0]), "r"(b[1]));', '"r"(b[1]), "r"(b[0]));'),
    ("mma bf16: as f16", "gemm", "m16n8k16.row.col.f32.bf16.bf16.f32", "m16n8k16.row.col.f32.f16.f16.f32"),
    ("mma f16: as bf16", "attention", "m16n8k16.row.col.f32.f16.f16.f32", "m16n8k16.row.col.f32.bf16.bf16.f32"),
    (
        "ldmatrix x4: transposed",
        "gemm",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
    ),
    (
        "ldmatrix x4 trans: not transposed",
        "attention",
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16",
    ),
    (
        "ldmatrix x4: registers swapped",
        "gemm",
        '"=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])',
        '"=r"(out[0]), "=r"(out[2]), "=r"(out[1]), "=r"(out[3])',
    ),
    (
        "cp.async 16: half of it",
        "gemm",
        "cp.async.cg.shared.global [%0], [%1], 16, %2;",
        "cp.async.ca.shared.global [%0], [%1], 8, %2;",
    ),
    (
        "cp.async 16: zeros where there is something",
        "gemm",
        "const int bytes = valid ? 16 : 0;",
        "const int bytes = valid ? 0 : 16;",
    ),
    (
        "cp.async: one group more is left",
        "gemm",
        '"n"(kGroupsLeft)',
        '"n"(kGroupsLeft + 1)',
    ),
    (
        "cp.async: nothing is committed",
        "gemm",
        'asm volatile("cp.async.commit_group;" ::: "memory");',
        'asm volatile("" ::: "memory");',
    ),
    ("bf16 pair: towards zero", "linear", "cvt.rn.bf16x2.f32", "cvt.rz.bf16x2.f32"),
    ("bf16 pair: nothing negative", "linear", "cvt.rn.bf16x2.f32", "cvt.rn.relu.bf16x2.f32"),
    ("f16 pair: towards zero", "attention", "cvt.rn.f16x2.f32", "cvt.rz.f16x2.f32"),
    ("f16 pair: swapped", "attention", "cvt.rn.f16x2.f32 %0, %1, %2;", "cvt.rn.f16x2.f32 %0, %2, %1;"),
    ("shift: the upper half of the product", "linear", "mul.lo.u32 %0", "mul.hi.u32 %0"),
    ("bf16 pair: swapped", "linear", '"=r"(out) : "f"(high), "f"(low)', '"=r"(out) : "f"(low), "f"(high)'),
    ("2^x: base e", "attention", "ex2.approx.ftz.f32 %0, %1;", "mov.f32 %0, %1;"),
    (
        "load_once: words swapped",
        "linear",
        '"=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)',
        '"=r"(out.y), "=r"(out.x), "=r"(out.z), "=r"(out.w)',
    ),
    ("lop3: operands swapped", "linear", '"r"(a), "r"(b), "r"(c), "n"(kTable)', '"r"(c), "r"(b), "r"(a), "n"(kTable)'),
]


def main() -> int:
    survivors = []
    device = (ROOT / "csrc/cuda/kernels/device.h").read_text(encoding="utf-8")
    for what, family, old, new in MUTANTS:
        if old not in device:
            print(f"??      {what}: device.h has no {old!r}")
            survivors.append(what)
            continue
        with tempfile.TemporaryDirectory() as folder:
            sources = Path(folder) / "csrc"
            shutil.copytree(ROOT / "csrc/cuda", sources / "cuda")
            (sources / "cuda/kernels/device.h").write_text(device.replace(old, new, 1), encoding="utf-8")
            command = [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-x",
                str(ROOT / "tests/cuda/test_ptx.py"),
                "-k",
                f"test_ptx and {family}",
            ]
            environment = os.environ | {"HALFBYTE_PTX_SOURCES": str(sources)}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        stopped = "a form that the interpreter does not know" in done.stdout  # while it was read, before any test
        caught = done.returncode == 1 and ("failed" in done.stdout or stopped)
        print(f"{'caught' if caught else 'SURVIVED'}  {what}", flush=True)
        if not caught:
            survivors.append(what)
    print(f"{len(MUTANTS) - len(survivors)} of {len(MUTANTS)} caught")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
