"""halfbyte.ops: layouts, broadcasting, dtypes and errors. The kernels' accuracy is tested in tests/kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import halfbyte
from halfbyte import ops
from halfbyte.errors import InvalidArgumentError

EPS = float(np.finfo(np.float32).eps)


def rng_array(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_near(value: NDArray[Any], exact: NDArray[Any], terms: int) -> None:
    """float32 sums of `terms` products of unit scale: sqrt(terms) roundings on average, and room for the worst."""
    assert value.dtype == np.float32
    np.testing.assert_allclose(
        value, exact, rtol=0, atol=16 * EPS * terms**0.5 * max(1.0, float(np.abs(exact).max(initial=0)))
    )


@pytest.mark.parametrize("shape", [(70,), (1, 70), (5, 70), (2, 3, 70), (0, 70)])
def test_linear_keeps_leading_axes(shape: tuple[int, ...]) -> None:
    x, weight, bias = rng_array(0, *shape), rng_array(1, 33, 70), rng_array(2, 33)
    w = ops.quantize(weight, "f32")
    assert isinstance(w, halfbyte.Weight)
    assert w.shape == (33, 70)
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    assert_near(ops.linear(x, w, precision="float32"), exact, 70)
    assert_near(ops.linear(x, w, bias, precision="float32"), exact + bias, 70)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_other_dtypes_are_converted(dtype: Any) -> None:
    x, weight = (8 * rng_array(0, 4, 64)).astype(dtype), rng_array(1, 6, 64).astype(np.float16)
    w = ops.quantize(weight, "f16")
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    assert_near(ops.linear(x, w, precision="float32"), exact, 64)


def test_arrays_need_not_be_contiguous() -> None:
    weight, x = rng_array(1, 64, 6).T, rng_array(0, 64, 8).T[::2]
    w = ops.quantize(weight, "f32")
    assert_near(ops.linear(x, w, precision="float32"), x.astype(np.float64) @ weight.T, 64)


def test_quantize_settings() -> None:
    weight = rng_array(0, 256, 512)  # large enough that the maps of a weight don't count
    plain = ops.quantize(weight, "nf4", blocksize=64, double_quant=False)
    nested = ops.quantize(weight, "nf4", blocksize=64, double_quant=True)
    assert (plain.format, plain.block_size) == ("nf4", 64)
    assert plain.bits_per_weight == pytest.approx(4.5, abs=0.01)
    assert nested.bits_per_weight < 4.25
    assert nested.dequantize().shape == (256, 512)
    assert ops.quantize(weight).format == "nf4"


def test_linear_of_a_quantised_weight_is_that_of_its_values() -> None:
    x, w = rng_array(0, 3, 128), ops.quantize(rng_array(1, 40, 128), "nf4")
    assert_near(ops.linear(x, w, precision="float32"), x.astype(np.float64) @ w.dequantize().T, 128)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros(3), "matrix"),
        (np.zeros((0, 3)), "matrix"),
        (np.array([["a"]]), "numbers"),
        (np.zeros((2, 2), dtype=complex), "numbers"),
    ],
)
def test_quantize_errors(value: NDArray[Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        ops.quantize(value)


def test_quantize_names_an_unknown_format_and_block_size() -> None:
    with pytest.raises(InvalidArgumentError, match="q9"):
        ops.quantize(np.zeros((2, 64)), "q9")
    with pytest.raises(InvalidArgumentError, match="63"):
        ops.quantize(np.zeros((2, 64)), "nf4", blocksize=63)


def test_linear_errors() -> None:
    w = ops.quantize(np.ones((4, 8)), "f32")
    with pytest.raises(InvalidArgumentError, match=r"\[\.\.\., 8\].*\(2, 7\)"):
        ops.linear(np.ones((2, 7)), w)
    with pytest.raises(InvalidArgumentError, match=r"bias.*\(4,\).*\(8,\)"):
        ops.linear(np.ones((2, 8)), w, np.ones(8))
    with pytest.raises(InvalidArgumentError, match=r"ops\.quantize"):
        ops.linear(np.ones((2, 8)), np.ones((4, 8)))  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="threads"):
        ops.linear(np.ones((2, 8)), w, threads=0)
    with pytest.raises(InvalidArgumentError, match="precision"):
        ops.linear(np.ones((2, 8)), w, precision="lowest")  # type: ignore[arg-type]
    with pytest.raises(halfbyte.Error, match="cuda"):
        ops.linear(np.ones((2, 8)), w, device="cuda:7")


def sdpa(q: NDArray[Any], k: NDArray[Any], v: NDArray[Any], **options: Any) -> NDArray[Any]:
    """torch's own, in float64."""
    tensors = (torch.from_numpy(a.astype(np.float64)) for a in (q, k, v))
    result: NDArray[Any] = torch.nn.functional.scaled_dot_product_attention(*tensors, **options).numpy()
    return result


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs(batch: tuple[int, ...], causal: bool) -> None:
    q, k, v = rng_array(0, *batch, 6, 9, 20), rng_array(1, *batch, 3, 9, 20), rng_array(2, *batch, 3, 9, 20)
    exact = sdpa(q, k, v, is_causal=causal, enable_gqa=True)
    assert_near(ops.attention(q, k, v, causal=causal, precision="float32"), exact, 20)


def test_attention_of_fewer_queries_than_keys() -> None:
    q, k, v = rng_array(0, 1, 2, 3, 16), rng_array(1, 1, 2, 8, 16), rng_array(2, 1, 2, 8, 16)
    lower_right = torch.ones(3, 8, dtype=torch.bool).tril(diagonal=5)
    exact = sdpa(q, k, v, attn_mask=lower_right)
    assert_near(ops.attention(q, k, v, causal=True, precision="float32"), exact, 16)


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (4, 5, 7), (4, 1, 7), (2, 1, 5, 7), (2, 4, 5, 7), (1, 1, 1, 7)])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_attention_masks(shape: tuple[int, ...], kind: str) -> None:
    q, k, v = rng_array(0, 2, 4, 5, 12), rng_array(1, 2, 4, 7, 12), rng_array(2, 2, 4, 7, 12)
    mask: NDArray[Any] = rng_array(3, *shape)
    if kind == "bool":
        mask = mask > 0
        mask[..., 0] = True  # every query sees something
    exact = sdpa(q, k, v, attn_mask=torch.from_numpy(mask if kind == "bool" else mask.astype(np.float64)), scale=0.3)
    value = ops.attention(q, k, v, causal=False, mask=mask, scale=0.3, precision="float32")
    assert_near(value, exact, 12)


def test_attention_window_and_softcap() -> None:
    q, k, v = rng_array(0, 2, 9, 16), rng_array(1, 2, 9, 16), rng_array(2, 2, 9, 16)
    band = np.tril(np.ones((9, 9), dtype=bool)) & ~np.tril(np.ones((9, 9), dtype=bool), -3)
    exact = sdpa(q, k, v, attn_mask=torch.from_numpy(band))
    assert_near(ops.attention(q, k, v, window=3, precision="float32"), exact, 16)
    scores = np.einsum("hqd,hkd->hqk", q, k, dtype=np.float64) / 4
    scores = np.where(np.tril(np.ones((9, 9), dtype=bool)), 5 * np.tanh(scores / 5), -np.inf)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert_near(ops.attention(q, k, v, softcap=5.0, precision="float32"), weights @ v.astype(np.float64), 16)


def test_attention_errors() -> None:
    q = np.ones((4, 5, 8))
    with pytest.raises(InvalidArgumentError, match="expected q"):
        ops.attention(np.ones((5, 8)), q, q)
    with pytest.raises(InvalidArgumentError, match="multiple of kv_heads"):
        ops.attention(q, np.ones((3, 5, 8)), np.ones((3, 5, 8)))
    with pytest.raises(InvalidArgumentError, match="as many keys"):
        ops.attention(q, q[:, :3], q[:, :3])
    with pytest.raises(InvalidArgumentError, match="broadcast"):
        ops.attention(q, q, q, mask=np.ones((4, 4)))
    with pytest.raises(InvalidArgumentError, match="window"):
        ops.attention(q, q, q, causal=False, window=2)


@pytest.mark.parametrize("shape", [(67,), (3, 67), (2, 3, 67)])
def test_norms(shape: tuple[int, ...]) -> None:
    x, gamma, beta = 3 + rng_array(0, *shape), rng_array(1, 67), rng_array(2, 67)
    wide = x.astype(np.float64)
    centred = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    assert_near(ops.layer_norm(x, gamma, beta, 1e-5), centred * gamma + beta, 67)
    assert_near(ops.layer_norm(x, gamma), centred * gamma, 67)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * gamma
    assert_near(ops.rms_norm(x, gamma, 1e-6), exact, 67)
    with pytest.raises(InvalidArgumentError, match=r"gamma.*\(67,\).*\(66,\)"):
        ops.rms_norm(x, gamma[:-1])
    with pytest.raises(InvalidArgumentError, match="beta"):
        ops.layer_norm(x, gamma, beta[:-1])
