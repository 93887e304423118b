"""Every quantised tensor type of GGUF against the package gguf, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from files import LLAMA, gguf_bytes, gguf_tensor
from gguf import GGMLQuantizationType as Type
from gguf import quants

from halfbyte import _core
from oracle.ggml_types import LAYOUTS, random_blocks, set_units

KINDS = pytest.mark.parametrize("kind", list(LAYOUTS), ids=lambda kind: kind.name)
FINITE_HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)
FINITE_HALVES = FINITE_HALVES[np.isfinite(FINITE_HALVES)]


def bits(values: Any) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


def make(kind: Type, packed: np.ndarray) -> Any:
    """packed: [rows, bytes of a row]"""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    rows, cols = len(packed), packed.shape[1] // size * elements
    return _core.weight_from_planes(
        kind.name.lower(), rows, cols, LAYOUTS[kind].scaled, {"data": np.ascontiguousarray(packed).reshape(-1)}
    )


def check(kind: Type, packed: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        expected = quants.dequantize(packed, kind)
    assert not np.isnan(expected).any()
    np.testing.assert_array_equal(bits(make(kind, packed).dequantize()), bits(expected))


@KINDS
def test_any_bytes(kind: Type) -> None:
    """Random codes and factors, and units that are subnormal, huge, negative. Odd numbers of rows and of blocks."""
    rng = np.random.default_rng(int(kind))
    size = gguf.GGML_QUANT_SIZES[kind][1]
    for rows, blocks in ((1, 1), (7, 3), (33, 2), (201, 5)):
        check(kind, random_blocks(kind, rows * blocks, rng).reshape(rows, blocks * size))


@KINDS
def test_every_scale(kind: Type) -> None:
    """Every finite float16 as the unit of the scales, then of the offsets; an eleventh of them in blocks of 256."""
    rng = np.random.default_rng(int(kind))
    layout, elements = LAYOUTS[kind], gguf.GGML_QUANT_SIZES[kind][0]
    halves = FINITE_HALVES if elements == 32 else FINITE_HALVES[int(kind) % 11 :: 11]
    if kind == Type.MXFP4:
        blocks = random_blocks(kind, 256 * 16, rng)
        blocks[:, 0] = np.arange(len(blocks)) % 256  # 255 too: gguf reads it as 2^127
        return check(kind, blocks)
    if kind == Type.NVFP4:
        blocks = random_blocks(kind, 256 * 16, rng)
        blocks[:, :4] = np.arange(blocks.shape[0] * 4).reshape(-1, 4) % 256
        return check(kind, blocks)
    blocks = random_blocks(kind, len(halves), rng)
    others = halves[rng.permutation(len(halves))]
    set_units(blocks, kind, halves, others)
    check(kind, blocks)
    if layout.offset_unit is not None:
        set_units(blocks, kind, others, halves)
        check(kind, blocks)
    return None


@KINDS
def test_every_code(kind: Type) -> None:
    """Blocks in which one byte runs through all values: no code and no entry of a grid is left out."""
    rng = np.random.default_rng(int(kind))
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.repeat(rng.integers(0, 256, (1, size), dtype=np.uint8), 256 * size, axis=0)
    blocks[np.arange(256 * size), np.repeat(np.arange(size), 256)] = np.tile(np.arange(256, dtype=np.uint8), size)
    blocks[::3] ^= rng.integers(0, 256, blocks[::3].shape, dtype=np.uint8)
    set_units(blocks, kind, np.full(len(blocks), 0.37, np.float16))
    check(kind, blocks)


@KINDS
def test_blocks_are_validated(kind: Type) -> None:
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    name, scaled = kind.name.lower(), LAYOUTS[kind].scaled
    data = np.zeros(2 * size, np.uint8)
    weight = _core.weight_from_planes(name, 2, elements, scaled, {"data": data})
    assert (weight.shape, weight.format, weight.block_size) == ((2, elements), name, scaled)
    with pytest.raises(_core.CorruptFileError, match=f"needs {2 * size} bytes of data, found {2 * size - 1}"):
        _core.weight_from_planes(name, 2, elements, scaled, {"data": data[:-1]})
    with pytest.raises(
        _core.CorruptFileError, match=f"rows of {elements + 1} elements are not a whole number of blocks"
    ):
        _core.weight_from_planes(name, 2, elements + 1, scaled, {"data": data})
    with pytest.raises(_core.CorruptFileError, match=f"block size 48, expected {scaled}"):
        _core.weight_from_planes(name, 2, elements, 48, {"data": data})


def test_grids_are_as_generated() -> None:
    """The tables of the source are what tools/iq_grids.py makes of gguf's."""
    root = Path(__file__).parents[2]
    made = subprocess.run(
        [sys.executable, root / "tools/iq_grids.py"], capture_output=True, text=True, check=True
    ).stdout
    source = (root / "csrc/storage/iq_grids.cpp").read_text(encoding="utf-8")
    assert len(made) > 5000 and made in source


def test_float64(tmp_path: Path) -> None:
    """Rounded to float32 as numpy does, subnormals and overflow included; vectors too."""
    values = np.array([[1 + 2**-30, -1 / 3, 1e-42, 1e300], [0.0, -0.0, 2**-150, -1e-310]])
    content = gguf_bytes(
        [LLAMA],
        [
            gguf_tensor("m", [4, 2], Type.F64, 0),
            gguf_tensor("v", [3], Type.F64, 64),
            gguf_tensor("f", [1], Type.F32, 96),
        ],
        values.tobytes() + values[0, :3].tobytes() + b"\0" * 8 + np.float32(1).tobytes(),
    )
    (tmp_path / "m.gguf").write_bytes(content)
    checkpoint = _core.Checkpoint(str(tmp_path / "m.gguf"))
    with np.errstate(over="ignore"):
        expected = values.astype(np.float32)
    np.testing.assert_array_equal(bits(checkpoint.weight("m").dequantize()), bits(expected))
    np.testing.assert_array_equal(bits(checkpoint.weight("v").dequantize()), bits(expected[:1, :3]))
    assert (checkpoint.weight("m").format, checkpoint.weight("m").block_size) == ("f64", 0)


def test_an_unknown_name_is_answered_with_all_known_ones() -> None:
    with pytest.raises(_core.InvalidArgumentError, match='unknown format "q9_9"') as caught:
        _core.weight_from_planes("q9_9", 1, 256, 32, {"data": np.zeros(1, np.uint8)})
    known = str(caught.value).partition("expected one of ")[2].split(", ")
    assert set(known) == {kind.name.lower() for kind in LAYOUTS} | {
        "nf4",
        "fp4",
        "int8",
        "int8_rows",
        "f16",
        "f32",
        "bf16",
        "f64",
    }
