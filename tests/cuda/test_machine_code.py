"""The machine code of the plugin: nothing spilt, the instructions that the design stands on, and no growth unseen.

machine_code.json holds what was recorded; HALFBYTE_WRITE_DOCS=1 records anew, after a change that is meant. Needs the
plugin beside the module (HALFBYTE_CUDA=ON), cuobjdump and nvdisasm (the test extra).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import toolkit

from halfbyte import _core

if TYPE_CHECKING:
    from machine_code import Kernel

RECORD = Path(__file__).with_name("machine_code.json")
LIBRARY = Path(_core.__file__).with_name("libhalfbyte_cuda.so")
NIGHTLY = os.environ.get("HALFBYTE_NIGHTLY") == "1"
WRITING = os.environ.get("HALFBYTE_WRITE_DOCS") == "1"
ALL = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
ARCHITECTURES = ALL if NIGHTLY or WRITING else ("sm_80", "sm_90", "sm_120")
GROWTH = 1.2  # of instructions: what a new compiler may do; more is a change of ours
MOST_BYTES = 8 << 20  # of the whole plugin, six architectures and PTX
# The most registers a kernel may take, by the first pattern that fits its name: what its occupancy was reckoned with.
REGISTERS = (
    (r"attention::prefill_kernel", 255),  # 4 warps a block: 2 blocks to a multiprocessor
    (r"\bgemm\w*_kernel", 255),
    (r"attention::(decode|exact)_kernel", 168),
    (r"gemv", 168),
    (r"", 128),
)
# The sampler draws what the host draws; angles keep their digits; norms are sums of squares that no float may hold.
MEANT_DOUBLES = r"top_[kp]_|draw_|finish_|slices_|rope_kernel|unit_kernel"


@pytest.fixture(scope="session")
def library() -> Path:
    if not LIBRARY.exists():
        if reason := toolkit.missing():
            pytest.skip(reason)
        pytest.fail(f"{LIBRARY.name} is not beside the module: install with HALFBYTE_CUDA=ON")
    return LIBRARY


@pytest.fixture(scope="session")
def code(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Kernel]]:
    """Kernels by architecture and name."""
    from machine_code import Tools, kernels_of

    tools = Tools(tmp_path_factory.mktemp("tools"))
    return {architecture: kernels_of(tools, library, architecture) for architecture in ARCHITECTURES}


def recorded() -> dict[str, dict[str, dict[str, int]]]:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def one_line_each(record: dict[str, dict[str, dict[str, int]]]) -> str:
    """JSON with a line for each kernel."""
    parts = []
    for architecture, kernels in record.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(summary)}" for name, summary in kernels.items()]
        parts.append(f" {json.dumps(architecture)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def test_the_record(code: dict[str, dict[str, Kernel]]) -> None:
    """Every kernel is on record with the counts of what it stands on, and has not grown."""
    if WRITING:
        record = {
            architecture: {name: kernel.summary() for name, kernel in sorted(kernels.items())}
            for architecture, kernels in code.items()
        }
        RECORD.write_text(one_line_each(record), encoding="utf-8")
    record = recorded()
    problems: list[Any] = []
    for architecture, kernels in code.items():
        if set(kernels) != set(record[architecture]):
            problems.append((architecture, "kernels", sorted(set(kernels) ^ set(record[architecture]))))
            continue
        for name, kernel in kernels.items():
            now, then = kernel.summary(), record[architecture][name]
            if now["instructions"] > GROWTH * then["instructions"]:
                problems.append((architecture, name, "instructions", now["instructions"], then["instructions"]))
            for key in now.keys() | then.keys():
                if key in ("instructions", "registers", "shared") or key.startswith("loop "):
                    continue
                if now.get(key, 0) != then.get(key, 0):
                    problems.append((architecture, name, key, now.get(key, 0), then.get(key, 0)))
    assert not problems, "record anew with HALFBYTE_WRITE_DOCS=1 if this is meant"


def test_nothing_is_spilt(code: dict[str, dict[str, Kernel]]) -> None:
    from machine_code import SPILLS

    for architecture, kernels in code.items():
        assert len(kernels) > 30
        for name, kernel in kernels.items():
            assert kernel.local == 0 and kernel.stack == 0 and kernel.count(SPILLS) == 0, (architecture, name)


def test_registers(code: dict[str, dict[str, Kernel]]) -> None:
    for architecture, kernels in code.items():
        for name, kernel in kernels.items():
            limit = next(most for pattern, most in REGISTERS if re.search(pattern, name))
            assert 0 < kernel.registers <= limit, (architecture, name, kernel.registers)


def test_no_double_arithmetic(code: dict[str, dict[str, Kernel]]) -> None:
    from machine_code import DOUBLES

    for architecture, kernels in code.items():
        for name, kernel in kernels.items():
            if re.search(MEANT_DOUBLES, name) is None:
                assert kernel.count(DOUBLES) == 0, (architecture, name)


@pytest.mark.parametrize(
    ("pattern", "instructions"),
    [
        (r"\bgemm\w*_kernel", ("HMMA", "LDSM", "LDGSTS")),
        (r"attention::prefill_kernel", ("HMMA", "LDSM")),
        (r"attention::decode_kernel<attention::Decode(16|F32)", ("LDG.128",)),
        (r"gemv_mma", ("HMMA", "LDG.128")),
        (r"gemv_exact", ("LDG.128",)),
    ],
)
def test_what_kernels_stand_on(pattern: str, instructions: tuple[str, ...], code: dict[str, dict[str, Kernel]]) -> None:
    for architecture, kernels in code.items():
        named = [(name, kernel.summary()) for name, kernel in kernels.items() if re.search(pattern, name)]
        assert named, (architecture, pattern)
        for name, summary in named:
            for instruction in instructions:
                assert summary.get(instruction, 0) > 0, (architecture, name, instruction)


def test_the_plugin_itself(library: Path) -> None:
    """One symbol, and not too large."""
    table = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
    assert [line.split()[-1] for line in table.splitlines()] == ["halfbyte_cuda_plugin"]
    needed = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    assert "libcuda" not in needed and "libcudart" not in needed  # the driver is opened when it is asked for
    assert library.stat().st_size < MOST_BYTES
