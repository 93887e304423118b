"""What the CUDA plugin holds: its kernels as machine code, read with NVIDIA's own tools from packages on PyPI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nvidia

# Instructions that the design stands on: their counts are recorded, and differ only on purpose.
KEY_INSTRUCTIONS = {
    "HMMA": r"HMMA\.16816",  # tensor cores
    "LDGSTS": r"LDGSTS",  # cp.async
    "LDSM": r"LDSM",  # ldmatrix
    "LDG.128": r"LDG\.E\S*\.128",
    "LDS.128": r"LDS\.128",
}
SPILLS = r"STL|LDL"
DOUBLES = r"D(?:ADD|MUL|FMA|SETP|MNMX)|F2F\.F64|MUFU\.\w+64H"


@dataclass
class Kernel:
    """One kernel for one architecture."""

    registers: int = 0
    stack: int = 0
    shared: int = 0  # static, bytes
    local: int = 0
    opcodes: Counter[str] = field(default_factory=Counter)

    def count(self, pattern: str) -> int:
        matches = re.compile(f"(?:{pattern})").match
        return sum(count for opcode, count in self.opcodes.items() if matches(opcode))

    @property
    def instructions(self) -> int:
        return sum(count for opcode, count in self.opcodes.items() if opcode != "NOP")

    def summary(self) -> dict[str, int]:
        keys = {name: self.count(pattern) for name, pattern in KEY_INSTRUCTIONS.items()}
        return {"registers": self.registers, "shared": self.shared, "instructions": self.instructions} | {
            name: count for name, count in keys.items() if count
        }


class Tools:
    """cuobjdump, which wants nvdisasm on PATH; the packages may lack the bit that makes them programs."""

    def __init__(self, folder: Path) -> None:
        places = [Path(part) / "cu13/bin" for part in nvidia.__path__]
        for name in ("cuobjdump", "nvdisasm"):
            found = next(path / name for path in places if (path / name).exists())
            shutil.copy(found, folder / name)
            (folder / name).chmod(0o755)
        self._folder = folder

    def cuobjdump(self, *arguments: str) -> str:
        environment = os.environ | {"PATH": f"{self._folder}{os.pathsep}{os.environ['PATH']}"}
        command = [str(self._folder / "cuobjdump"), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def demangled(names: list[str]) -> dict[str, str]:
    """As the sources have them, without the namespaces of the project and the parameters."""
    done = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True)
    short = {}
    for name, text in zip(names, done.stdout.splitlines(), strict=True):
        plain = text.replace("halfbyte::cuda::", "").replace("(anonymous namespace)::", "").removeprefix("void ")
        depth = 0
        for at, letter in enumerate(plain):
            depth += {"<": 1, ">": -1}.get(letter, 0)
            if letter == "(" and depth == 0:
                plain = plain[:at]
                break
        short[name] = re.sub(r"\((?:int|bool|halfbyte::cuda::\w+|\w+)\)", "", plain)
    return short


def kernels_of(tools: Tools, library: Path, architecture: str) -> dict[str, Kernel]:
    """By demangled name; architecture: "sm_90"."""
    found: dict[str, Kernel] = {}
    usage = tools.cuobjdump("-res-usage", "-arch", architecture, str(library))
    pattern = r"Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    for name, *numbers in re.findall(pattern, usage):
        registers, stack, shared, local = map(int, numbers)
        found[name] = Kernel(registers, stack, shared, local)
    current: Kernel | None = None
    for line in tools.cuobjdump("-sass", "-arch", architecture, str(library)).splitlines():
        if match := re.search(r"Function : (\S+)", line):
            current = found[match[1]]
        elif current is not None and (
            match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", line)
        ):
            current.opcodes[match[1]] += 1
    names = demangled(list(found))
    return {names[name]: kernel for name, kernel in found.items()}
