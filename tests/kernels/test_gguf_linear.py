"""linear() of every block format of GGUF, in whatever layout the device keeps it, on every instruction set."""

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from kernel_checks import relative

from halfbyte import _core
from oracle.ggml_types import LAYOUTS, random_blocks, random_matrix

KINDS = pytest.mark.parametrize("kind", list(LAYOUTS), ids=lambda kind: kind.name)


def make_weight(kind, packed):
    """packed: [rows, bytes of a row]"""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    cols = packed.shape[1] // size * elements
    data = {"data": packed.reshape(-1)}
    return _core.weight_from_planes(kind.name.lower(), len(packed), cols, LAYOUTS[kind].scaled, data)


@KINDS
def test_error_against_float64(make_ops, rng, kind):
    """Few rows and many. Bounds over all outputs, as in test_linear.py: 3e-4 of 14-bit integers, 9e-3 of bytes."""
    weight = make_weight(kind, random_matrix(kind, 67, 768, 1.0, rng))
    values = weight.dequantize().astype(np.float64)
    for precision, bound in (("float32", 1e-6), ("high", 3e-4), ("fast", 9e-3)):
        for threads, rows in enumerate((1, 3, 40), start=1):
            x = rng.standard_normal((rows, 768)).astype(np.float32)
            bias = rng.standard_normal(67).astype(np.float32)
            found = make_ops(precision, threads).linear(x, weight, bias)
            assert relative(found, x @ values.T + bias) <= bound, (precision, rows)


def word_step(values):
    """Of blocks of 32 as integers of 16 bits: their magnitudes, rounded up, add up to at most 174,776."""
    blocks = np.abs(values).reshape(len(values), -1, 32)
    return np.repeat(np.maximum(blocks.sum(axis=-1) / (174776 - 17), blocks.max(axis=-1) / 32767), 32, axis=1)


@KINDS
def test_levels_are_exact(make_ops, rng, kind):
    """Against unit vectors the product is the weight itself: repacking has rounded nothing but in Q2_K.

    An activation of 1 is 8191 times a scale that is rounded to float32, and so are the scale of the product, the unit
    of the levels and the sum with an offset: 5 roundings of 2^-24, of products and offsets up to twice as large as the
    block's largest value. Q2_K has two units in 16 elements; its values are rounded as float weights are, to steps of
    which the magnitudes of 32 make 174,776 less a half for each and one, at most half a step away.
    """
    weight = make_weight(kind, random_matrix(kind, 19, 512, 1.0, rng))
    values = weight.dequantize()
    found = make_ops("high").linear(np.eye(512, dtype=np.float32), weight, None).T
    peaks = np.repeat(np.abs(values).reshape(19, -1, 32).max(axis=-1), 32, axis=1)
    step = word_step(values) if kind == Type.Q2_K else 0
    assert (np.abs(found - values) <= 10 * 2.0**-24 * peaks + step / 2).all()
    if kind == Type.Q2_K:
        assert (found != values).any()


@pytest.mark.parametrize("kind", [Type.Q2_K, Type.Q6_K, Type.NVFP4, Type.IQ1_M], ids=lambda kind: kind.name)
def test_blocks_of_16_with_any_scales(make_ops, rng, kind):
    """Scales that share no unit, zeros, subnormals: exact, or rounded as float weights are."""
    packed = random_blocks(kind, 21 * 3, rng)
    packed[:9] = 0
    weight = make_weight(kind, packed.reshape(21, -1))
    values = weight.dequantize()
    cols = values.shape[1]
    found = make_ops("high").linear(np.eye(cols, dtype=np.float32), weight, None).T
    peaks = np.repeat(np.abs(values).reshape(21, -1, 32).max(axis=-1), 32, axis=1)
    assert (np.abs(found - values) <= 10 * 2.0**-24 * peaks + word_step(values) / 2).all()


def documented():
    """Of the table in docs/formats.md: {type: (bits in the file, the choices of bits in memory)}."""
    page = (Path(__file__).parents[2] / "docs/formats.md").read_text(encoding="utf-8")
    rows = {}
    for line in page.partition("## GGUF")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 5 or not re.fullmatch(r"[\d., ]+", cells[1]):
            continue
        kinds, bits = cells[0].split(", "), [float(number) for number in cells[1].split(", ")]
        memory = [float(number) for number in cells[4].split(" or ")]
        for i, kind in enumerate(kinds):
            rows[kind] = (bits[i % len(bits)], memory)
    return rows


def test_the_table_of_the_docs_names_every_type():
    assert set(documented()) == {kind.name for kind in LAYOUTS} | {"F64"}


@KINDS
def test_the_sizes_of_the_docs(rng, kind):
    """To the two digits that the table has; a panel's tables are 0.02 bits a weight of this size."""
    in_file, in_memory = documented()[kind.name]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    assert in_file == pytest.approx(8 * size / elements, abs=0.005)
    weight = make_weight(kind, random_matrix(kind, 256, 4096, 1.0, rng))
    assert weight.bits_per_weight == 8 * size / elements
    found = 8 * _core.Ops("cpu", 2, "high").uploaded_bytes(weight) / (256 * 4096)
    assert any(bits - 0.005 <= found <= bits + 0.025 for bits in in_memory), found
