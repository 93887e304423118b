"""Shared by all tests. Heavy packages (torch, transformers) are imported by the fixtures that need them, not here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from oracle.builders import Zoo

# No test may reach a network, and the reference must not wander to an accelerator.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Tiny random checkpoints by name, made on demand."""
    from oracle.builders import Zoo

    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def page() -> str:
    """A page of plain English."""
    return (DATA / "page.txt").read_text()
