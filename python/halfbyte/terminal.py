"""What the command line shows beside its results: a progress bar, and sizes written for people. Always on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_SHOWN_AFTER = 1.0  # seconds: quicker work needs no bar
_WIDTH = 30


class ProgressBar:
    """Call it with 0..1. Shows itself on a terminal once the work has taken a second, and leaves nothing behind."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._started = time.monotonic()
        self._drawn = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, fraction: float) -> None:
        """Tell how much is done, 0..1."""
        now = time.monotonic()
        if not self._terminal or now - self._started < _SHOWN_AFTER or now - self._drawn < 0.1:
            return
        self._drawn = now
        full = round(_WIDTH * min(max(fraction, 0.0), 1.0))
        bar = "#" * full + "-" * (_WIDTH - full)
        print(f"\r{self._label} [{bar}] {fraction:4.0%}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def size_text(count: float) -> str:
    """A number of bytes for people, in powers of 1000: "98.4 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count_text(count: float) -> str:
    """A number of parameters for people: "134.5M"."""
    for unit in ("", "K", "M"):
        if count < 1000:
            return f"{count:.0f}" if unit == "" else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}B"
