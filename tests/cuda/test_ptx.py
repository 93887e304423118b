"""The PTX of every kernel, run by an interpreter on the memory of the emulated run of the same command.

cuda_ptx_cases (ptx_cases.cpp) runs small commands in emulation and writes down the launches and the memory before and
after. Here nvcc's PTX of the same kernels runs those launches: integers and moved floats must be the same bits; float
results may differ by the roundings that nvcc saves where it joins a product and a sum, within the case's tolerance
relative to the greatest value of an output.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toolkit
from ptx.instructions import from_bf16
from ptx.machine import launch
from ptx.memory import Global
from ptx.parse import Kernel, Parameter, parse

ROOT = Path(__file__).parents[2]
# Of the sources whose PTX is run; ptx_mutants.py names others.
SOURCES = Path(os.environ.get("HALFBYTE_PTX_SOURCES", ROOT / "csrc"))
PROGRAM = ROOT / "build/dev/tests/cuda/cuda_ptx_cases"
FAMILIES = ("linear", "gemm", "rows", "attention", "adapters", "sample")
# Kernels that no case launches, with the reason.
NOT_RUN: dict[str, str] = {}


def plain(names: list[str]) -> list[str]:
    """Demangled, without parameters and the names that compilers give to unnamed namespaces."""
    done = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True)
    out = []
    for line in done.stdout.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|_(?:GLOBAL__N|INTERNAL)__\w+::", "", line)
        name = name.removeprefix("void ")
        depth = 0
        for at, letter in enumerate(name):
            depth += {"<": 1, ">": -1}.get(letter, 0)
            if letter == "(" and depth == 0:
                name = name[:at]
                break
        out.append(name)
    return out


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernel]:
    """By plain name, of all files."""
    if reason := toolkit.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("ptx")

    def compiled(source: Path) -> dict[str, Kernel]:
        target = folder / f"{source.stem}.ptx"
        options = ["-std=c++20", "-O3", "-arch=compute_80", f"-I{SOURCES}", "-ptx", "-o", str(target), str(source)]
        subprocess.run(["nvcc", *options], check=True, capture_output=True)
        return parse(target.read_text(encoding="utf-8"))

    sources = sorted(
        path for path in (SOURCES / "cuda/kernels").glob("*.cu") if path.stem not in ("plugin", "launchers")
    )
    with ThreadPoolExecutor(2) as pool:
        found = {name: kernel for part in pool.map(compiled, sources) for name, kernel in part.items()}
    return dict(zip(plain(list(found)), found.values(), strict=True))


@pytest.fixture(scope="session")
def host_names() -> dict[int, str]:
    """Plain names of functions of the program by their distance from its anchor."""
    if not PROGRAM.exists():
        if reason := toolkit.missing():
            pytest.skip(reason)
        pytest.fail("the recorder is not built: cmake --preset dev && cmake --build --preset dev")
    table = subprocess.run(["nm", PROGRAM], check=True, capture_output=True, text=True).stdout
    symbols = [line.split() for line in table.splitlines()]
    functions = [(int(s[0], 16), s[2]) for s in symbols if len(s) == 3 and s[1] in "tTwW"]
    anchor = next(address for address, name in functions if name == "halfbyte_ptx_anchor")
    wanted = [(address - anchor, name) for address, name in functions if "_kernel" in name]
    return dict(zip((at for at, _ in wanted), plain([name for _, name in wanted]), strict=True))


def as_ptx(raw: bytes, parameters: list[Parameter]) -> bytes:
    """The parameters as PTX lays them out, from the std::tuple in which the emulator keeps them: the last one first."""
    places, at = [], 0
    for parameter in reversed(parameters):
        at = (at + parameter.align - 1) // parameter.align * parameter.align
        places.append(at)
        at += parameter.size
    out = b""
    for parameter, place in zip(parameters, reversed(places), strict=True):
        out += b"\0" * (-len(out) % parameter.align)
        out += raw[place : place + parameter.size]
    return out


def values_of(raw: Any, kind: str) -> Any:
    return from_bf16(raw.view(np.uint16)) if kind == "bf16" else raw.view(np.float32)


def run_case(case: dict[str, Any], kernels: dict[str, Kernel], host_names: dict[int, str]) -> set[str]:
    """The names of the kernels that ran."""
    pieces = {}
    for block in case["memory"]:
        scratch = block["kind"] == "scratch"
        before = (
            np.zeros(block["bytes"], np.uint8) if scratch else np.frombuffer(bytes.fromhex(block["before"]), np.uint8)
        )
        pieces[block["address"]] = before
    memory = Global(pieces)
    ran = set()
    for one in case["launches"]:
        name = host_names[one["kernel"]]
        kernel = kernels[name]
        parameters = as_ptx(bytes.fromhex(one["parameters"]), kernel.parameters)
        launch(memory, kernel, parameters, one["grid"], one["block"], one["dynamic"])
        ran.add(name)
    assert ran, case["name"]
    for block in case["memory"]:
        if block["kind"] == "scratch":
            continue
        want = np.frombuffer(bytes.fromhex(block["after"]), np.uint8)
        got = memory.piece(block["address"], len(want))
        if block["kind"] == "exact" or case["tolerance"] == 0:
            np.testing.assert_array_equal(got, want, err_msg=case["name"])
            continue
        expected, found = values_of(want, block["kind"]), values_of(np.ascontiguousarray(got), block["kind"])
        scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0))
        tolerance = max(case["tolerance"], 2**-8 if block["kind"] == "bf16" else 0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=case["name"])
    return ran


_RAN: dict[str, set[str]] = {}


@pytest.mark.parametrize("family", FAMILIES)
def test_ptx(family: str, kernels: dict[str, Kernel], host_names: dict[int, str], tmp_path: Path) -> None:
    file = tmp_path / "cases.json"
    subprocess.run([PROGRAM, family, file], check=True, capture_output=True)
    ran = set()
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            ran |= run_case(json.loads(line), kernels, host_names)
    _RAN[family] = ran


def test_every_kernel_ran(kernels: dict[str, Kernel]) -> None:
    if set(_RAN) != set(FAMILIES):
        pytest.skip("not all families ran in this process")
    assert set(kernels) - set().union(*_RAN.values()) == set(NOT_RUN)
