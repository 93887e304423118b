"""The emulated GPU, on which the tests of this folder run whole models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import toolkit

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def emulated() -> str:
    """The path of the emulated plugin. An error where it could be there and isn't; skipped without a CUDA toolkit."""
    path = os.environ.get("HALFBYTE_CUDA_LIBRARY", "")
    if path and Path(path).exists():
        return path
    if reason := toolkit.missing():
        pytest.skip(reason)
    pytest.fail("the emulated GPU is not built: cmake --preset dev && cmake --build --preset dev")
