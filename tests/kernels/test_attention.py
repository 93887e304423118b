"""attention() against float64, and against torch's own error in float32."""

import numpy as np
import pytest
import torch
from kernel_checks import rms

from halfbyte import _core

# (queries, keys, heads, kv heads, head dim)
SHAPES = [
    (1, 5000, 8, 2, 64),
    (3, 700, 8, 2, 128),
    (2, 1500, 14, 2, 80),
    (1, 1, 1, 1, 64),
    (1, 17, 4, 2, 64),
    (1, 300, 9, 3, 64),
    (2, 65, 6, 1, 40),
    (65, 65, 3, 1, 80),
    (129, 200, 4, 4, 33),
    (7, 63, 12, 12, 20),
    (33, 64, 40, 1, 16),
]


def visible(queries, keys, causal, window):
    position, key = keys - queries + np.arange(queries)[:, None], np.arange(keys)[None]
    seen = np.ones((queries, keys), bool)
    if causal or window:
        seen &= key <= position
    if window:
        seen &= key > position - window
    return seen


def reference(q, k, v, seen, mask, scale, softcap):
    """In the dtype of q; rows that see nothing are zeros."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores + torch.from_numpy(mask).to(q.dtype)
    scores = scores.masked_fill(~torch.from_numpy(seen), -torch.inf)
    return torch.einsum("hqk,khd->qhd", torch.softmax(scores, -1).nan_to_num(0), v).numpy()


def cached(x, cache):
    """What a cache holds of x [keys, heads, d]."""
    if cache == "f16":
        return x.astype(np.float16).astype(np.float32)
    if cache == "bf16":
        return torch.from_numpy(x).bfloat16().float().numpy()
    if cache == "int8":
        most = np.abs(x).max(-1, keepdims=True)
        return np.rint(x * (np.float32(127) / most)) * (most / np.float32(127))
    return x


CACHES = ["", "f32", "f16", "bf16", "int8"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("variant", ["full", "causal", "window", "softcap", "mask", "head mask"])
def test_against_float64(make_ops, rng, shape, cache, variant):
    queries, keys, heads, kv_heads, d = shape
    ops = make_ops(threads=1 + queries % 3)
    causal, window = variant in ("causal", "window", "softcap"), 20 if variant == "window" else 0
    softcap, mask = 3.0 if variant == "softcap" else 0.0, None
    seen = visible(queries, keys, causal, window)
    errors, own_errors, values = [], [], []
    # The errors of one row of scores move its whole result: a root mean square of errors needs some rows.
    for _ in range(8 if queries * heads < 50 else 1):
        q = rng.standard_normal((queries, heads, d)).astype(np.float32)
        k, v = (rng.standard_normal((keys, kv_heads, d)).astype(np.float32) for _ in range(2))
        if "mask" in variant:
            size = (heads if variant == "head mask" else 1, queries, keys)
            mask = np.where(rng.random(size) < 0.3, -np.inf, rng.standard_normal(size)).astype(np.float32)
        found = ops.attention(q, k, v, causal, mask, d**-0.5, window, softcap, cache=cache)
        k, v = cached(k, cache), cached(v, cache)
        double = [torch.from_numpy(t).double() for t in (q, k, v)]
        single = [torch.from_numpy(t) for t in (q, k, v)]
        exact = reference(*double, seen, mask, d**-0.5, softcap)
        errors.append(found - exact)
        own_errors.append(reference(*single, seen, mask, d**-0.5, softcap) - exact)
        values.append(exact)
    # int8: scores and weights are multiplied by scales: two more roundings of at most 2^-24 each.
    more = 2**-23 if cache == "int8" else 2**-25
    assert rms(np.stack(errors)) <= 2 * rms(np.stack(own_errors)) + more * rms(np.stack(values))


@pytest.mark.parametrize("cache", CACHES[1:])
@pytest.mark.parametrize("d", [64, 128])
def test_what_a_cache_rounds(ops, rng, cache, d):
    """Against the values as they were. One weight is 1 and the others vanish: the result is one value of the cache."""
    k, v = (rng.standard_normal((200, 2, d)).astype(np.float32) for _ in range(2))
    found = ops.attention(1000 * k[17:18], k, v, False, None, d**-0.5, 0, 0.0, cache=cache)[0]
    size = np.abs(v[17])
    # Half a unit in the last place; int8: half a step, 1/254 of the greatest of its head.
    bound = {
        "f32": 2**-24 * size,
        "f16": 2**-11 * size + 2**-25,
        "bf16": 2**-8 * size,
        "int8": size.max(-1, keepdims=True) / 254 * np.ones(d, np.float32),
    }[cache]
    assert (np.abs(found - v[17]) <= bound + 2**-22 * size).all()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("shape", [(1, 3000, 8, 2, 64), (5, 700, 6, 2, 40), (70, 190, 4, 2, 64)], ids=str)
def test_threads_change_nothing(make_ops, rng, shape, cache):
    """Keys are shared out between threads; the sums are the same."""
    queries, keys, heads, kv_heads, d = shape
    q = rng.standard_normal((queries, heads, d)).astype(np.float32)
    k, v = (rng.standard_normal((keys, kv_heads, d)).astype(np.float32) for _ in range(2))
    alone, *others = (
        make_ops(threads=threads).attention(q, k, v, True, None, d**-0.5, 0, 0.0, cache=cache) for threads in (1, 2, 3)
    )
    for other in others:
        np.testing.assert_array_equal(other, alone)


@pytest.mark.parametrize("keys", [40, 2000])
def test_infinity_in_a_cache_of_int8_shows(ops, rng, keys):
    q, k, v = (rng.standard_normal((n, 2, 32)).astype(np.float32) for n in (1, keys, keys))
    k[keys // 2, 0, 3] = np.inf
    found = ops.attention(q, k, v, True, None, 0.1, 0, 0.0, cache="int8")
    assert np.isnan(found[:, 0]).all()
    assert np.isfinite(found[:, 1]).all()


@pytest.mark.parametrize("queries", [1, 40])
def test_rows_that_see_nothing_are_zeros(ops, rng, queries):
    q, k, v = (rng.standard_normal((n, 2, 32)).astype(np.float32) for n in (queries, 70, 70))
    mask = np.zeros((1, queries, 70), np.float32)
    mask[0, queries // 2] = -np.inf
    found = ops.attention(q, k, v, False, mask, 0.1, 0, 0.0)
    assert (found[queries // 2] == 0).all()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("queries", [1, 40])
def test_nan_stays_in_its_row(ops, rng, queries):
    q, k, v = (rng.standard_normal((n, 2, 32)).astype(np.float32) for n in (queries, 70, 70))
    clean = ops.attention(q, k, v, False, None, 0.1, 0, 0.0)
    q[queries // 2, 1, 3] = np.nan
    found = ops.attention(q, k, v, False, None, 0.1, 0, 0.0)
    assert np.isnan(found[queries // 2, 1]).all()
    found[queries // 2, 1] = clean[queries // 2, 1]
    np.testing.assert_array_equal(found, clean)


def test_large_scores(ops, rng):
    """Scores of hundreds: no overflow, and the winner takes all."""
    q, k, v = (rng.standard_normal((n, 1, 64)).astype(np.float32) for n in (9, 130, 130))
    found = ops.attention(q * 100, k * 100, v, False, None, 1.0, 0, 0.0)
    winner = np.einsum("qhd,khd->hqk", q.astype(np.float64), k).argmax(-1)[0]
    np.testing.assert_allclose(found[:, 0], v[winner, 0], rtol=1e-6)


def test_wrong_caches_are_named(ops):
    zeros = np.zeros((1, 1, 8), np.float32)
    with pytest.raises(_core.InvalidArgumentError, match='expected "f16", "bf16", "f32" or "int8", found "fp8"'):
        ops.attention(zeros, zeros, zeros, True, None, 1.0, 0, 0.0, cache="fp8")


def test_wrong_shapes_are_named(ops):
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    with pytest.raises(_core.InvalidArgumentError, match="3 query heads are not a multiple of 2"):
        ops.attention(zeros(1, 3, 8), zeros(1, 2, 8), zeros(1, 2, 8), False, None, 1.0, 0, 0.0)
    with pytest.raises(_core.InvalidArgumentError, match="causal with 2 queries and only 1 keys"):
        ops.attention(zeros(2, 1, 8), zeros(1, 1, 8), zeros(1, 1, 8), True, None, 1.0, 0, 0.0)
    with pytest.raises(_core.InvalidArgumentError, match=r"mask must be \[1 or 1, 1, 1\], found \(1, 1, 2\)"):
        ops.attention(zeros(1, 1, 8), zeros(1, 1, 8), zeros(1, 1, 8), True, zeros(1, 1, 2), 1.0, 0, 0.0)
