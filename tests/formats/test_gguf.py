"""GGUF files against the package gguf: metadata, names, shapes and values; and one broken file for each error."""

# ruff: noqa: E501 (a row of a table is a line)
from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from files import (
    ARRAY,
    BOOL,
    F32,
    F64,
    FORMATS,
    I8,
    I16,
    I32,
    I64,
    LLAMA,
    STRING,
    U8,
    U16,
    U32,
    U64,
    floats,
    gguf_bytes,
    gguf_pair,
    gguf_string,
    gguf_tensor,
)
from gguf import GGMLQuantizationType as Type
from gguf import quants

from halfbyte import _core
from oracle import packages
from oracle.ggml_types import LAYOUTS

# Types that gguf encodes, with the name of their storage.
STORAGES = {
    Type.F32: "f32",
    Type.F16: "f16",
    Type.BF16: "bf16",
    Type.Q8_0: "q8_0",
    Type.Q4_0: "q4_0",
    Type.Q4_1: "q4_1",
    Type.Q5_0: "q5_0",
    Type.Q5_1: "q5_1",
    Type.TQ1_0: "tq1_0",
    Type.TQ2_0: "tq2_0",
    Type.MXFP4: "mxfp4",
}
ALIGNED = gguf_bytes(
    [LLAMA, gguf_pair("llama.block_count", U32, 2)],
    [gguf_tensor("a", [3], 0, 0), gguf_tensor("b", [2, 1], 0, 32)],
    floats(1, 2, 3) + b"\0" * 20 + floats(4, 5),
)


def bits(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def write(folder: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def random_weight(rows: int, cols: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, cols)) * np.exp(rng.standard_normal((rows, 1)) * 3)
    values[0] = 0  # blocks of zeros
    return values.astype(np.float32)


# --- the formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(STORAGES), ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(1, 32), (7, 96), (33, 64), (5, 768)])
def test_decode(tmp_path: Path, kind: Type, shape: tuple[int, int]) -> None:
    if shape[1] % gguf.GGML_QUANT_SIZES[kind][0] != 0:
        shape = (shape[0], 256)
    packed = quants.quantize(random_weight(*shape, seed=int(kind)), kind)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weight = _core.Checkpoint(str(tmp_path / "m.gguf")).weight("w")
    assert (weight.format, weight.shape) == (STORAGES[kind], shape)
    np.testing.assert_array_equal(bits(weight.dequantize()), bits(quants.dequantize(packed, kind)))
    # The same bytes by another way.
    again = _core.weight_from_planes(weight.format, *shape, weight.block_size, weight.planes())
    np.testing.assert_array_equal(bits(again.dequantize()), bits(weight.dequantize()))


def test_encode_q8_0() -> None:
    """As gguf rounds, bit for bit."""
    for seed in range(5):
        source = random_weight(64, 96, seed)
        source[1, :32] = np.arange(32) / 2  # ties: levels are rounded half away from zero
        source[1, 0] = 127
        source[2] = 1e-36  # the scale is zero in float16
        ours = _core.quantize(source, "q8_0", 64, False)
        assert (ours.format, ours.block_size) == ("q8_0", 32)
        np.testing.assert_array_equal(ours.planes()["data"], quants.quantize(source, Type.Q8_0).reshape(-1))
    tiny = np.full((1, 32), 1e-40, np.float32)  # the reciprocal of the scale is infinite
    np.testing.assert_array_equal(_core.quantize(tiny, "q8_0", 64, False).dequantize(), 0 * tiny)


@pytest.mark.parametrize(
    ("cols", "block"), [(96, 96), (512, 512), (544, 32), (576, 64), (640, 128), (768, 256), (1536, 512)]
)
def test_encode_int8(cols: int, block: int) -> None:
    """Against numpy: the greatest of a block is 127, the others are rounded by the scale that is stored."""
    source = random_weight(37, cols, 3)
    source[1, :block] = np.arange(block) / 2 % 30  # ties: to even
    source[1, 0] = 127
    source[2] = 0
    source[3] = 1e-41  # a subnormal scale, whose inverse is infinite in float32
    source[4] *= np.float32(1e36)
    found = _core.quantize(source, "int8", 64, False)
    assert (found.format, found.block_size, found.nbytes) == ("int8", block, 37 * cols + 37 * cols // block * 4)
    blocks = source.reshape(37, -1, block)
    scales = np.abs(blocks).max(axis=-1) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.nan_to_num(blocks.astype(np.float64) * (1 / scales[..., None].astype(np.float64)))
    levels = np.clip(np.rint(exact), -127, 127).astype(np.int8)
    planes = found.planes()
    np.testing.assert_array_equal(planes["scales"], scales.reshape(-1))
    np.testing.assert_array_equal(planes["levels"], levels.reshape(-1))
    values = (levels.astype(np.float32) * scales[..., None]).reshape(37, cols)
    np.testing.assert_array_equal(bits(found.dequantize()), bits(values))
    again = _core.weight_from_planes("int8", 37, cols, block, planes)
    np.testing.assert_array_equal(bits(again.dequantize()), bits(values))
    with pytest.raises(_core.CorruptFileError, match="whole blocks"):
        _core.weight_from_planes("int8", 37, cols, 48, planes)


# --- a real file ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct, read by gguf and by halfbyte."""
    path = packages.smollm2()
    return gguf.GGUFReader(path), _core.Checkpoint(str(path))


def test_real_file(real: tuple[Any, Any]) -> None:
    reader, checkpoint = real
    assert (checkpoint.format, checkpoint.architecture, checkpoint.model_type) == ("gguf", "llama", "llama")
    assert checkpoint.names() == sorted(tensor.name for tensor in reader.tensors)
    for tensor in reader.tensors:
        assert checkpoint.shape(tensor.name) == [int(size) for size in reversed(tensor.shape)]
    for tensor in (reader.tensors[0], reader.tensors[1], reader.tensors[7], reader.tensors[-1]):
        weight = checkpoint.weight(tensor.name)
        expected = quants.dequantize(tensor.data, tensor.tensor_type)
        assert weight.format == STORAGES[tensor.tensor_type]
        np.testing.assert_array_equal(bits(weight.dequantize()), bits(np.atleast_2d(expected)))


def test_real_metadata(real: tuple[Any, Any]) -> None:
    reader, checkpoint = real
    short = json.loads(checkpoint.metadata_json())
    keys = [key for key in reader.fields if not key.startswith("GGUF.")]
    assert set(short) == {key for key in keys if not key.startswith(("tokenizer.ggml.token", "tokenizer.ggml.merges"))}
    for key in keys:
        expected, found = reader.fields[key].contents(), checkpoint.metadata(key)
        if isinstance(found, np.ndarray):
            found = found.tolist()
        elif isinstance(found, list):
            found = [item.decode() for item in found]
        assert found == expected, key
        assert type(found) is type(expected), key
        if key in short:
            assert short[key] == expected, key
    assert checkpoint.metadata("general.nothing") is None


# --- metadata -------------------------------------------------------------------------------------------------------

EXTREMES: dict[int, list[Any]] = {
    U8: [0, 255],
    I8: [-128, 127],
    U16: [0, 65535],
    I16: [-32768, 32767],
    U32: [0, 2**32 - 1],
    I32: [-(2**31), 2**31 - 1],
    U64: [0, 2**64 - 1],
    I64: [-(2**63), 2**63 - 1],
    F32: [0.5, -1e-40],
    F64: [0.1, -1e300],
    BOOL: [True, False],
}


@pytest.mark.parametrize("version", [2, 3])
def test_every_metadata_type(tmp_path: Path, version: int) -> None:
    pairs, expected = [LLAMA], {}
    for kind, values in EXTREMES.items():
        for i, value in enumerate(values):
            pairs.append(gguf_pair(f"x.{kind}.{i}", kind, value))
            expected[f"x.{kind}.{i}"] = np.float32(value) if kind == F32 else value
        pairs.append(gguf_pair(f"x.{kind}.list", ARRAY, (kind, values)))
        expected[f"x.{kind}.list"] = np.array(values, np.dtype(FORMATS[kind]))
    pairs += [gguf_pair("x.text", STRING, "naïve ☃"), gguf_pair("x.empty", STRING, "")]
    pairs += [gguf_pair("x.texts", ARRAY, (STRING, ["a", "", b"\xff\0"])), gguf_pair("x.none", ARRAY, (STRING, []))]
    expected |= {"x.text": "naïve ☃", "x.empty": "", "x.texts": [b"a", b"", b"\xff\0"], "x.none": []}
    checkpoint = _core.Checkpoint(str(write(tmp_path, gguf_bytes(pairs, [], version=version))))
    for key, value in expected.items():
        found = checkpoint.metadata(key)
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found, value)
        else:
            assert found == value, key
    short = json.loads(checkpoint.metadata_json())
    assert short["x.text"] == "naïve ☃"
    assert short[f"x.{U64}.1"] == 2**64 - 1


def test_invalid_text(tmp_path: Path) -> None:
    """Strings of the file need not be UTF-8 until someone wants text."""
    checkpoint = _core.Checkpoint(str(write(tmp_path, gguf_bytes([LLAMA, gguf_pair("x", STRING, b"\xff")], []))))
    with pytest.raises(_core.CorruptFileError, match="metadata value x is not UTF-8"):
        checkpoint.metadata("x")
    json.loads(checkpoint.metadata_json())


def test_long_arrays_stay_out_of_the_json(tmp_path: Path) -> None:
    pairs = [LLAMA, gguf_pair("a", ARRAY, (U8, [1] * 64)), gguf_pair("b", ARRAY, (U8, [1] * 65))]
    short = json.loads(_core.Checkpoint(str(write(tmp_path, gguf_bytes(pairs, [])))).metadata_json())
    assert short["a"] == [1] * 64
    assert "b" not in short


def test_alignment(tmp_path: Path) -> None:
    for alignment in (8, 64, 4096):
        pairs = [LLAMA, gguf_pair("general.alignment", U32, alignment)]
        tensors = [gguf_tensor("a", [1], 0, 0), gguf_tensor("b", [1], 0, alignment)]
        data = floats(1).ljust(alignment, b"\0") + floats(2)
        checkpoint = _core.Checkpoint(str(write(tmp_path, gguf_bytes(pairs, tensors, data, alignment=alignment))))
        assert [checkpoint.weight(name).dequantize().item() for name in "ab"] == [1, 2]


def test_shapes(tmp_path: Path) -> None:
    """The file gives the fastest dimension first."""
    tensors = [
        gguf_tensor("scalar", [], 0, 0),
        gguf_tensor("cube", [4, 3, 2], 0, 32),
        gguf_tensor("none", [4, 0], 0, 128),
    ]
    data = floats(7).ljust(32, b"\0") + floats(*range(24))
    checkpoint = _core.Checkpoint(str(write(tmp_path, gguf_bytes([LLAMA], tensors, data))))
    assert [checkpoint.shape(name) for name in ("scalar", "cube", "none")] == [[], [2, 3, 4], [0, 4]]
    assert [checkpoint.weight(name).shape for name in ("scalar", "cube", "none")] == [(1, 1), (6, 4), (0, 4)]
    np.testing.assert_array_equal(checkpoint.weight("cube").dequantize(), np.arange(24).reshape(6, 4))


def test_every_type_has_a_size(tmp_path: Path) -> None:
    """Tensors of types without a storage can be listed, and their sizes are those of the package gguf."""
    for kind in Type:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        tensors = [gguf_tensor("x", [block, 3], kind, 0)]
        checkpoint = _core.Checkpoint(str(write(tmp_path, gguf_bytes([LLAMA], tensors, b"\0" * (3 * size)))))
        assert checkpoint.shape("x") == [3, block]
        if kind in STORAGES or kind in LAYOUTS or kind == Type.F64:
            assert (checkpoint.weight("x").nbytes, checkpoint.weight("x").format) == (3 * size, kind.name.lower())
        else:
            assert kind.name in {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "Q1_0"}
            with pytest.raises(_core.UnsupportedError, match=f"tensor x: type {kind.name} is not supported"):
                checkpoint.weight("x")
        with pytest.raises(_core.CorruptFileError, match=f"its {3 * size} bytes at offset 0"):
            _core.Checkpoint(str(write(tmp_path, gguf_bytes([LLAMA], tensors, b"\0" * (3 * size - 1)))))


def test_missing_tensor(tmp_path: Path) -> None:
    checkpoint = _core.Checkpoint(str(write(tmp_path, ALIGNED)))
    for call in (checkpoint.weight, checkpoint.shape):
        with pytest.raises(_core.NotFoundError, match="there is no tensor c"):
            call("c")


def test_known_by_its_first_bytes(tmp_path: Path) -> None:
    assert _core.Checkpoint(str(write(tmp_path, ALIGNED, "sha256-0123"))).names() == ["a", "b"]


# --- broken files ---------------------------------------------------------------------------------------------------

C, U = _core.CorruptFileError, _core.UnsupportedError
ONE = gguf_tensor("a", [8], 0, 0)
DATA = floats(*range(8))
HUGE = 2**64 - 1
BROKEN: list[tuple[str, bytes, type[Exception], str]] = [
    ("empty", b"", C, 'does not begin with "GGUF"'),
    ("magic", b"GGML" + ALIGNED[4:], C, 'does not begin with "GGUF"'),
    ("version 1", gguf_bytes([LLAMA], [], version=1), U, "GGUF version 1; expected 2 or 3"),
    ("version 4", gguf_bytes([LLAMA], [], version=4), U, "GGUF version 4; expected 2 or 3"),
    ("big-endian", gguf_bytes([LLAMA], [], version=3 << 24), U, "a big-endian file"),
    ("tensor count", gguf_bytes([LLAMA], [ONE], DATA, counts=(HUGE, 1)), C, "claims 18446744073709551615 tensors"),
    ("value count", gguf_bytes([LLAMA], [ONE], DATA, counts=(1, 2**40)), C, "claims 1099511627776 metadata values"),
    ("no architecture", gguf_bytes([gguf_pair("a", U8, 1)], []), C, "general.architecture is missing"),
    ("architecture a number", gguf_bytes([gguf_pair("general.architecture", U8, 1)], []), C, "must be a string"),
    ("architecture not UTF-8", gguf_bytes([gguf_pair("general.architecture", STRING, b"\xff")], []), C, "is not UTF-8"),
    ("an adapter", gguf_bytes([LLAMA, gguf_pair("general.type", STRING, "adapter")], []), U, "this is an adapter"),
    ("block formats of old", gguf_bytes([LLAMA, gguf_pair("general.quantization_version", U32, 1)], []), U, "quantization_version is 1, expected 2"),
    ("value type", gguf_bytes([gguf_string("x") + struct.pack("<I", 13)], []), C, "has type 13, which does not exist"),
    ("array type", gguf_bytes([gguf_string("x") + struct.pack("<II", ARRAY, 99)], []), C, "has type 99"),
    ("nested array", gguf_bytes([gguf_pair("x", ARRAY, (ARRAY, [(U8, [1])]))], []), U, "an array of arrays"),
    ("long key", gguf_bytes([struct.pack("<Q", HUGE) + b"x" * 9], []), C, "ends within the name of a metadata value"),
    ("long string", gguf_bytes([gguf_string("x") + struct.pack("<IQ", STRING, 2**63)], []), C, "ends within x"),
    ("long array", gguf_bytes([gguf_string("x") + struct.pack("<IIQ", ARRAY, F64, 2**61)], []), C, "elements of x"),
    ("long texts", gguf_bytes([gguf_string("x") + struct.pack("<IIQ", ARRAY, STRING, HUGE)], []), C, "elements of x"),
    ("text in array", gguf_bytes([gguf_string("x") + struct.pack("<IIQQ", ARRAY, STRING, 1, 99)], []), C, "ends within x"),
    ("boolean 2", gguf_bytes([gguf_string("x") + struct.pack("<IB", BOOL, 2)], []), C, "must be 0 or 1, found 2"),
    ("booleans", gguf_bytes([gguf_string("x") + struct.pack("<IIQBB", ARRAY, BOOL, 2, 1, 3)], []), C, "must be 0 or 1, found 3"),
    ("key not UTF-8", gguf_bytes([gguf_pair(b"\xff", U8, 1)], []), C, "the name of a metadata value at byte 24 is not UTF-8"),
    ("key twice", gguf_bytes([LLAMA, LLAMA], []), C, "general.architecture appears twice"),
    ("alignment 0", gguf_bytes([LLAMA, gguf_pair("general.alignment", U32, 0)], []), C, "general.alignment is 0"),
    ("alignment 4", gguf_bytes([LLAMA, gguf_pair("general.alignment", U32, 4)], []), C, "general.alignment is 4"),
    ("alignment 48", gguf_bytes([LLAMA, gguf_pair("general.alignment", U32, 48)], []), C, "general.alignment is 48"),
    ("alignment u64", gguf_bytes([LLAMA, gguf_pair("general.alignment", U64, 32)], []), C, "must be a uint32"),
    ("five dimensions", gguf_bytes([LLAMA], [gguf_tensor("a", [1] * 5, 0, 0)], DATA), C, "5 dimensions"),
    ("many dimensions", gguf_bytes([LLAMA], [gguf_string("a") + struct.pack("<I", 2**32 - 1) + b"\0" * 40]), C, "4294967295 dimensions"),
    ("negative size", gguf_bytes([LLAMA], [gguf_tensor("a", [HUGE], 0, 0)], DATA), C, "dimensions overflow"),
    ("overflow", gguf_bytes([LLAMA], [gguf_tensor("a", [2**32, 2**32], 0, 0)], DATA), C, "dimensions overflow"),
    ("overflow of bytes", gguf_bytes([LLAMA], [gguf_tensor("a", [2**62], 0, 0)], DATA), C, "dimensions overflow"),
    ("type 99", gguf_bytes([LLAMA], [gguf_tensor("a", [8], 99, 0)], DATA), U, "tensor a has the ggml type 99"),
    ("removed type", gguf_bytes([LLAMA], [gguf_tensor("a", [8], 4, 0)], DATA), U, "tensor a has the ggml type 4"),
    ("part of a block", gguf_bytes([LLAMA], [gguf_tensor("a", [33], 2, 0)], DATA), C, "rows of 33 elements are not whole blocks of 32"),
    ("offset", gguf_bytes([LLAMA], [gguf_tensor("a", [1], 0, 4)], DATA), C, "its offset 4 is not a multiple of 32"),
    ("beyond the file", gguf_bytes([LLAMA], [gguf_tensor("a", [8], 0, 32)], DATA), C, "its 32 bytes at offset 32 are not within the 32"),
    ("far beyond", gguf_bytes([LLAMA], [gguf_tensor("a", [8], 0, HUGE - 31)], DATA), C, "are not within the 32"),
    ("no data", gguf_bytes([LLAMA], [ONE]), C, "are not within the 0"),
    ("overlap", gguf_bytes([LLAMA], [gguf_tensor("a", [16], 0, 0), gguf_tensor("b", [8], 0, 32)], DATA * 2), C, "tensor b: its bytes overlap"),
    ("same bytes", gguf_bytes([LLAMA], [ONE, gguf_tensor("b", [8], 0, 0)], DATA), C, "tensor b: its bytes overlap"),
    ("tensor twice", gguf_bytes([LLAMA], [ONE, gguf_tensor("a", [8], 0, 32)], DATA * 2), C, "tensor a appears twice"),
    ("name not UTF-8", gguf_bytes([LLAMA], [gguf_tensor(b"\xc0\x80", [8], 0, 0)], DATA), C, "the name of a tensor at byte"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "error", "text"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken(tmp_path: Path, content: bytes, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        _core.Checkpoint(str(write(tmp_path, content)))
    assert "model.gguf: " in str(caught.value)


RICH = gguf_bytes(
    [
        LLAMA,
        gguf_pair("llama.block_count", U32, 2),
        gguf_pair("x", ARRAY, (STRING, ["ab", "", "c"])),
        gguf_pair("y", ARRAY, (F32, [1.0, 2.0])),
        gguf_pair("z", BOOL, True),
        gguf_pair("general.alignment", U32, 32),
    ],
    [gguf_tensor("a", [3], 0, 0), gguf_tensor("b", [32, 2], 2, 32)],
    floats(1, 2, 3) + b"\0" * 20 + bytes(range(36)),
)


def test_truncated_everywhere(tmp_path: Path) -> None:
    path = write(tmp_path, RICH)
    assert _core.Checkpoint(str(path)).names() == ["a", "b"]
    for size in range(len(RICH)):
        path.write_bytes(RICH[:size])
        with pytest.raises(_core.Error):
            _core.Checkpoint(str(path))


def test_any_byte_may_be_wrong(tmp_path: Path) -> None:
    """With one byte changed the file is read or refused, and never more than that."""
    rng = np.random.default_rng(5)
    path = tmp_path / "model.gguf"
    for position in range(len(RICH) - 36):
        for value in (0, 0xFF, int(rng.integers(256))):
            changed = bytearray(RICH)
            changed[position] = value
            path.write_bytes(changed)
            try:
                checkpoint = _core.Checkpoint(str(path))
                json.loads(checkpoint.metadata_json())
                for key in ("x", "y", "z"):
                    checkpoint.metadata(key)
                for name in checkpoint.names():
                    checkpoint.weight(name).dequantize()
            except _core.Error:
                pass


def test_a_claim_costs_nothing(tmp_path: Path) -> None:
    """3 GB claimed by files of 1 KB, as a tensor, as an array and as a string."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    size = 3 * 2**30
    claims = [
        gguf_bytes([LLAMA], [gguf_tensor("a", [size // 4], 0, 0)], b"\0" * 900),
        gguf_bytes([LLAMA, gguf_string("x") + struct.pack("<IIQ", ARRAY, U8, size)], [], b"\0" * 900),
        gguf_bytes([LLAMA, gguf_string("x") + struct.pack("<IIQ", ARRAY, STRING, size // 8)], [], b"\0" * 900),
        gguf_bytes([LLAMA, gguf_string("x") + struct.pack("<IQ", STRING, size)], [], b"\0" * 900),
        gguf_bytes([LLAMA], [], b"\0" * 900, counts=(size // 24, 1)),
    ]
    before = resident_bytes()
    for content in claims:
        with pytest.raises(_core.CorruptFileError):
            _core.Checkpoint(str(write(tmp_path, content)))
    assert resident_bytes() - before < 2**26
