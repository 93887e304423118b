"""Shared by all tests. Heavy packages (torch, transformers) are imported by the fixtures that need them, not here."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from oracle.adapters import Adapters
    from oracle.builders import Zoo
    from oracle.cases import Engines, References

# No test may reach a network, and the reference must not wander to an accelerator.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# "auto" is the CPU, and "cuda" the emulated GPU of tests/cuda, where the C and C++ tests have been built.
os.environ.setdefault("HALFBYTE_DEVICE", "cpu")
EMULATED = Path(__file__).parents[1] / "build/dev/tests/cuda/libhalfbyte_cuda_emulated.so"
if EMULATED.exists():
    os.environ.setdefault("HALFBYTE_CUDA_LIBRARY", str(EMULATED))
    # Closing device memory to the host round every launch takes half of the time; tests/cuda has tests that do.
    os.environ.setdefault("CUDAEMU", "open")
# bitsandbytes would compile its decoder with a C++ compiler, anew for each shape.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

# A runner that a shell started in the background ignores Ctrl-C, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


@pytest.fixture(scope="session")
def references(zoo: Zoo) -> References:
    """Float64 runs of those checkpoints, and the errors of lower precisions."""
    from oracle.cases import References

    return References(zoo)


@pytest.fixture(scope="session")
def adapters(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """PEFT folders by name, made on demand."""
    from oracle.adapters import Adapters

    return Adapters(zoo, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def engines(zoo: Zoo) -> Iterator[Engines]:
    """halfbyte's models of those checkpoints."""
    from oracle.cases import Engines

    engines = Engines(zoo)
    yield engines
    engines.close()


_REPORTED: list[str] = []


@pytest.fixture
def report() -> Callable[[str], None]:
    """Says a measured figure at the end of the run, whether its test passed or not."""
    return _REPORTED.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _REPORTED:
        terminalreporter.section("figures")
        for line in _REPORTED:
            terminalreporter.line(line)
