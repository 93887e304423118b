"""Whether the tests of this folder can be expected to find what nvcc makes."""

from __future__ import annotations

import os
import shutil


def missing() -> str:
    """Why there is no CUDA part to test; empty where there must be one."""
    if os.environ.get("HALFBYTE_CUDA") == "OFF":
        return "HALFBYTE_CUDA=OFF: the CUDA plugin was left out"
    if os.environ.get("HALFBYTE_CUDA") != "ON" and shutil.which("nvcc") is None:
        return "no CUDA toolkit: nvcc is not on PATH, and the kernels need its headers"
    return ""
