"""What `import halfbyte` brings, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import halfbyte
from halfbyte import errors


def test_import_is_light() -> None:
    code = "import sys, halfbyte; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "transformers", "tokenizers", "jinja2", "scipy", "bitsandbytes", "peft", "gguf", "safetensors"}
    assert "numpy" in loaded
    assert heavy.isdisjoint(loaded)


def test_public_names_exist() -> None:
    for name in halfbyte.__all__:
        assert getattr(halfbyte, name) is not None


def test_architectures_and_devices() -> None:
    assert {"llama", "gpt2", "bert"} <= set(halfbyte.architectures())
    assert "cpu" in halfbyte.devices()


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidArgumentError, ValueError),
        (errors.NotFoundError, LookupError),
        (errors.CorruptFileError, ValueError),
        (errors.UnsupportedError, NotImplementedError),
        (errors.OutOfMemoryError, MemoryError),
        (errors.InputOutputError, OSError),
        (errors.InternalError, RuntimeError),
    ],
)
def test_errors_are_builtin_ones_too(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, halfbyte.Error)
    assert issubclass(error, builtin)
