"""all-MiniLM-L6-v2 in float storage and rounded to NF4 while loading, against transformers and bitsandbytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import halfbyte
from oracle import packages, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

# Rounding to NF4 while loading takes the mean of a layer's block scales as the offset of its double quantisation. The
# order of that sum moves the offset by a unit in its last place, and now and then one of thousands of scale bytes by
# one step (seen: 2 bytes, no code, in all layers of this model). That is a change of weights, not of arithmetic: the
# rule for float32 does not hold after it, while the change stays far within 16-bit floating point.
NF4_RULE = {"float32": "high", "high": "high", "fast": "fast"}

SENTENCES = (Path(__file__).parents[1] / "data" / "sentences.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def ids() -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(packages.minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return [encoding.ids for encoding in tokenizer.encode_batch(SENTENCES)]


@pytest.fixture(scope="module")
def references(ids: list[list[int]]) -> dict[str, reference.Reference]:
    """Hidden states of every sentence."""
    model = reference.load(packages.minilm())
    return {
        "": reference.Reference(model, ids, reference.hidden),
        "nf4": reference.Reference(reference.round_linears(model, "nf4"), ids, reference.hidden),
    }


@pytest.fixture(scope="module", params=("float32", "high", "fast"))
def loaded(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, Any], str]]:
    models = {
        quantize: halfbyte.load(packages.minilm(), quantize=quantize or None, precision=request.param)
        for quantize in ("", "nf4")
    }
    yield models, request.param
    for model in models.values():
        model.close()


def pooled(rows: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Mean over tokens, then length 1: what the checkpoint's modules.json asks for."""
    means = np.stack([row.astype(np.float64).mean(0) for row in rows])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


@pytest.mark.parametrize("quantize", ("", "nf4"))
def test_hidden_states(
    quantize: str,
    loaded: tuple[dict[str, Any], str],
    ids: list[list[int]],
    references: dict[str, reference.Reference],
) -> None:
    models, precision = loaded
    longest = max(map(len, ids))
    padded = np.array([row + [0] * (longest - len(row)) for row in ids])
    mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    values = models[quantize].hidden_states(padded, mask)
    rows = [values[i, : len(row)] for i, row in enumerate(ids)]
    references[quantize].check(rows, NF4_RULE[precision] if quantize else precision)
    if precision == "float32" and not quantize:
        assert reference.Error.of(rows, references[quantize].truth).max < 1e-5


@pytest.mark.parametrize("quantize", ("", "nf4"))
def test_embeddings(
    quantize: str, loaded: tuple[dict[str, Any], str], references: dict[str, reference.Reference]
) -> None:
    """encode: tokenizer, network, pooling and normalisation as the checkpoint's files say."""
    models, precision = loaded
    vectors = models[quantize].encode(SENTENCES)
    assert vectors.dtype == np.float32 and vectors.shape == (len(SENTENCES), 384)
    error = np.abs(vectors - pooled(references[quantize].truth)).max()
    # Components of a unit vector of 384 are about 0.05; bfloat16 hidden states (2e-2 of theirs at most) average out
    # in the mean.
    exact = 1e-4 if quantize else 1e-6  # NF4_RULE: two scale bytes make 4e-5
    # fast: 8e-3 a layer (tests/kernels), 24 layers one behind the other: 4e-2 of 0.05, of which the largest of 19,200
    # is five deviations and more: 1e-2, and short sentences average over few tokens.
    assert error < {"float32": exact, "high": 1e-3, "fast": 2e-2}[precision], error
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6

    plain = models[quantize].encode(SENTENCES[:3], normalize=False, batch_size=2)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).min() > 1e-3
    np.testing.assert_allclose(plain / np.linalg.norm(plain, axis=1, keepdims=True), vectors[:3], atol=1e-6)


def test_nf4_against_float(
    loaded: tuple[dict[str, Any], str],
    references: dict[str, reference.Reference],
    report: Callable[[str], None],
) -> None:
    """How far NF4 turns an embedding is bitsandbytes' doing, not ours: the cosines are the same."""
    models, precision = loaded
    expected = (pooled(references[""].truth) * pooled(references["nf4"].truth)).sum(1)
    floats, nf4 = (models[quantize].encode(SENTENCES).astype(np.float64) for quantize in ("", "nf4"))
    cosines = (floats * nf4).sum(1) / np.linalg.norm(floats, axis=1) / np.linalg.norm(nf4, axis=1)
    report(
        f"MiniLM {precision}: cosine of NF4 and float embeddings, 50 sentences: mean {cosines.mean():.5f}, least "
        f"{cosines.min():.5f}; bitsandbytes: {expected.mean():.5f}, {expected.min():.5f}"
    )
    assert len(cosines) == 50
    assert 0.95 < expected.mean() < 0.995
    assert np.abs(cosines - expected).max() < {"float32": 2e-5, "high": 5e-4, "fast": 1e-2}[precision]


def test_a_long_text_is_cut(loaded: tuple[dict[str, Any], str], page: str) -> None:
    """At max_seq_length 256 of sentence_bert_config.json, special tokens included."""
    models, _ = loaded
    tokenizer = Tokenizer.from_file(str(packages.minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(256)
    kept = tokenizer.encode(page).ids
    assert len(kept) == 256
    expected = pooled([models[""].hidden_states([kept])[0]])
    np.testing.assert_allclose(models[""].encode([page]), expected, atol=2e-3 if loaded[1] == "fast" else 1e-5)
