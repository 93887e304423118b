"""Norms, activations, rotary embedding, lookup and pooling against float64: at most twice torch's error in float32."""

import numpy as np
import pytest
import torch
from kernel_checks import relative

from halfbyte import _core

SIZES = [(1, 1), (1, 3), (3, 7), (2, 17), (7, 63), (1, 65), (5, 129), (63, 1000), (129, 257), (1, 4096)]
# Half a unit in the last place of float32: no result is nearer than its own rounding.
HALF_ULP = 2**-25


def double(x):
    return torch.from_numpy(x).double()


@pytest.mark.parametrize("shift", [0, 100])
def test_layer_norm(make_ops, rng, shift):
    for threads, (m, n) in enumerate(SIZES):
        x = (rng.standard_normal((m, n)) * 3 + shift).astype(np.float32)
        gamma, beta = (rng.standard_normal(n).astype(np.float32) for _ in range(2))
        found = make_ops(threads=1 + threads % 3).layer_norm(x, gamma, beta, 1e-5)
        exact = torch.nn.functional.layer_norm(double(x), (n,), double(gamma), double(beta), 1e-5).numpy()
        own = torch.nn.functional.layer_norm(
            torch.from_numpy(x), (n,), torch.from_numpy(gamma), torch.from_numpy(beta), 1e-5
        ).numpy()
        # A mean of 100 leaves fewer digits: its rounding alone is 100 * 2^-24 in units of x.
        assert relative(found, exact) <= 2 * relative(own, exact) + HALF_ULP * (1 + shift), (m, n)
        without = make_ops().layer_norm(x, gamma, None, 1e-5)
        np.testing.assert_allclose(without, found - beta, rtol=0, atol=2e-6 * np.abs(found).max())


def test_rms_norm(make_ops, rng):
    for threads, (m, n) in enumerate(SIZES):
        x = (rng.standard_normal((m, n)) * 3).astype(np.float32)
        gamma = rng.standard_normal(n).astype(np.float32)
        found = make_ops(threads=1 + threads % 3).rms_norm(x, gamma, 1e-6)
        exact = torch.nn.functional.rms_norm(double(x), (n,), double(gamma), 1e-6).numpy()
        own = torch.nn.functional.rms_norm(torch.from_numpy(x), (n,), torch.from_numpy(gamma), 1e-6).numpy()
        assert relative(found, exact) <= 2 * relative(own, exact) + HALF_ULP, (m, n)


@pytest.mark.parametrize("magnitude", [1e-20, 1e15])
def test_norms_of_small_and_large_rows(ops, rng, magnitude):
    x = (rng.standard_normal((3, 100)) * magnitude).astype(np.float32)
    gamma = np.ones(100, np.float32)
    for found, exact in (
        (ops.rms_norm(x, gamma, 1e-30), torch.nn.functional.rms_norm(double(x), (100,), None, 1e-30)),
        (ops.layer_norm(x, gamma, None, 1e-30), torch.nn.functional.layer_norm(double(x), (100,), None, None, 1e-30)),
    ):
        assert relative(found, exact.numpy()) < 1e-6


def test_norms_keep_nan_in_its_row(ops, rng):
    x = rng.standard_normal((3, 65)).astype(np.float32)
    x[1, 64] = np.nan
    for found in (
        ops.rms_norm(x, np.ones(65, np.float32), 1e-6),
        ops.layer_norm(x, np.ones(65, np.float32), None, 1e-6),
    ):
        assert np.isnan(found[1]).all()
        assert np.isfinite(found[[0, 2]]).all()


ACTIVATIONS = {
    "none": lambda x: x,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(make_ops, rng, name):
    dense = np.concatenate([np.linspace(-12, 12, 40001), np.logspace(-30, 2, 2001), -np.logspace(-30, 2, 2001)])
    x = dense.astype(np.float32)
    exact = ACTIVATIONS[name](double(x)).numpy()
    own = ACTIVATIONS[name](torch.from_numpy(x)).numpy()
    for threads in (1, 2):
        found = make_ops(threads=threads).activate(name, x)
        assert relative(found, exact) <= 2 * relative(own, exact) + HALF_ULP
        # Worst case, where 1 + erf and its like cancel: 4 units in the last place of the argument.
        assert (np.abs(found - exact) <= 2**-22 * np.maximum(np.abs(x), np.abs(exact))).all()


def test_tanh_units_in_the_last_place(ops):
    x = np.concatenate([np.linspace(-10, 10, 100003), np.logspace(-20, 0, 3001)]).astype(np.float32)
    exact = np.tanh(x.astype(np.float64))
    assert (np.abs(ops.activate("tanh", x) - exact) / np.spacing(np.abs(exact).astype(np.float32)))[x != 0].max() <= 3


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_odd_sizes_and_special_values(ops, rng, name):
    special = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 3e38, -3e38, 1e-45], np.float32)
    with np.errstate(invalid="ignore"):
        # In float64: with AVX-512 torch's float32 gelu makes NaN of infinity and infinity of 3e38.
        exact = ACTIVATIONS[name](torch.from_numpy(special).double()).float().numpy()
    # torch gives NaN for -inf * 0 in gelu; here the same or the limit 0.
    found = ops.activate(name, special)
    np.testing.assert_array_equal(np.isnan(found[[0]]), [True])
    np.testing.assert_allclose(found[[1, 3, 4, 5, 6, 7]], exact[[1, 3, 4, 5, 6, 7]], rtol=1e-6, atol=1e-44)
    for n in (0, 1, 3, 7, 17, 65):
        x = rng.standard_normal((3, n)).astype(np.float32)
        up = rng.standard_normal((3, n)).astype(np.float32)
        plain = ops.activate(name, x)
        assert plain.shape == x.shape
        np.testing.assert_array_equal(ops.gated_activation(name, x, up), plain * up)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [1, 0.5])
def test_rope(make_ops, rng, interleaved, rotary):
    for m, heads, d in ((1, 1, 2), (3, 2, 64), (17, 3, 80), (129, 2, 34)):
        half = int(d * rotary) // 2
        frequencies = (10000.0 ** -(np.arange(half) / max(half, 1))).astype(np.float32)
        x = rng.standard_normal((m, heads * d)).astype(np.float32)
        positions = rng.integers(0, 5000, m).astype(np.int32)
        found = make_ops(threads=2).rope(x, d, positions, frequencies, 1.25, interleaved)
        # The angle is a float32 product, as in transformers.
        angle = (positions[:, None].astype(np.float32) * frequencies).astype(np.float64)[:, None]
        cos, sin = np.cos(angle) * 1.25, np.sin(angle) * 1.25
        exact = x.astype(np.float64).reshape(m, heads, d).copy()
        first, second = (
            (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
        )
        a, b = exact[..., first].copy(), exact[..., second].copy()
        exact[..., first], exact[..., second] = a * cos - b * sin, b * cos + a * sin
        np.testing.assert_allclose(found, exact.reshape(m, -1), rtol=0, atol=4 * 2**-24 * np.abs(exact).max())


def test_rope_tables_are_not_confused(ops, rng):
    """The last table of angles is kept: a change of any of its arguments must be seen."""
    x = rng.standard_normal((4, 16)).astype(np.float32)
    f = np.array([1, 0.5, 0.25, 0.125], np.float32)
    p = np.arange(4, dtype=np.int32)
    first = ops.rope(x, 8, p, f, 1.0, False)
    for other in ((p + 1, f, 1.0), (p, f * 2, 1.0), (p, f, 2.0), (p, f[:3], 1.0)):
        assert not np.array_equal(ops.rope(x, 8, *other, False), first)
        np.testing.assert_array_equal(ops.rope(x, 8, p, f, 1.0, False), first)


@pytest.mark.parametrize("fmt", ["nf4", "int8", "f32", "f16", "bf16"])
def test_embed_is_exact(make_ops, rng, fmt):
    table = _core.quantize(rng.standard_normal((37, 96)).astype(np.float32), fmt, 32, True)
    ids = rng.integers(0, 37, 50).astype(np.int32)
    for precision in ("high", "float32"):
        np.testing.assert_array_equal(make_ops(precision, 2).embed(table, ids), table.dequantize()[ids])
    with pytest.raises(_core.InvalidArgumentError, match="id 37 of a table with 37 rows"):
        make_ops().embed(table, np.array([37], np.int32))


@pytest.mark.parametrize("normalize", [False, True])
def test_pool(ops, rng, normalize):
    lengths = [3, 1, 0, 65, 7]
    x = rng.standard_normal((sum(lengths), 129)).astype(np.float32)
    parts = np.split(x.astype(np.float64), np.cumsum(lengths)[:-1])
    for name, f in (
        ("mean", lambda p: p.mean(0)),
        ("max", lambda p: p.max(0)),
        ("cls", lambda p: p[0]),
        ("last", lambda p: p[-1]),
    ):
        exact = np.stack([f(p) if len(p) else np.zeros(129) for p in parts])
        if normalize:
            exact /= np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)
        # 65 sequential sums of float32.
        np.testing.assert_allclose(ops.pool(x, lengths, name, normalize), exact, rtol=0, atol=65 * 2**-24)
    x[4, 7] = np.nan
    assert np.isnan(ops.pool(x, lengths, "max", False)[3, 7])
