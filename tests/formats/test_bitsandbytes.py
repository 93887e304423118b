"""NF4 and FP4 against bitsandbytes itself: codes, scales and decoded values, bit for bit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bnb

from halfbyte import _core
from oracle.bnb4 import dequantize_4bit

SHAPES = [(96, 200), (64, 256), (33, 70), (1, 2), (5, 66), (3, 4098), (257, 64)]
BLOCK_SIZES = [32, 64, 128, 256, 512, 1024, 2048, 4096]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_weight(shape: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal values with rows of very different size, so that scales differ."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.exp(torch.randn(shape[0], 1, generator=generator))
    return (torch.randn(shape, generator=generator) * rows * 0.05).to(dtype)


def bits(values: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(values, dtype=np.float32)).view(np.uint32)


def decoded(packed: torch.Tensor, state: Any) -> np.ndarray:
    """bitsandbytes' values as float32."""
    return dequantize_4bit(packed, state).float().numpy()


def assert_same_values(ours: Any, expected: Any, kind: str, where: str = "") -> None:
    """Bit for bit. FP4 has a second zero, code 8: bitsandbytes' CPU code decodes it to -0, its own table says +0."""
    np.testing.assert_array_equal(ours, expected, where)
    if kind == "nf4":
        np.testing.assert_array_equal(bits(ours), bits(expected), where)


def planes_of(packed: torch.Tensor, state: Any) -> dict[str, Any]:
    """What bitsandbytes made, as Weight.planes() names it."""
    planes = {"codes": packed.flatten().numpy(), "quant_map": state.code.numpy(), "absmax": state.absmax.numpy()}
    if state.nested:
        planes["nested_absmax"] = state.state2.absmax.numpy()
        planes["nested_quant_map"] = state.state2.code.numpy()
        planes["nested_offset"] = float(state.offset)
    return planes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_encode_plain(kind: str, dtype: torch.dtype) -> None:
    for seed, (shape, block_size) in enumerate(itertools.product(SHAPES, BLOCK_SIZES)):
        source = random_weight(shape, seed, dtype)
        packed, state = bnb.quantize_4bit(source, blocksize=block_size, quant_type=kind, compress_statistics=False)
        ours = _core.quantize(source.float().numpy(), kind, block_size, False)
        planes = ours.planes()
        where = f"{shape} block {block_size}"
        np.testing.assert_array_equal(planes["codes"], packed.flatten().numpy(), where)
        np.testing.assert_array_equal(bits(planes["absmax"]), bits(state.absmax), where)
        np.testing.assert_array_equal(bits(planes["quant_map"]), bits(state.code), where)
        # bitsandbytes rounds to the dtype of the source.
        assert_same_values(torch.tensor(ours.dequantize()).to(dtype).float(), decoded(packed, state), kind, where)
        assert (ours.shape, ours.format, ours.block_size) == (shape, kind, block_size)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_decode_double_quantised(kind: str) -> None:
    """bitsandbytes' own planes, decoded by both."""
    for seed, (shape, block_size) in enumerate(itertools.product(SHAPES, BLOCK_SIZES)):
        source = random_weight(shape, seed)
        packed, state = bnb.quantize_4bit(source, blocksize=block_size, quant_type=kind, compress_statistics=True)
        ours = _core.weight_from_planes(kind, *shape, block_size, planes_of(packed, state))
        assert_same_values(ours.dequantize(), decoded(packed, state), kind, f"{shape} block {block_size}")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(5, 33), (7, 65), (1, 1), (3, 127)])
def test_odd_rows(kind: str, shape: tuple[int, int]) -> None:
    """Rows of odd length begin inside a byte, and the last byte is padded."""
    source = random_weight(shape, 5)
    packed, state = bnb.quantize_4bit(source, blocksize=32, quant_type=kind)
    ours = _core.quantize(source.numpy(), kind, 32, False)
    np.testing.assert_array_equal(ours.planes()["codes"], packed.flatten().numpy())
    np.testing.assert_array_equal(bits(ours.planes()["absmax"]), bits(state.absmax))
    assert_same_values(ours.dequantize(), decoded(packed, state), kind)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_double_quantisation_exact(kind: str) -> None:
    """Scales whose sum is exact in float32 have the same mean in any order of summation: then every byte must agree."""
    for blocks in (1, 2, 64, 255, 256, 257, 1024, 1500):
        rng = np.random.default_rng(blocks)
        source = rng.standard_normal((blocks, 64)).astype(np.float32).clip(-0.9, 0.9)
        source[:, 0] = rng.integers(256, 1024, blocks) / 256  # absmax: multiples of 2^-8, sums below 2^24 of them
        packed, state = bnb.quantize_4bit(torch.tensor(source), blocksize=64, quant_type=kind, compress_statistics=True)
        ours = _core.quantize(source, kind, 64, True)
        planes, expected = ours.planes(), planes_of(packed, state)
        assert set(planes) == set(expected)
        for name in planes:
            np.testing.assert_array_equal(planes[name], expected[name], f"{blocks} blocks: {name}")
        assert_same_values(ours.dequantize(), decoded(packed, state), kind, f"{blocks} blocks")


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_double_quantisation_random(kind: str) -> None:
    """torch adds up scales in an order of its own, so that the mean may differ by a few units in the last place, and a
    byte by one where a scale lies on the border between two.
    """
    for seed, shape in enumerate([(128, 512), (96, 200), (1000, 64)]):
        source = random_weight(shape, seed)
        packed, state = bnb.quantize_4bit(source, blocksize=64, quant_type=kind, compress_statistics=True)
        planes, expected = _core.quantize(source.numpy(), kind, 64, True).planes(), planes_of(packed, state)
        np.testing.assert_array_equal(planes["codes"], expected["codes"])
        np.testing.assert_array_equal(bits(planes["nested_quant_map"]), bits(expected["nested_quant_map"]))
        assert abs(planes["nested_offset"] - expected["nested_offset"]) <= 8 * 2.0**-24 * expected["nested_offset"]
        difference = np.abs(planes["absmax"].astype(int) - expected["absmax"].astype(int))
        assert difference.max() <= 1
        assert np.count_nonzero(difference) <= max(1, difference.size // 100)


def test_midpoints() -> None:
    """Values on, just above and just below every midpoint between two levels."""
    for kind in ("nf4", "fp4"):
        levels = np.sort(bnb.get_4bit_type(kind, device="cpu").numpy())
        middle = (levels[:-1] + levels[1:]) / 2
        values = np.concatenate(
            [middle, np.nextafter(middle, np.float32(2)), np.nextafter(middle, np.float32(-2)), levels]
        )
        source = np.zeros((1, 64), np.float32)
        source[0, : len(values)] = values
        source[0, -1] = 1
        packed, _ = bnb.quantize_4bit(torch.tensor(source), blocksize=64, quant_type=kind)
        np.testing.assert_array_equal(
            _core.quantize(source, kind, 64, False).planes()["codes"], packed.flatten().numpy()
        )


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-38, 1e-40, 1e-45, 3e38])
def test_extreme_blocks(kind: str, value: float) -> None:
    """Blocks of zeros, subnormals and values near the largest; whole and short."""
    source = torch.full((1, 160), value)
    source[0, 1] = -value / 3
    packed, state = bnb.quantize_4bit(source, blocksize=64, quant_type=kind)
    ours = _core.quantize(source.numpy(), kind, 64, False)
    np.testing.assert_array_equal(bits(ours.planes()["absmax"]), bits(state.absmax))
    np.testing.assert_array_equal(ours.planes()["codes"], packed.flatten().numpy())
    np.testing.assert_array_equal(ours.dequantize(), decoded(packed, state))  # equal values: -0 is 0


def test_levels_come_from_the_planes() -> None:
    """A loader must use the map of the file, not the one it knows."""
    source = random_weight((8, 64), 1)
    planes = _core.quantize(source.numpy(), "nf4", 64, False).planes()
    usual = _core.weight_from_planes("nf4", 8, 64, 64, planes).dequantize()
    planes["quant_map"] = planes["quant_map"] * np.float32(2)
    np.testing.assert_array_equal(_core.weight_from_planes("nf4", 8, 64, 64, planes).dequantize(), usual * 2)


def test_bits_per_weight() -> None:
    source = np.zeros((1024, 4096), np.float32)
    plain = _core.quantize(source, "nf4", 64, False)
    double = _core.quantize(source, "nf4", 64, True)
    assert plain.nbytes == 1024 * 4096 // 2 + 1024 * 64 * 4 + 16 * 4
    assert double.nbytes == 1024 * 4096 // 2 + 1024 * 64 + 256 * 4 + 16 * 4 + 256 * 4
    assert plain.bits_per_weight == 8 * plain.nbytes / source.size


@pytest.mark.parametrize(
    ("values", "kind", "block_size", "text"),
    [
        (np.zeros((2, 64)), "nf4", 48, "block size 48"),
        (np.zeros((2, 64)), "nf4", 16, "block size 16"),
        (np.zeros((2, 64)), "nf4", 8192, "block size 8192"),
        (np.zeros((2, 64)), "int3", 64, 'unknown format "int3"'),
        (np.zeros((2, 48)), "int8", 64, "48 columns, expected a multiple of 32"),
        (np.zeros((2, 48)), "q8_0", 64, "48 columns, expected a multiple of 32"),
        (np.zeros((0, 64)), "nf4", 64, "at least one element"),
        (np.zeros(64), "nf4", 64, "found 1 dimensions"),
        (np.array([[1.0, 2.0], [np.nan, 1.0]]), "nf4", 64, "found nan in row 1, column 0"),
        (np.array([[1.0, 2.0], [3.0, -np.inf]]), "fp4", 64, "found -inf in row 1, column 1"),
        (np.full((1, 32), np.inf), "int8", 64, "found inf in row 0, column 0"),
        (np.full((1, 32), 3e38), "q8_0", 64, "beyond the format's largest"),
    ],
)
def test_refused(values: np.ndarray, kind: str, block_size: int, text: str) -> None:
    with pytest.raises(_core.InvalidArgumentError, match=text):
        _core.quantize(values, kind, block_size, False)


def test_planes_are_validated() -> None:
    plain = _core.quantize(random_weight((4, 96), 0).numpy(), "nf4", 64, False).planes()
    double = _core.quantize(random_weight((4, 96), 0).numpy(), "nf4", 64, True).planes()
    corrupt, invalid = _core.CorruptFileError, _core.InvalidArgumentError
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({**plain, "codes": plain["codes"][:-1]}, corrupt, "needs 192 bytes of codes, found 191"),
        ({**plain, "absmax": plain["absmax"][:-1]}, corrupt, "needs 24 bytes of absmax"),
        ({**plain, "quant_map": plain["quant_map"][:-1]}, corrupt, "needs 64 bytes of quant_map"),
        ({**plain, "quant_map": plain["quant_map"] * np.nan}, corrupt, "quant_map.0. is -?nan"),
        ({**plain, "absmax": plain["absmax"].astype(np.float64)}, invalid, "numpy array of float32"),
        ({**double, "absmax": double["absmax"][:-1]}, corrupt, "needs 6 bytes of absmax"),
        ({**double, "nested_absmax": np.zeros(2, np.float32)}, corrupt, "needs 4 bytes of nested_absmax"),
        ({**double, "nested_quant_map": np.zeros(255, np.float32)}, corrupt, "nested_quant_map, found 1020"),
        ({**double, "nested_offset": float("nan")}, corrupt, "nested_offset"),
        ({"codes": plain["codes"]}, invalid, '"quant_map" is missing'),
    ]
    for planes, error, text in cases:
        with pytest.raises(error, match=text):
            _core.weight_from_planes("nf4", 4, 96, 64, planes)
    for shape in ((-4, -96), (1 << 40, 1 << 40), (4, -96)):
        with pytest.raises(corrupt, match="impossible shape"):
            _core.weight_from_planes("nf4", *shape, 64, plain)
    with pytest.raises(corrupt, match="block size 48"):
        _core.weight_from_planes("nf4", 4, 96, 48, plain)
    with pytest.raises(invalid, match="unknown format"):
        _core.weight_from_planes("nf5", 4, 96, 64, plain)
