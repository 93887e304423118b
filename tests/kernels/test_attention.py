"""attention() against float64, and against torch's own error in float32."""

import numpy as np
import pytest
import torch
from kernel_checks import relative

from halfbyte import _core

# (queries, keys, heads, kv heads, head dim)
SHAPES = [
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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cache", ["float32", "float16"])
@pytest.mark.parametrize("variant", ["full", "causal", "window", "softcap", "mask", "head mask"])
def test_against_float64(make_ops, rng, shape, cache, variant):
    queries, keys, heads, kv_heads, d = shape
    ops = make_ops(threads=1 + queries % 3)
    q = rng.standard_normal((queries, heads, d)).astype(np.float32)
    k, v = (rng.standard_normal((keys, kv_heads, d)).astype(np.float32) for _ in range(2))
    causal, window = variant in ("causal", "window", "softcap"), 20 if variant == "window" else 0
    softcap, mask = 3.0 if variant == "softcap" else 0.0, None
    if "mask" in variant:
        many = heads if variant == "head mask" else 1
        mask = np.where(rng.random((many, queries, keys)) < 0.3, -np.inf, rng.standard_normal((many, queries, keys)))
        mask = mask.astype(np.float32)
    found = ops.attention(q, k, v, causal, mask, d**-0.5, window, softcap, cache=cache)
    if cache == "float16":
        k, v = (t.astype(np.float16).astype(np.float32) for t in (k, v))
    seen = visible(queries, keys, causal, window)
    double = [torch.from_numpy(t).double() for t in (q, k, v)]
    single = [torch.from_numpy(t) for t in (q, k, v)]
    exact = reference(*double, seen, mask, d**-0.5, softcap)
    own = reference(*single, seen, mask, d**-0.5, softcap)
    assert relative(found, exact) <= 2 * relative(own, exact) + 2**-25


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


def test_wrong_shapes_are_named(ops):
    zeros = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
    with pytest.raises(_core.InvalidArgumentError, match="3 query heads are not a multiple of 2"):
        ops.attention(zeros(1, 3, 8), zeros(1, 2, 8), zeros(1, 2, 8), False, None, 1.0, 0, 0.0)
    with pytest.raises(_core.InvalidArgumentError, match="causal with 2 queries and only 1 keys"):
        ops.attention(zeros(2, 1, 8), zeros(1, 1, 8), zeros(1, 1, 8), True, None, 1.0, 0, 0.0)
    with pytest.raises(_core.InvalidArgumentError, match=r"mask must be \[1 or 1, 1, 1\], found \(1, 1, 2\)"):
        ops.attention(zeros(1, 1, 8), zeros(1, 1, 8), zeros(1, 1, 8), True, zeros(1, 1, 2), 1.0, 0, 0.0)
