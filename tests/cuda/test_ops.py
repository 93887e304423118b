"""Functions on numpy arrays with device="cuda": arrays go to the device and come back, the numbers are the CPU's."""

from __future__ import annotations

import numpy as np
import pytest

from halfbyte import _core

pytestmark = pytest.mark.usefixtures("emulated")
# Two float32 computations of the same thing: a few roundings of the greatest number.
FLOAT32 = 4e-6


@pytest.fixture(scope="module")
def devices() -> tuple[_core.Ops, _core.Ops]:
    return _core.Ops("cpu", 1, "float32"), _core.Ops("cuda", 1, "float32")


def same(cpu: np.ndarray, cuda: np.ndarray, tolerance: float = FLOAT32) -> None:
    np.testing.assert_allclose(cuda, cpu, rtol=0, atol=tolerance * float(np.abs(cpu).max()))


def test_rows(devices: tuple[_core.Ops, _core.Ops]) -> None:
    cpu, cuda = devices
    rng = np.random.default_rng(0)
    x, gamma = rng.standard_normal((7, 97), dtype=np.float32), rng.standard_normal(97, dtype=np.float32)
    same(cpu.rms_norm(x, gamma, 1e-5), cuda.rms_norm(x, gamma, 1e-5))
    same(cpu.layer_norm(x, gamma, gamma, 1e-5), cuda.layer_norm(x, gamma, gamma, 1e-5))
    for name in ("none", "relu", "gelu", "gelu_tanh", "silu", "tanh"):
        same(cpu.activate(name, x), cuda.activate(name, x))
        same(cpu.gated_activation(name, x, x[::-1].copy()), cuda.gated_activation(name, x, x[::-1].copy()))
    for pooling in ("mean", "cls", "max", "last"):
        same(cpu.pool(x, [3, 0, 4], pooling, True), cuda.pool(x, [3, 0, 4], pooling, True))
    heads, positions = x[:, :96].copy(), np.array([0, 1, 2, 500, 30000, 131071, 3], np.int32)
    frequencies = (10000.0 ** -(np.arange(8) / 8)).astype(np.float32)
    for interleaved in (False, True):
        same(
            cpu.rope(heads, 16, positions, frequencies, 1.2, interleaved),
            cuda.rope(heads, 16, positions, frequencies, 1.2, interleaved),
        )


@pytest.mark.parametrize("cache", ["", "f32", "f16", "bf16", "int8"])
@pytest.mark.parametrize("queries", [1, 9])
def test_attention(cache: str, queries: int, devices: tuple[_core.Ops, _core.Ops]) -> None:
    cpu, cuda = devices
    rng = np.random.default_rng(1)
    q = rng.standard_normal((queries, 4, 24), dtype=np.float32)
    k, v = (rng.standard_normal((70, 2, 24), dtype=np.float32) for _ in range(2))
    mask = rng.standard_normal((4, queries, 70), dtype=np.float32)
    for causal, bias, window, softcap in ((False, None, 0, 0.0), (True, None, 50, 0.0), (True, mask, 0, 20.0)):
        arguments = (q, k, v, causal, bias, 0.2, window, softcap, cache)
        same(cpu.attention(*arguments), cuda.attention(*arguments))


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
@pytest.mark.parametrize(
    ("format", "block", "nested"),
    [
        ("nf4", 64, True),
        ("nf4", 128, False),
        ("fp4", 32, True),
        ("int8", 64, False),
        ("bf16", 0, False),
        ("f32", 0, False),
    ],
)
def test_products(rows: int, format: str, block: int, nested: bool, devices: tuple[_core.Ops, _core.Ops]) -> None:
    cpu, cuda = devices
    rng = np.random.default_rng(2)
    x, bias = rng.standard_normal((rows, 192), dtype=np.float32), rng.standard_normal(50, dtype=np.float32)
    weight = _core.quantize(rng.standard_normal((50, 192), dtype=np.float32), format, block, nested)
    exact = cpu.linear(x, weight, bias)
    same(exact, cuda.linear(x, weight, bias))
    # high: one rounding of weights to bf16 (2^-9), and of rows where there are many; 192 products of random sign
    same(exact, _core.Ops("cuda", 1, "high").linear(x, weight, bias), 2**-8)
    ids = np.array([0, 49, 7], np.int32)
    np.testing.assert_array_equal(cuda.embed(weight, ids), cpu.embed(weight, ids))
    np.testing.assert_array_equal(cuda.round_trip(weight).dequantize(), weight.dequantize())
