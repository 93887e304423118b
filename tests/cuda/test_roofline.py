"""docs/performance-cuda.md is what tools/bench/gpu_roofline.py makes of the recorded machine code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_the_scripts() -> None:
    script = ROOT / "tools/bench/gpu_roofline.py"
    text = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout
    assert text == (ROOT / "docs/performance-cuda.md").read_text(encoding="utf-8"), f"python {script.name} --write"
