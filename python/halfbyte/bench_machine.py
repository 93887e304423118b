"""The machine that ``halfbyte bench`` runs on: its roofs, measured, and the conditions of a measurement."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import _core


@dataclass(frozen=True)
class Roofs:
    """What a number of threads can do at best, measured in the run that it is compared with."""

    read_gb_per_s: float  # bytes from memory
    float32: float  # GFLOP/s of multiply-adds, by what is multiplied
    bfloat16: float  # 0: the processor has no instruction for it
    int16: float
    int8: float

    def binding(self, precision: str) -> tuple[str, float]:
        """The roof over the linear layers: the quickest multiplication of those that the precision allows.

        "high" needs 16 bits of an activation, "fast" 8 of them, "float32" all.
        """
        name = {"high": "int16", "fast": "int8"}.get(precision, "float32")
        best = max((name, "float32"), key=lambda kind: float(getattr(self, kind)))
        return best, float(getattr(self, best))


def measure_roofs(threads: int) -> Roofs:
    """Take about a second."""
    peaks = {kind: _core.peak_gflops(threads, 0.15, kind) for kind in ("float32", "bfloat16", "int16", "int8")}
    return Roofs(_core.read_bandwidth(threads), **peaks)


def resident_bytes() -> int:
    """Memory of this process that is in RAM now, mapped pages of files included. 0 where the system doesn't say."""
    return 1024 * int(_proc_field("/proc/self/status", "VmRSS").removesuffix("kB") or 0)


def peak_resident_bytes() -> int:
    """The most that it was since the process began."""
    return 1024 * int(_proc_field("/proc/self/status", "VmHWM").removesuffix("kB") or 0)


def processor() -> str:
    """What the processor calls itself."""
    return _proc_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _proc_field(path: str, name: str) -> str:
    """The first field of that name; empty where there is none (not Linux)."""
    try:
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""


def commit() -> str:
    """Short hash of the checkout that this file is in, "+" behind it where tracked files differ; empty outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not (root / "csrc").is_dir():
        return ""
    try:
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        return _git(root, "rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
