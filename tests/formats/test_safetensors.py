"""Folders and single files of safetensors: what is read, and one broken file for each error."""

# ruff: noqa: E501 (a row of a table is a line)
from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from files import CONFIG, entry, floats, safetensors_bytes, write_folder
from safetensors.torch import save_file

from halfbyte import _core

GOOD = safetensors_bytes({"a": entry("F32", [2], 0, 8), "b": entry("F32", [1, 1], 8, 12)}, floats(1, 2, 3))


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "f32": torch.randn(3, 5, generator=generator),
        "f16": torch.randn(3, 5, generator=generator).half(),
        "bf16": torch.randn(3, 5, generator=generator).bfloat16(),
        "vector": torch.randn(7, generator=generator),
        "scalar": torch.tensor(2.5),
        "cube": torch.randn(2, 3, 4, generator=generator),
        "empty": torch.zeros(0, 4),
        "f64": torch.randn(2, 2, generator=generator, dtype=torch.float64),
        "i64": torch.arange(4),
        "u8": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
    }
    folder = write_folder(tmp_path / "model", b"")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for path in (folder, folder / "model.safetensors"):
        checkpoint = _core.Checkpoint(str(path))
        assert (checkpoint.format, checkpoint.architecture, checkpoint.model_type) == (
            "safetensors",
            "LlamaForCausalLM",
            "llama",
        )
        assert checkpoint.names() == sorted(tensors)
        assert json.loads(checkpoint.metadata_json()) == CONFIG
        assert checkpoint.metadata("general.name") is None
        for name, tensor in tensors.items():
            assert checkpoint.shape(name) == list(tensor.shape)
            if name in ("f64", "i64", "u8", "bool"):
                with pytest.raises(_core.UnsupportedError, match=f"tensor {name}: a weight of dtype"):
                    checkpoint.weight(name)
                continue
            weight = checkpoint.weight(name)
            expected = tensor.float().reshape(-1, tensor.shape[-1] if tensor.dim() else 1).numpy()
            assert weight.shape == expected.shape
            assert weight.format == name if name in ("f32", "f16", "bf16") else weight.format == "f32"
            np.testing.assert_array_equal(weight.dequantize(), expected)
    with pytest.raises(_core.NotFoundError, match="there is no tensor nothing"):
        checkpoint.weight("nothing")
    with pytest.raises(_core.NotFoundError, match="there is no tensor nothing"):
        checkpoint.shape("nothing")


def test_weights_outlive_the_checkpoint(tmp_path: Path) -> None:
    weight = _core.Checkpoint(str(write_folder(tmp_path / "model", GOOD))).weight("a")
    np.testing.assert_array_equal(weight.dequantize(), [[1, 2]])


def test_misaligned_tensors(tmp_path: Path) -> None:
    """Nothing obliges a writer to align: a tensor behind three bytes is still right."""
    header = {"u": entry("U8", [3], 0, 3), "w": entry("F32", [2, 1], 3, 11), "h": entry("F16", [1], 11, 13)}
    model = safetensors_bytes(header, b"abc" + floats(1.5, -2) + np.float16(7).tobytes())
    checkpoint = _core.Checkpoint(str(write_folder(tmp_path / "model", model)))
    np.testing.assert_array_equal(checkpoint.weight("w").dequantize(), [[1.5], [-2]])
    np.testing.assert_array_equal(checkpoint.weight("h").dequantize(), [[7]])


@pytest.mark.parametrize("bits", [np.arange(65536, dtype=np.uint16)], ids=["all"])
def test_every_half(tmp_path: Path, bits: np.ndarray) -> None:
    """All 65536 float16 and bfloat16 values, subnormals, infinities and NaN among them."""
    header = {"h": entry("F16", [256, 256], 0, 131072), "b": entry("BF16", [256, 256], 131072, 262144)}
    checkpoint = _core.Checkpoint(str(write_folder(tmp_path / "model", safetensors_bytes(header, bits.tobytes() * 2))))
    halves = checkpoint.weight("h").dequantize().reshape(-1)
    expected = bits.view(np.float16).astype(np.float32)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(halves[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.isnan(halves[~numbers]).all()
    brains = checkpoint.weight("b").dequantize().reshape(-1)
    np.testing.assert_array_equal(brains.view(np.uint32), bits.astype(np.uint32) << 16)


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16), ("f32", torch.float32)])
def test_rounding_to_halves(kind: str, dtype: torch.dtype) -> None:
    """As torch rounds: to nearest even, ties, subnormals, overflow and infinities."""
    rng = np.random.default_rng(3)
    exponents = rng.integers(0, 256, 200_000).astype(np.uint32)
    values = (rng.integers(0, 1 << 24, 200_000).astype(np.uint32) << 8 >> 9) | exponents << 23
    values[::2] &= 0xFFFFF000  # many ties
    values[::3] |= 0x80000000
    source = values.view(np.float32)
    source = source[~np.isnan(source)][:199_000].reshape(199, -1)
    expected = torch.tensor(source).to(dtype).float().numpy()
    np.testing.assert_array_equal(
        _core.quantize(source, kind, 64, False).dequantize().view(np.uint32), expected.view(np.uint32)
    )


# fmt: off
CORRUPT: list[tuple[str, bytes, str]] = [
    ("empty", b"", "at least 8 bytes, found 0"),
    ("short", b"\x01\0\0", "at least 8 bytes, found 3"),
    ("header beyond the file", struct.pack("<Q", 100) + b"{}", "claims 100 bytes, the file has 2"),
    ("header of 16 exabytes", struct.pack("<Q", 2**64 - 1) + b"{}", "claims 18446744073709551615 bytes"),
    ("not JSON", safetensors_bytes(b"{nope"), "not valid JSON: .*line 1, column 3"),
    ("not UTF-8", safetensors_bytes(b'{"\xff": 1}'), "not valid JSON"),
    ("a list", safetensors_bytes([1]), "not a JSON object"),
    ("a NUL behind", safetensors_bytes(b'{"a":{}}\0'), "not valid JSON: a NUL at byte 8"),
    ("twice", safetensors_bytes(b'{"a": {}, "a": {}}'), 'the key "a" appears twice'),
    ("deep", safetensors_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested deeper than 64"),
    ("a number for a tensor", safetensors_bytes({"a": 1}), "tensor a: its header entry is not"),
    ("no dtype", safetensors_bytes({"a": {"shape": [], "data_offsets": [0, 0]}}), 'no "dtype"'),
    ("no shape", safetensors_bytes({"a": {"dtype": "U8", "data_offsets": [0, 0]}}), 'no "shape"'),
    ("no offsets", safetensors_bytes({"a": {"dtype": "U8", "shape": [0]}}), 'no "data_offsets"'),
    ("numeric dtype", safetensors_bytes({"a": entry(8, [0], 0, 0)}), "dtype must be a name"),  # type: ignore[arg-type]
    ("shape a number", safetensors_bytes({"a": entry("U8", 0, 0, 0)}), "shape must be a list"),  # type: ignore[arg-type]
    ("negative size", safetensors_bytes({"a": entry("U8", [-1], 0, 0)}), "every dimension of shape must be"),
    ("fractional size", safetensors_bytes({"a": entry("U8", [1.5], 0, 1)}, b"x"), "every dimension"),  # type: ignore[list-item]
    ("three offsets", safetensors_bytes({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0, 0]}}), "a list of two"),
    ("negative offset", safetensors_bytes({"a": entry("U8", [1], -1, 0)}), "data_offsets must be a non-negative"),
    ("end before begin", safetensors_bytes({"a": entry("U8", [1], 1, 0)}, b"x"), "bytes 1 to 0 are not within"),
    ("beyond the file", safetensors_bytes({"a": entry("U8", [9], 0, 9)}, b"x"), "bytes 0 to 9 are not within the 1"),
    ("size against shape", safetensors_bytes({"a": entry("F32", [1, 2], 0, 4)}, b"abcd"), r"\[1,2\] of F32 needs 8 bytes"),
    ("overflow", safetensors_bytes({"a": entry("F32", [2**62, 2**62], 0, 4)}, b"abcd"), "overflows"),
    ("2^64 and beyond", safetensors_bytes(b'{"a":{"dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,0]}}'), "dimension"),
    ("overlap", safetensors_bytes({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"abc"), "it overlaps another"),
    ("same bytes", safetensors_bytes({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 0, 2)}, b"ab"), "it overlaps another"),
    ("hole", safetensors_bytes({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"abc"), "a hole before it"),
    ("hole in front", safetensors_bytes({"a": entry("U8", [1], 1, 2)}, b"ab"), "a hole before it"),
    ("bytes behind", safetensors_bytes({"a": entry("U8", [1], 0, 1)}, b"ab"), "end at byte 1 of the data, which has 2"),
]
# fmt: on


@pytest.mark.parametrize(("model", "text"), [case[1:] for case in CORRUPT], ids=[case[0] for case in CORRUPT])
def test_corrupt(tmp_path: Path, model: bytes, text: str) -> None:
    with pytest.raises(_core.CorruptFileError, match=text) as caught:
        _core.Checkpoint(str(write_folder(tmp_path / "model", model)))
    assert "model.safetensors: " in str(caught.value)


def test_unknown_dtype(tmp_path: Path) -> None:
    model = safetensors_bytes({"a": entry("F8_E5M2", [1], 0, 1)}, b"x")
    with pytest.raises(_core.UnsupportedError, match='tensor a: dtype "F8_E5M2" is not supported'):
        _core.Checkpoint(str(write_folder(tmp_path / "model", model)))


def test_truncated_everywhere(tmp_path: Path) -> None:
    """A file cut off at any byte is an error."""
    folder = write_folder(tmp_path / "model", GOOD)
    assert _core.Checkpoint(str(folder)).names() == ["a", "b"]
    for size in range(len(GOOD)):
        (folder / "model.safetensors").write_bytes(GOOD[:size])
        with pytest.raises(_core.CorruptFileError):
            _core.Checkpoint(str(folder))


def test_any_byte_may_be_wrong(tmp_path: Path) -> None:
    """With one byte of the header changed the file is read or refused, and never more than that."""
    folder = write_folder(tmp_path / "model", GOOD)
    rng = np.random.default_rng(11)
    for position in range(len(GOOD) - 12):
        for value in (0, 0xFF, int(rng.integers(256))):
            changed = bytearray(GOOD)
            changed[position] = value
            (folder / "model.safetensors").write_bytes(changed)
            try:
                checkpoint = _core.Checkpoint(str(folder))
                for name in checkpoint.names():
                    checkpoint.weight(name).dequantize()
            except _core.Error:
                pass


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_claim_costs_nothing(tmp_path: Path) -> None:
    """3 GB claimed by a file of 1 KB."""
    model = safetensors_bytes({"a": entry("F32", [3, 2**28], 0, 3 * 2**30)}, b"x" * 1000)
    before = resident_bytes()
    with pytest.raises(_core.CorruptFileError, match="not within the 1000 bytes"):
        _core.Checkpoint(str(write_folder(tmp_path / "model", model)))
    assert resident_bytes() - before < 2**26


# --- folders --------------------------------------------------------------------------------------------------------


def write_shards(folder: Path, weight_map: Any, shards: dict[str, bytes]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    return folder


ONE = safetensors_bytes({"a": entry("F32", [1], 0, 4)}, floats(1))
TWO = safetensors_bytes({"b": entry("F32", [1], 0, 4)}, floats(2))


def test_sharded(tmp_path: Path) -> None:
    shards = {"m-1-of-2.safetensors": ONE, "m-2-of-2.safetensors": TWO}
    folder = write_shards(tmp_path / "m", {"a": "m-1-of-2.safetensors", "b": "m-2-of-2.safetensors"}, shards)
    checkpoint = _core.Checkpoint(str(folder))
    assert checkpoint.names() == ["a", "b"]
    assert [checkpoint.weight(name).dequantize().item() for name in "ab"] == [1, 2]


@pytest.mark.parametrize(
    ("weight_map", "shards", "error", "text"),
    [
        ({"a": "1.safetensors"}, {}, _core.NotFoundError, "the shard 1.safetensors is missing"),
        ({"a": "1.safetensors", "b": "1.safetensors"}, {"1.safetensors": ONE}, _core.CorruptFileError, "does not have it"),
        ({"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": ONE, "2.safetensors": ONE}, _core.CorruptFileError, "tensor b should be in 2.safetensors"),
        ({"a": "1.safetensors"}, {"1.safetensors": safetensors_bytes({"a": entry("U8", [1], 0, 1), "b": entry("U8", [0], 1, 1)}, b"x")}, _core.CorruptFileError, "tensor b of 1.safetensors is not in weight_map"),
        ({"a": "../config.json"}, {}, _core.CorruptFileError, "not the name of a file in this folder"),
        ({"a": "/etc/passwd"}, {}, _core.CorruptFileError, "not the name of a file in this folder"),
        ({"a": ""}, {}, _core.CorruptFileError, "not the name of a file in this folder"),
        ({"a": 1}, {}, _core.CorruptFileError, "must be a file name"),
        ({"a": "pytorch_model.bin"}, {}, _core.UnsupportedError, "pickle"),
        ({}, {}, _core.CorruptFileError, 'expected an object "weight_map"'),
        ([], {}, _core.CorruptFileError, 'expected an object "weight_map"'),
    ],
)  # fmt: skip
def test_broken_index(
    tmp_path: Path, weight_map: Any, shards: dict[str, bytes], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        _core.Checkpoint(str(write_shards(tmp_path / "m", weight_map, shards)))


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    both = safetensors_bytes({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 1, 2)}, b"xy")
    folder = write_shards(
        tmp_path / "m", {"a": "1.safetensors", "b": "2.safetensors"}, {"1.safetensors": both, "2.safetensors": TWO}
    )
    with pytest.raises(_core.CorruptFileError, match=r"tensor b is in 1\.safetensors, and weight_map says"):
        _core.Checkpoint(str(folder))


def test_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    def refused(path: Path, error: type[Exception], text: str) -> None:
        with pytest.raises(error, match=text):
            _core.Checkpoint(str(path))

    refused(tmp_path / "nowhere", _core.NotFoundError, "no such file or folder")
    refused(tmp_path, _core.NotFoundError, "neither model.safetensors nor")
    (tmp_path / "model-q4.gguf").write_bytes(b"")
    refused(tmp_path, _core.NotFoundError, "model-q4.gguf: open that file itself")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    refused(
        tmp_path,
        _core.UnsupportedError,
        "pytorch_model.bin: a pickle .*weights_only=True.*save_file|save_file.*weights_only",
    )
    refused(tmp_path / "pytorch_model.bin", _core.UnsupportedError, "a pickle can run any code")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(tmp_path, _core.UnsupportedError, "this is a PEFT adapter")
    refused(tmp_path / "adapter_config.json", _core.UnsupportedError, "neither a folder nor")
    (tmp_path / "model.safetensors").write_bytes(ONE)
    refused(tmp_path, _core.NotFoundError, "config.json: missing")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, _core.InputOutputError, "expected a file, found a folder")
    os.mkfifo(tmp_path / "pipe.safetensors")
    refused(tmp_path / "pipe.safetensors", _core.InputOutputError, "expected a regular file")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (b"{", _core.CorruptFileError, "config.json: not valid JSON"),
        (b"[]", _core.CorruptFileError, "expected a JSON object"),
        (b'{"a": 1, "a": 2}', _core.CorruptFileError, 'the key "a" appears twice'),
        (b'{"a": "\xc3\x28"}', _core.CorruptFileError, "not UTF-8 text: byte 7"),
        (b'{"a": "\xed\xa0\x80"}', _core.CorruptFileError, "not UTF-8 text: byte 7"),
        (b'{"architectures": "Llama"}', _core.CorruptFileError, '"architectures" must be a list of names, found "Llama"'),
        (b'{"model_type": 3}', _core.CorruptFileError, '"model_type" must be a name, found 3'),
        (b'{"quantization_config": {"quant_method": "hqq"}}', _core.UnsupportedError, 'quant_method is "hqq"'),
        (b'{"quantization_config": {"bits": 4}}', _core.UnsupportedError, "names no quant_method"),
        (b'{"quantization_config": 4}', _core.CorruptFileError, "quantization_config must be an object"),
    ],
)  # fmt: skip
def test_broken_config(tmp_path: Path, text: bytes, error: type[Exception], message: str) -> None:
    folder = write_folder(tmp_path / "m", ONE)
    (folder / "config.json").write_bytes(text)
    with pytest.raises(error, match=message):
        _core.Checkpoint(str(folder))
