"""The quantised tensor types of GGUF: where their scales lie, and blocks of them made at random.

The package gguf encodes only a few of them; a decoder needs no encoder to be tested. Codes are random bytes, and the
units of the scales are set to what a test wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """One block of a type: GGML_QUANT_SIZES tells its elements and bytes."""

    scaled: int  # elements that share a scale
    unit: int | None = 0  # the byte at which the unit of the scales lies, a float16; None: it is made otherwise
    offset_unit: int | None = None  # the same of the offsets
    middle: float = 0  # offset unit over unit that makes the mean of random blocks about zero


LAYOUTS = {
    Type.Q4_0: Layout(32),
    Type.Q4_1: Layout(32, 0, 2, -7.5),
    Type.Q5_0: Layout(32),
    Type.Q5_1: Layout(32, 0, 2, -15.5),
    Type.Q8_0: Layout(32),
    Type.Q2_K: Layout(16, 80, 82, 1.5),
    Type.Q3_K: Layout(256, 108),
    Type.Q4_K: Layout(32, 0, 2, 7.5),
    Type.Q5_K: Layout(32, 0, 2, 15.5),
    Type.Q6_K: Layout(16, 208),
    Type.IQ1_S: Layout(32),
    Type.IQ1_M: Layout(16, None),
    Type.IQ2_XXS: Layout(32),
    Type.IQ2_XS: Layout(16),
    Type.IQ2_S: Layout(16),
    Type.IQ3_XXS: Layout(32),
    Type.IQ3_S: Layout(32),
    Type.IQ4_NL: Layout(32),
    Type.IQ4_XS: Layout(32),
    Type.TQ1_0: Layout(256, 52),
    Type.TQ2_0: Layout(256, 64),
    Type.MXFP4: Layout(32, None),
    Type.NVFP4: Layout(16, None),
}


def _halves(values: Any) -> Bytes:
    return np.ascontiguousarray(values, np.float16).reshape(-1, 1).view(np.uint8)


def set_units(blocks: Bytes, kind: Type, units: Any, offset_units: Any = None) -> None:
    """blocks: [n, bytes of a block]; units: float16 [n]. MXFP4 and NVFP4, which have none, get scales of
    about that size."""
    layout = LAYOUTS[kind]
    if kind == Type.MXFP4:
        exponents = np.floor(np.log2(np.asarray(units, np.float64))).astype(np.int64) + 128
        blocks[:, 0] = np.clip(exponents, 0, 254)
    elif kind == Type.NVFP4:
        exponents = np.floor(np.log2(np.asarray(units, np.float64))).astype(np.int64) + 8
        for group in range(4):
            blocks[:, group] = np.clip(exponents - group % 2, 0, 14) << 3 | blocks[:, group] & 7
    elif kind == Type.IQ1_M:  # a nibble in each of the last four words
        bits = _halves(units).view(np.uint16)
        for word in range(4):
            high = 49 + 2 * word
            blocks[:, high] = blocks[:, high] & 15 | (bits[:, 0] >> 4 * word & 15).astype(np.uint8) << 4
    else:
        blocks[:, layout.unit : layout.unit + 2] = _halves(units)
    if layout.offset_unit is not None:
        offsets = layout.middle * np.asarray(units, np.float32) if offset_units is None else offset_units
        blocks[:, layout.offset_unit : layout.offset_unit + 2] = _halves(offsets)


def random_blocks(kind: Type, count: int, rng: np.random.Generator) -> Bytes:
    """[count, bytes of a block] of any bytes whose scales are finite: subnormal, huge, negative, zero."""
    blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    layout = LAYOUTS[kind]
    for at in (layout.unit, layout.offset_unit):
        if at is not None:
            blocks[:, at + 1] = np.where(blocks[:, at + 1] & 0x7C == 0x7C, 0x3C, blocks[:, at + 1])
    if kind == Type.IQ1_M:
        blocks[:, 55] = np.where(blocks[:, 55] & 0x70 == 0x70, 0x30, blocks[:, 55])
    if kind == Type.MXFP4:  # 255 is e8m0's NaN
        blocks[:, 0] = np.minimum(blocks[:, 0], 254)
    return blocks


def random_matrix(kind: Type, rows: int, cols: int, rms: float, rng: np.random.Generator) -> Bytes:
    """[rows, bytes of a row]: random codes and factors, units of which one is up to three times another; a mean of
    about zero and a given root of the mean square (MXFP4 and NVFP4: about that)."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * cols // elements, size), dtype=np.uint8)
    # Offsets that fit the factors, as a quantiser's do: other ones make a network of a few huge channels.
    if kind in (Type.Q4_K, Type.Q5_K):
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = blocks[:, 12:16] & 15 | blocks[:, 12:16] << 4
    if kind == Type.Q2_K:
        blocks[:, :16] = blocks[:, :16] & 15 | blocks[:, :16] << 4
    if kind == Type.TQ2_0:  # three of the four codes, as its quantiser writes them: the fourth would give a mean
        digits = rng.integers(0, 3, (len(blocks), 64, 4), dtype=np.uint8)
        blocks[:, :64] = digits[..., 0] | digits[..., 1] << 2 | digits[..., 2] << 4 | digits[..., 3] << 6
    spread = rng.uniform(0.5, 1.5, len(blocks)).astype(np.float32)
    factor = 1.0
    for _ in range(2):
        set_units(blocks, kind, factor * spread)
        found = float(np.sqrt(np.mean(quants.dequantize(blocks, kind).astype(np.float64) ** 2)))
        factor *= rms / found
    set_units(blocks, kind, factor * spread)
    return blocks.reshape(rows, -1)
