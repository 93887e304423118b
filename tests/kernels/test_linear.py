"""linear(): every storage, odd sizes, against float64 products of the dequantised weight."""

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from kernel_checks import relative

from halfbyte import _core

FORMATS = ["nf4", "nf4-128", "fp4", "fp4-32", "int8", "q8_0", "f32", "f16", "bf16", "q4_0", "q4_1", "int8_rows"]
# (rows of x, in, out)
SHAPES = [
    (1, 64, 16),
    (1, 192, 33),
    (2, 128, 65),
    (3, 320, 7),
    (5, 64, 129),
    (7, 640, 17),
    (63, 128, 63),
    (129, 576, 48),
]


def make_weight(rng, fmt, out, k):
    values = rng.standard_normal((out, k)).astype(np.float32)
    if fmt in ("q4_0", "q4_1"):
        # Random codes and scales are a valid weight: blocks of 32, f16 scale (and minimum), 16 bytes of codes.
        blocks = out * k // 32
        scales = rng.uniform(0.5, 1.5, (blocks, 1)).astype(np.float16) / np.float16(8)
        parts = [(-scales if fmt == "q4_0" else scales).view(np.uint8)]
        if fmt == "q4_1":
            parts.append((scales * np.float16(-7.4)).view(np.uint8))
        parts.append(rng.integers(0, 256, (blocks, 16), dtype=np.uint8))
        return _core.weight_from_planes(fmt, out, k, 32, {"data": np.concatenate(parts, axis=1).reshape(-1)})
    if fmt == "int8_rows":
        scb = np.abs(values).max(axis=1)
        levels = np.rint(values * (127 / scb[:, None])).astype(np.int8)
        return _core.weight_from_planes(fmt, out, k, k, {"levels": levels.reshape(-1), "SCB": scb})
    name, _, block = fmt.partition("-")
    return _core.quantize(values, name, int(block or 64), name == "nf4")


def exact_product(x, weight, bias=None):
    y = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    return y if bias is None else y + bias


def bf16(x):
    return torch.from_numpy(x).bfloat16().float().numpy()


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("precision", ["high", "fast", "float32"])
def test_error_against_float64(make_ops, rng, fmt, precision):
    errors, norms = [], []
    for threads, (m, k, n) in enumerate(SHAPES):
        ops = make_ops(precision, 1 + threads % 3)
        weight = make_weight(rng, fmt, n, k)
        x = rng.standard_normal((m, k)).astype(np.float32)
        bias = rng.standard_normal(n).astype(np.float32)
        exact = exact_product(x, weight, bias)
        found = ops.linear(x, weight, bias)
        assert found.shape == (m, n)
        error = relative(found, exact)
        if precision == "float32":
            reference = torch.nn.functional.linear(
                torch.from_numpy(x), torch.from_numpy(weight.dequantize()), torch.from_numpy(bias)
            ).numpy()
            # At most twice the error of torch in the same precision; 2^-25 is half a unit of the result's own rounding.
            assert error <= 2 * relative(reference, exact) + 2**-25, (m, k, n)
        else:
            # Of so few outputs: their own spread comes on top, at most a factor of two (16 outputs: 18 % of deviation).
            assert error <= (6e-4 if precision == "high" else 2e-2), (m, k, n)
        errors.append(np.sum((found - exact) ** 2))
        norms.append(np.sum(exact**2))
    # Over all shapes. Integers over a normal distribution: 1e-4 of the activations; 1.1e-4 of NF4 levels, 1.8e-4 of
    # float weights. Bytes: 5.3e-3 of the activations, 5.5e-3 of NF4 levels.
    overall = np.sqrt(sum(errors) / sum(norms))
    assert overall <= {"float32": 1e-6, "high": 3e-4, "fast": 9e-3}[precision]
    assert overall > 0  # a product of random numbers is never exact: the comparison is not with itself
    if precision == "high":
        assert overall < 0.25 * np.sqrt(np.sum((exact_product(bf16(x), weight, bias) - exact) ** 2) / np.sum(exact**2))


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_panels_keep_the_planes_of_bitsandbytes(make_ops, quant_type, double_quant, dtype):
    """Repacked for the processor and put back, every plane is the one that bitsandbytes made, bit for bit."""
    generator = torch.Generator().manual_seed(5)
    for threads, (rows, cols, block) in enumerate(
        [(16, 64, 64), (33, 576, 64), (130, 2048, 64), (7, 1536, 64), (50, 96, 32), (20, 1024, 256), (3, 4096, 4096)]
    ):
        values = torch.randn(rows, cols, generator=generator).to(dtype)
        packed, state = bnb.quantize_4bit(
            values, blocksize=block, compress_statistics=double_quant, quant_type=quant_type
        )
        planes = {"codes": packed.flatten().numpy(), "quant_map": state.code.numpy(), "absmax": state.absmax.numpy()}
        if double_quant:
            planes["nested_absmax"] = state.state2.absmax.numpy()
            planes["nested_quant_map"] = state.state2.code.numpy()
            planes["nested_offset"] = float(state.offset)
        weight = _core.weight_from_planes(quant_type, rows, cols, block, planes)
        back = make_ops("high", 1 + threads % 3).round_trip(weight)
        assert (back.format, back.shape, back.block_size) == (quant_type, (rows, cols), block)
        found = back.planes()
        assert found.keys() == planes.keys()
        for key, plane in planes.items():
            assert np.asarray(found[key]).tobytes() == np.asarray(plane).tobytes(), key


@pytest.mark.parametrize("fmt", ["nf4", "int8", "q4_1", "f32"])
def test_activations_that_are_hard_to_round(make_ops, rng, fmt):
    """Outliers and ranges: no worse than 3e-4 over all outputs, and in no row worse than 4e-4 or rounding to bf16.

    A row gets a second term beyond 2.5e-4 (root of the mean square over its activations), and words are 1.7e-4 away:
    3e-4 in all, of which 480 outputs are a sample, even where all of them hang on the same 8 columns.
    """
    ops = make_ops()
    weight = make_weight(rng, fmt, 480, 512)
    normal = rng.standard_normal((9, 512))
    cases = {
        "one outlier": np.where(np.arange(512) == 77, 1000 * 2**0.5, normal),
        "one outlier a block": np.where(np.arange(512) % 64 == 5, 300.1, normal),
        "heavy tails": normal**5,
        "large": normal * 1e30,
        "small": normal * 1e-30,
        "all scales": normal * 10.0 ** (np.arange(512) % 60 - 30),
        "gated": np.maximum(normal, 0) * rng.standard_normal((9, 512)),
        "mean of one": normal * 0.01 + 1,
    }
    for name, values in cases.items():
        x = values.astype(np.float32)
        exact = exact_product(x, weight)
        found = ops.linear(x, weight, None)
        assert np.isfinite(found).all(), name
        for row in range(len(x)):
            rounded = exact_product(bf16(x[row : row + 1]), weight)
            assert relative(found[row : row + 1], exact[row : row + 1]) <= max(
                4e-4, relative(rounded, exact[row : row + 1])
            ), name
        assert relative(found, exact) <= 3e-4, name


def test_weights_beyond_the_range_of_float16(ops, rng):
    x = rng.standard_normal((3, 128)).astype(np.float32)
    for factor in (1e-20, 1e15):
        weight = _core.quantize((rng.standard_normal((33, 128)) * factor).astype(np.float32), "nf4", 64, False)
        assert relative(ops.linear(x, weight, None), exact_product(x, weight)) < 3e-4


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("precision", ["high", "fast", "float32"])
@pytest.mark.parametrize("m", [1, 2, 40])
def test_nan_and_infinity_stay_in_their_row(make_ops, rng, fmt, precision, m):
    ops = make_ops(precision)
    weight = make_weight(rng, fmt, 40, 128)
    x = rng.standard_normal((m, 128)).astype(np.float32)
    clean = ops.linear(x, weight, None)
    for bad in (np.nan, np.inf, -np.inf):
        for row in {0, m // 2, m - 1}:
            poisoned = x.copy()
            poisoned[row, 99] = bad
            found = ops.linear(poisoned, weight, None)
            assert not np.isfinite(found[row]).any()
            others = np.arange(m) != row
            np.testing.assert_array_equal(found[others], clean[others])


@pytest.mark.parametrize("fmt", ["nf4", "fp4"])
def test_blocks_that_cross_rows(make_ops, rng, fmt):
    """cols not a multiple of the block: no panels, the row is decoded."""
    for k in (1, 7, 63, 65, 100):
        for m in (1, 9):
            weight = _core.quantize(rng.standard_normal((37, k)).astype(np.float32), fmt, 64, True)
            x = rng.standard_normal((m, k)).astype(np.float32)
            found = make_ops(threads=2).linear(x, weight, None)
            exact = exact_product(x, weight)
            # float32 all the way: sums of k terms, each rounded.
            assert np.abs(found - exact).max() <= 2**-22 * (np.abs(x) @ np.abs(weight.dequantize()).T).max()


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16"])
def test_float_weights_of_odd_widths(make_ops, rng, fmt):
    for k in (1, 3, 17, 65, 129, 300):
        for m in (1, 4, 8, 9, 13):
            weight = _core.quantize(rng.standard_normal((19, k)).astype(np.float32), fmt, 64, True)
            x = rng.standard_normal((m, k)).astype(np.float32)
            found = make_ops().linear(x, weight, None)
            assert (
                np.abs(found - exact_product(x, weight)).max()
                <= 2**-22 * (np.abs(x) @ np.abs(weight.dequantize()).T).max()
            )


@pytest.mark.parametrize("precision", ["high", "float32"])
@pytest.mark.parametrize("m", [1, 2, 3, 6, 17, 100])
def test_several_parts_between_guards(make_ops, rng, precision, m):
    """Parts of mixed storage into one strided output: what lies around it is untouched, and += adds."""
    ops = make_ops(precision, 2)
    k = 192
    weights = [
        make_weight(rng, fmt, n, k) for fmt, n in (("nf4", 33), ("int8", 16), ("f16", 5), ("q4_1", 1), ("fp4", 70))
    ]
    x = rng.standard_normal((m, k)).astype(np.float32)
    separate = np.concatenate([ops.linear(x, w, None) for w in weights], axis=1)
    n = separate.shape[1]
    guard = np.float32(-12345.5)
    memory = np.full((m + 4, n + 32), guard, np.float32)
    inside = memory[2 : m + 2, 16 : n + 16]
    ops.linear_into(x, weights, inside, False)
    np.testing.assert_array_equal(inside, separate)
    before = rng.standard_normal((m, n)).astype(np.float32)
    inside[:] = before
    ops.linear_into(x, weights, inside, True)
    np.testing.assert_allclose(inside, before + separate, rtol=0, atol=1e-5 * np.abs(separate).max())
    inside[:] = guard
    assert (memory == guard).all()


def test_a_row_has_the_same_result_in_any_batch(make_ops, rng):
    """Few rows or many, alone or in groups, 4,352 columns in one go or in pieces: bit for bit."""
    ops = make_ops(threads=3)
    for fmt, k in (("nf4", 256), ("nf4", 4352), ("q4_1", 4352), ("int8", 4352), ("f32", 4352)):
        weight = make_weight(rng, fmt, 130, k)
        x = rng.standard_normal((300, k)).astype(np.float32)
        x[::5, 100] *= 1000
        bias = rng.standard_normal(130).astype(np.float32)
        whole = ops.linear(x, weight, bias)
        for rows in (1, 2, 3, 7, 12, 64):
            np.testing.assert_array_equal(ops.linear(x[:rows], weight, bias), whole[:rows], (fmt, k, rows))


@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("fmt", ["nf4", "fp4-32", "int8", "int8_rows", "q8_0", "f32"])
def test_sums_at_their_largest(make_ops, fmt, precision):
    """Every level and every activation of a block at its limit, with one sign: int32 must not overflow.

    A level is at most half a step away: the sum of 128 words allows steps of 1 / 1364, a table in bytes at least 120.
    The activations are exact; 20 float32 roundings are more than there are. A sum that overflows is off by itself.
    """
    for k in (32, 64, 384, 512):
        values = np.ones((32, k), np.float32)
        values[1] = -1
        values[2, ::2] = -1
        if fmt == "int8_rows":
            weight = _core.weight_from_planes(
                fmt, 32, k, k, {"levels": (127 * values).astype(np.int8).reshape(-1), "SCB": np.ones(32, np.float32)}
            )
        else:
            name, _, block = fmt.partition("-")
            weight = _core.quantize(values, name, int(block or (32 if k == 32 else 64)), name == "nf4")
        for m in (1, 40):
            x = np.repeat(np.float32([[3.0], [-3.0]]), [m, m], axis=0) * np.ones((1, k), np.float32)
            exact = exact_product(x, weight)
            found = make_ops(precision, 1).linear(x, weight, None)
            step = 1 / 1364 if precision == "high" else 1 / 120
            assert np.abs(found - exact).max() <= (20 * 2.0**-24 + step / 2) * 3 * k, (k, m)


@pytest.mark.parametrize("precision", ["high", "fast"])
@pytest.mark.parametrize("fmt", ["nf4", "int8", "q4_1", "f32"])
def test_many_rows_have_the_same_result_with_any_number_of_threads(make_ops, rng, fmt, precision):
    """They are shared out differently; 4,352 columns are several pieces, and some rows have second terms."""
    weight = make_weight(rng, fmt, 40, 4352)
    x = rng.standard_normal((330, 4352)).astype(np.float32)
    x[::7, 100::500] *= 1000
    bias = rng.standard_normal(40).astype(np.float32)
    exact = exact_product(x, weight, bias)
    alone = make_ops(precision, 1).linear(x, weight, bias)
    assert relative(alone, exact) <= {"high": 3e-4, "fast": 2e-2}[precision]
    for threads in (2, 3, 4):  # 165, 110 and 82 rows a thread: rows of its own, but for the last
        np.testing.assert_array_equal(make_ops(precision, threads).linear(x, weight, bias), alone)


def test_empty(ops, rng):
    weight = make_weight(rng, "nf4", 16, 64)
    assert ops.linear(np.zeros((0, 64), np.float32), weight, None).shape == (0, 16)


def test_wrong_shapes_are_named(ops, rng):
    weight = make_weight(rng, "nf4", 16, 64)
    with pytest.raises(_core.InvalidArgumentError, match=r"x has 65 columns, the weight takes 64"):
        ops.linear(np.zeros((1, 65), np.float32), weight, None)
    with pytest.raises(_core.InvalidArgumentError, match=r"bias must have shape \(16,\), found \(15,\)"):
        ops.linear(np.zeros((1, 64), np.float32), weight, np.zeros(15, np.float32))
    with pytest.raises(_core.InvalidArgumentError, match=r"x must be \[rows, columns\]"):
        ops.linear(np.zeros(64, np.float32), weight, None)


def test_lora_against_float64(make_ops, rng):
    """Grouped by adapter, scattered and contiguous rows, every dtype; at most twice torch's own error in float32."""
    for m, k, n in ((1, 64, 33), (3, 100, 16), (9, 65, 7), (130, 256, 129)):
        ops = make_ops(threads=2)
        x = rng.standard_normal((m, k)).astype(np.float32)
        y = rng.standard_normal((m, n)).astype(np.float32)
        ranks, scales = (16, 0, 3), (2.0, 1.0, 0.5)
        a = [rng.standard_normal((r, k)).astype(np.float32) for r in ranks]
        b = [rng.standard_normal((n, r)).astype(np.float32) for r in ranks]
        stored_a = [a[0], a[1], a[2].astype(np.float16)]
        stored_b = [(b[0].view(np.uint32) >> 16).astype(np.uint16), b[1], b[2].astype(np.float16)]
        a[2], b[2] = stored_a[2].astype(np.float32), stored_b[2].astype(np.float32)
        b[0] = (stored_b[0].astype(np.uint32) << 16).view(np.float32)
        for rows in (None, rng.integers(-1, 3, m).astype(np.int32), np.sort(rng.integers(-1, 3, m)).astype(np.int32)):
            exact, reference = y.astype(np.float64), torch.from_numpy(y.copy())
            for r in range(m):
                i = 0 if rows is None else rows[r]
                if i >= 0:
                    exact[r] += scales[i] * (b[i].astype(np.float64) @ (a[i].astype(np.float64) @ x[r]))
                    inner = torch.nn.functional.linear(torch.from_numpy(x[r]), torch.from_numpy(a[i]))
                    reference[r] += torch.nn.functional.linear(inner, torch.from_numpy(b[i])) * scales[i]
            found = ops.lora(x, stored_a, stored_b, scales, rows, y)
            assert relative(found, exact) <= 2 * relative(reference.numpy(), exact) + 2**-25
            if rows is not None:
                np.testing.assert_array_equal(found[rows == -1], y[rows == -1])
