"""Finding a GPU, or saying in one sentence why there is none; and what of a model would lie on it."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import halfbyte
from halfbyte import _core

if TYPE_CHECKING:
    from pathlib import Path

    from oracle.builders import Zoo


def python(code: str, **environment: str) -> str:
    """What a fresh process prints; a plugin is looked for once a process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("HALFBYTE_")} | environment
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LOAD = """
import halfbyte
from halfbyte import _core
try:
    _core.Ops("cuda", 1, "high")
except halfbyte.NotFoundError as error:
    print(error)
"""
# This machine has no GPU, or the tests' environment hides it.
REASONS = ("no CUDA plugin", "no NVIDIA driver", "no NVIDIA GPU", "driver is for CUDA")


def test_one_sentence_where_there_is_no_gpu() -> None:
    text = python(LOAD)
    assert text.startswith('device "cuda": ') and text.endswith('use device="cpu"') and "\n" not in text
    assert any(reason in text for reason in REASONS), text
    listed = json.loads(python("import json\nfrom halfbyte import _core\nprint(json.dumps(_core.list_devices()))"))
    assert [device["name"] for device in listed] == ["cpu", "cuda"]
    assert [device["available"] for device in listed] == [True, False]
    assert listed[1]["description"] in text
    assert python("import halfbyte\nprint(halfbyte.devices())") == "('cpu',)"
    assert python("from halfbyte import _core\nprint(_core.Ops('auto', 1, 'high').description)").startswith("cpu ")


def test_a_plugin_that_is_none(tmp_path: Path) -> None:
    text = python(LOAD, HALFBYTE_CUDA_LIBRARY=str(tmp_path / "nowhere.so"))
    assert "does not load" in text and "nowhere.so" in text
    (tmp_path / "text.so").write_text("no library")
    assert "does not load" in python(LOAD, HALFBYTE_CUDA_LIBRARY=str(tmp_path / "text.so"))
    libm = ctypes.util.find_library("m")
    if libm is not None:
        assert "is not a CUDA plugin" in python(LOAD, HALFBYTE_CUDA_LIBRARY=libm)


def test_the_device_that_auto_is(emulated: str) -> None:
    code = "from halfbyte import _core\nprint(_core.Ops('auto', 1, 'high').description)"
    assert python(code, HALFBYTE_CUDA_LIBRARY=emulated).startswith("cuda ")
    assert python(code, HALFBYTE_CUDA_LIBRARY=emulated, HALFBYTE_DEVICE="cpu").startswith("cpu ")
    assert python(code, HALFBYTE_DEVICE="cpu").startswith("cpu ")
    refused = (
        "import halfbyte\nfrom halfbyte import _core\ntry:\n    _core.Ops('auto', 1, 'high')\n"
        "except halfbyte.InvalidArgumentError as error:\n    print(error)"
    )
    assert "HALFBYTE_DEVICE" in python(refused, HALFBYTE_DEVICE="auto")
    assert 'found "gpu"' in python(refused, HALFBYTE_DEVICE="gpu")


@pytest.mark.usefixtures("emulated")
def test_devices() -> None:
    assert halfbyte.devices() == ("cpu", "cuda")
    with pytest.raises(halfbyte.NotFoundError, match="has 1 GPU, counted from 0"):
        _core.Ops("cuda:1", 1, "high")
    with pytest.raises(halfbyte.InvalidArgumentError, match="cuda:N"):
        _core.Ops("cuda:-1", 1, "high")


def info(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "-m", "halfbyte", "info", *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_info_lists_devices(emulated: str) -> None:
    text = info("--devices", HALFBYTE_CUDA_LIBRARY=emulated)
    assert [line.split()[0] for line in text.splitlines()] == ["cpu", "cuda"]
    assert "free" in text
    none = info("--devices", HALFBYTE_CUDA_LIBRARY="/nowhere.so")
    assert "not available: the CUDA plugin does not load" in none


def test_info_says_what_fits(zoo: Zoo) -> None:
    """Tiles are 16 x 64: what a weight takes is told to the byte, whether there is a GPU or not."""
    path = zoo.path("llama_aligned/nf4")
    checkpoint = _core.Checkpoint(str(path))
    weight = checkpoint.weight("model.layers.0.self_attn.q_proj.weight")
    rows, cols = weight.shape
    tiles = -(-rows // 16) * -(-cols // 64)
    rest = 256 * -(-(-(-rows // 16) * 16 * (cols // 64) * 4) // 256) + 256  # float32 scales; levels
    assert weight.uploaded_bytes("cuda") == tiles * 512 + rest
    assert weight.uploaded_bytes("cpu") == weight.nbytes

    whole = json.loads(info(str(path), "--device", "cuda", "--device-memory", "1G", "--json"))["device"]
    assert whole["host_bytes"] == 0 and whole["host_layers"] == []
    half = whole["device_bytes"] // 2
    facts = json.loads(info(str(path), "--device", "cuda", "--device-memory", str(half), "--json"))["device"]
    assert facts["device_bytes"] <= half and facts["device_bytes"] + facts["host_bytes"] == whole["device_bytes"]
    assert facts["host_layers"]
    text = info(str(path), "--device", "cuda", "--device-memory", str(half))
    assert "streamed for each use: layer" in text
