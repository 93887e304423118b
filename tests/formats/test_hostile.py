"""Files made to do harm: one malformed file, one named error each, beyond what the tests of each format have."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from files import (
    ARRAY,
    CONFIG,
    F32,
    F64,
    I32,
    LLAMA,
    STRING,
    U8,
    U32,
    entry,
    floats,
    gguf_bytes,
    gguf_pair,
    gguf_string,
    gguf_tensor,
    safetensors_bytes,
    write_folder,
)
from test_config import gguf_model

from halfbyte import _core

C, U, N = _core.CorruptFileError, _core.UnsupportedError, _core.NotFoundError
DEEP = "[" * 100_000 + "]" * 100_000


def load(path: Path) -> Any:
    return _core.Engine.load(str(path), "cpu", 1, "float32", "", None)


# --- absurd counts --------------------------------------------------------------------------------------------------

NOTHING = 2**59  # rows of no columns take no bytes


def test_rows_of_nothing_are_not_counted_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([LLAMA], [gguf_tensor("a", [0, NOTHING], 0, 0)]))
    assert _core.Checkpoint(str(path)).weight("a").dequantize().shape == (NOTHING, 0)
    folder = write_folder(tmp_path / "m", safetensors_bytes({"a": entry("F32", [NOTHING, 0], 0, 0)}))
    assert _core.Checkpoint(str(folder)).weight("a").dequantize().shape == (NOTHING, 0)


def test_a_layer_of_nothing_is_refused(tmp_path: Path) -> None:
    """Its scales are looked at before its shape."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 5,
    }
    model = safetensors_bytes({"model.embed_tokens.weight": entry("F32", [NOTHING, 0], 0, 0)})
    with pytest.raises(C, match=r"embed_tokens.weight' is \[576460752303423488, 0\]"):
        load(write_folder(tmp_path / "m", model, config))


CLAIM = 3 * 2**30
X = gguf_string("x")
CLAIMS: dict[str, bytes] = {
    "a GGUF tensor": gguf_bytes([LLAMA], [gguf_tensor("a", [CLAIM // 4], 0, 0)], bytes(900)),
    "a GGUF name": gguf_bytes([LLAMA, struct.pack("<Q", CLAIM)], [], bytes(900)),
    "a GGUF string": gguf_bytes([LLAMA, X + struct.pack("<IQ", STRING, CLAIM)], [], bytes(900)),
    "a GGUF array": gguf_bytes([LLAMA, X + struct.pack("<IIQ", ARRAY, F64, CLAIM // 8)], [], bytes(900)),
    "GGUF texts": gguf_bytes([LLAMA, X + struct.pack("<IIQ", ARRAY, STRING, CLAIM // 8)], [], bytes(900)),
    "GGUF tensors": gguf_bytes([LLAMA], [], bytes(900), counts=(CLAIM // 24, 1)),
    "GGUF values": gguf_bytes([LLAMA], [], bytes(900), counts=(0, CLAIM // 13)),
    "a safetensors header": struct.pack("<Q", CLAIM) + b"{" + b" " * 900,
    "a safetensors tensor": safetensors_bytes({"a": entry("F32", [CLAIM // 4], 0, CLAIM)}, bytes(900)),
    "quantised weights": safetensors_bytes(
        {
            "w": entry("U8", [4], 0, 4),
            "w.quant_map": entry("F32", [16], 4, 68),
            "w.absmax": entry("F32", [1], 68, 72),
            "w.quant_state.bitsandbytes__nf4": entry("U8", [82], 72, 154),
        },
        bytes(72)
        + b'{"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 3221225472]}'.ljust(82),
    ),
    "a described weight": gguf_bytes(
        [
            LLAMA,
            gguf_pair(
                "halfbyte.weights",
                STRING,
                '{"version": 1, "weights": {"w": {"storage": "nf4", "rows": 65536, "cols": 98304, "block": 64}}}',
            ),
        ],
        [
            gguf_tensor("w.codes", [4], 24, 0),
            gguf_tensor("w.absmax", [1], 0, 32),
            gguf_tensor("w.quant_map", [16], 0, 64),
        ],
        bytes(128),
    ),
}  # fmt: skip

# In a process of its own: the address space may grow by half a gigabyte, whatever is given back afterwards.
UNDER_A_LIMIT = """
import resource, sys
from halfbyte import _core
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**29, size + 2**29))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        _core.Checkpoint(path)
        print(path, "was accepted")
    except _core.CorruptFileError:
        pass
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print("grown by", grown if grown > 2**15 else "little")
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured as Linux counts it")
def test_three_gigabytes_in_a_file_of_a_kilobyte(tmp_path: Path) -> None:
    paths = []
    for name, content in CLAIMS.items():
        assert len(content) < 1500
        paths.append(tmp_path / f"{name}.gguf" if content.startswith(b"GGUF") else tmp_path / name)
        if content.startswith(b"GGUF"):
            paths[-1].write_bytes(content)
        else:
            write_folder(paths[-1], content)
    command = [sys.executable, "-c", UNDER_A_LIMIT, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "grown by little\n", "")


# --- texts ----------------------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[bytes, type[Exception], str]] = {
    "a version that is not UTF-8": (
        gguf_bytes([LLAMA, gguf_pair("general.quantization_version", STRING, b"\xff")], []),
        U,
        "quantization_version is .*expected 2",
    ),
    "weights nested deep": (
        gguf_bytes([LLAMA, gguf_pair("halfbyte.weights", STRING, '{"version": ' + DEEP + "}")], []),
        C,
        "halfbyte.weights: nested deeper than 64",
    ),
    "weights twice": (
        gguf_bytes([LLAMA, gguf_pair("halfbyte.weights", STRING, '{"version": 1, "version": 1}')], []),
        C,
        'halfbyte.weights: the key "version" appears twice',
    ),
    "weights not UTF-8": (
        gguf_bytes([LLAMA, gguf_pair("halfbyte.weights", STRING, b'{"version\xff": 1}')], []),
        C,
        "halfbyte.weights: not valid JSON",
    ),
    "weights a number": (
        gguf_bytes([LLAMA, gguf_pair("halfbyte.weights", U8, 1)], []),
        C,
        "halfbyte.weights must be a string",
    ),
    "config nested deep": (
        gguf_bytes([LLAMA, gguf_pair("halfbyte.config", STRING, '{"a": ' + DEEP + "}")], []),
        C,
        "halfbyte.config: nested deeper than 64",
    ),
    "config not UTF-8": (
        gguf_bytes([LLAMA, gguf_pair("halfbyte.config", STRING, b'{"a": "\xc3"}')], []),
        C,
        "halfbyte.config is not UTF-8",
    ),
    "type a number": (gguf_bytes([LLAMA, gguf_pair("general.type", I32, 1)], []), C, "general.type must be a string"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_in_gguf(tmp_path: Path, name: str) -> None:
    content, error, text = TEXTS[name]
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(error, match=text):
        _core.Checkpoint(str(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ' + DEEP + "}", "config.json: nested deeper than 64"),
        ('{"a": 1e999}', "config.json: not valid JSON.*number overflow"),
        ('{"a": "\\ud800"}', "config.json: not valid JSON.*surrogate"),
        ('{"a": 1}{', "config.json: not valid JSON"),
        ('{"a": 1,}', "config.json: not valid JSON"),
        ("", "config.json: not valid JSON"),
        ("\0", "config.json: not valid JSON: a NUL at byte 0"),
    ],
)
def test_texts_in_config(tmp_path: Path, text: str, message: str) -> None:
    folder = write_folder(tmp_path / "m", safetensors_bytes({}))
    (folder / "config.json").write_text(text)
    with pytest.raises(C, match=message):
        _core.Checkpoint(str(folder))


# --- files and folders ----------------------------------------------------------------------------------------------


def test_folders_in_the_place_of_files(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").mkdir()
    with pytest.raises(N, match=r"neither model\.safetensors nor"):
        _core.Checkpoint(str(tmp_path / "m.gguf"))
    folder = write_folder(tmp_path / "m", safetensors_bytes({}))
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(_core.InputOutputError, match=r"config\.json: expected a file, found a folder"):
        _core.Checkpoint(str(folder))


def write_index(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", C, "index.json: not valid JSON"),
        (DEEP, C, "index.json: nested deeper than 64"),
        ('{"weight_map": {"a": "x", "a": "y"}}', C, 'index.json: the key "a" appears twice'),
        ('{"weight_map": {"a": "x\\u0000.safetensors"}}', C, "is not the name of a file in this folder"),
        ('{"weight_map": {"a": "shard.safetensors"}}', _core.InputOutputError, "expected a file, found a folder"),
    ],
)
def test_indices(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    folder = write_index(tmp_path / "m", text)
    (folder / "shard.safetensors").mkdir()
    (folder / "x").write_bytes(safetensors_bytes({"a": entry("F32", [1], 0, 4)}, floats(1)))
    with pytest.raises(error, match=message):
        _core.Checkpoint(str(folder))


# --- numbers that make NaN ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"llama.rope.scale_linear": (F32, 0.0)}, "rotary frequency 0 comes to inf"),
        ({"llama.rope.freq_base": (F64, 1e-300)}, "rotary frequency 1 comes to inf"),
        ({"llama.rope.freq_base": (F32, float("nan"))}, '"llama.rope.freq_base" must be a number'),
        ({"llama.attention.layer_norm_rms_epsilon": (F32, -1.0)}, "the epsilon of its norms is -1"),
        ({"llama.attention.layer_norm_rms_epsilon": (F64, 1e300)}, r"the epsilon of its norms is 1e\+300"),
        ({"llama.attention.sliding_window": (I32, -1)}, "the sliding window is -1"),
        (
            {"llama.rope.scaling.type": (STRING, b"line\xff")},
            '"llama.rope.scaling.type" must be a text in UTF-8, found "line',
        ),
        ({"llama.context_length": (U32, 0)}, '"context_length" is 0'),
    ],
)  # fmt: skip
def test_hyperparameters(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(C, match=text):
        load(gguf_model(tmp_path, change))
