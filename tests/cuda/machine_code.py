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
# What tools/bench/gpu_roofline.py reckons with, in main loops: what the load/store unit serves, by width, and what
# other units do. Instructions on a warp's one value (U...) have a unit of their own and are left out.
LOOP_INSTRUCTIONS = {
    "HMMA": r"HMMA\.16816",
    "LDSM": r"LDSM",
    "LDS.32": r"LDS(?!M|\.64|\.128)",
    "LDS.64": r"LDS\.64",
    "LDS.128": r"LDS\.128",
    "STS.32": r"STS(?!\S*\.64|\S*\.128)",
    "STS.64": r"STS\S*\.64",
    "STS.128": r"STS\S*\.128",
    "LDGSTS": r"LDGSTS",
    "LDG.32": r"LDG\.E(?!\S*\.64|\S*\.128)",
    "LDG.64": r"LDG\.E\S*\.64",
    "LDG.128": r"LDG\.E\S*\.128",
    "SHFL": r"SHFL",
    "FMA": r"F(?:ADD|MUL|FMA)\b|H(?:ADD2|MUL2|FMA2)\b|IMAD\b",
    "IMAD": r"IMAD\b",
    "ALU": (
        r"V?I(?:ADD|ADD3|MNMX|SETP|ABS|ADDMNMX)\b|LOP3|SHF\b|LEA|PRMT|F?SEL\b|FSETP|FMNMX|MOV\b|F2FP|PLOP3|SGXT|BMSK"
    ),
    "MUFU": r"MUFU|I2F|F2I|F2F\b|FRND|POPC|FLO|BREV",
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
    code: list[tuple[int, str, int | None]] = field(default_factory=list)  # address, opcode, where it jumps to

    def main_loop(self) -> Counter[str]:
        """The opcodes of the loop that holds most of the tensor instructions or, without them, of the wide loads."""
        key = re.compile(KEY_INSTRUCTIONS["HMMA" if self.count(KEY_INSTRUCTIONS["HMMA"]) else "LDG.128"])
        loops = []
        for source, _, target in self.code:
            if target is not None and target < source:
                inside = [opcode for at, opcode, _ in self.code if target <= at <= source and opcode != "NOP"]
                loops.append((-sum(key.match(opcode) is not None for opcode in inside), len(inside), inside))
        return Counter(min(loops)[2]) if loops and min(loops)[0] < 0 else Counter()

    def count(self, pattern: str) -> int:
        matches = re.compile(f"(?:{pattern})").match
        return sum(count for opcode, count in self.opcodes.items() if matches(opcode))

    @property
    def instructions(self) -> int:
        return sum(count for opcode, count in self.opcodes.items() if opcode != "NOP")

    def summary(self) -> dict[str, int]:
        keys = {name: self.count(pattern) for name, pattern in KEY_INSTRUCTIONS.items()}
        loop = self.main_loop()
        in_loop = {"loop instructions": sum(loop.values())}
        for name, pattern in LOOP_INSTRUCTIONS.items():
            in_loop[f"loop {name}"] = sum(n for opcode, n in loop.items() if re.match(pattern, opcode))
        return (
            {"registers": self.registers, "shared": self.shared, "instructions": self.instructions}
            | {name: count for name, count in keys.items() if count}
            | {name: count for name, count in in_loop.items() if count}
        )


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
            match := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)(.*)", line)
        ):
            current.opcodes[match[2]] += 1
            jump = re.match(r"\s+(?:!?U?P\w+,\s+)?0x([0-9a-f]+)", match[3]) if match[2].startswith("BRA") else None
            current.code.append((int(match[1], 16), match[2], int(jump[1], 16) if jump else None))
    names = demangled(list(found))
    return {names[name]: kernel for name, kernel in found.items()}
