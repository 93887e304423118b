"""Numbers out of models: logits, hidden_states, encode; against transformers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import halfbyte
from halfbyte.errors import InvalidArgumentError

SENTENCES = [
    "A cat sits on the mat.",
    "A dog runs in the park, and the children run behind it.",
    "",
    "Quantised weights take half a byte each.",
    "word " * 400,  # longer than max_seq_length
    "日本語 😀",
]


@pytest.fixture(scope="module")
def bert(tiny_bert: Path) -> Iterator[halfbyte.Model]:
    with halfbyte.load(tiny_bert, precision="float32") as model:
        yield model


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> Iterator[halfbyte.Model]:
    with halfbyte.load(tiny_llama, precision="float32") as model:
        yield model


def assert_rounding(value: NDArray[np.float32], exact: NDArray[Any], same_dtype: NDArray[Any]) -> None:
    """At most twice the error of transformers in float32, both against float64 (with a floor of a few roundings)."""
    assert value.dtype == np.float32
    assert value.shape == exact.shape
    floor = 4 * float(np.finfo(np.float32).eps) * float(np.abs(exact).max())
    allowed = max(2 * float(np.abs(same_dtype - exact).max()), floor)
    assert float(np.abs(value - exact).max()) <= allowed


def test_logits_of_lists_that_differ_in_length(llama: halfbyte.Model, tiny_llama: Path) -> None:
    lists = [[5, 6, 7, 8], [9], [10, 11]]
    value = llama.logits(lists)
    assert value.shape == (3, 4, llama.info["vocab_size"])
    for i, ids in enumerate(lists):
        exact, same = (
            AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=d)(torch.tensor([ids])).logits[0].detach().numpy()
            for d in (torch.float64, torch.float32)
        )
        assert_rounding(value[i, : len(ids)], exact, same)
        assert not value[i, len(ids) :].any()


def test_logits_of_arrays(llama: halfbyte.Model) -> None:
    ids = np.array([[5, 6], [7, 8]])
    np.testing.assert_array_equal(llama.logits(ids), llama.logits(ids.tolist()))
    assert llama.logits([]).shape[0] == 0


@pytest.mark.parametrize("lists", ["text", [1, 2], [["a"]], [[1.5]], 3, [[-1]], [[10**6]], [[1, [2]]]])
def test_logits_errors(llama: halfbyte.Model, lists: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        llama.logits(lists)


def states(folder: Path, **inputs: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """transformers' hidden states in float64 and float32."""
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
    exact, same = (
        AutoModel.from_pretrained(folder, dtype=d)(**tensors).last_hidden_state.detach().numpy()
        for d in (torch.float64, torch.float32)
    )
    return exact, same


IDS = np.array([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])


@pytest.mark.parametrize(
    "mask",
    [
        [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
        [[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 0, 1, 1]],
    ],
)
@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float32])
def test_hidden_states_with_a_mask(bert: halfbyte.Model, tiny_bert: Path, mask: list[list[int]], dtype: Any) -> None:
    keep = np.array(mask, dtype=bool)
    types = (IDS % 2).astype(np.int64)
    value = bert.hidden_states(IDS, np.array(mask, dtype=dtype), types)
    exact, same = states(tiny_bert, input_ids=IDS, attention_mask=keep.astype(np.int64), token_type_ids=types)
    assert value.shape == exact.shape
    assert_rounding(value[keep], exact[keep], same[keep])
    assert not value[~keep].any()


def test_hidden_states_without_a_mask(bert: halfbyte.Model, tiny_bert: Path) -> None:
    exact, same = states(tiny_bert, input_ids=IDS)
    assert_rounding(bert.hidden_states(IDS), exact, same)
    ragged = bert.hidden_states([IDS[0].tolist(), IDS[1, :2].tolist()])
    np.testing.assert_array_equal(ragged[1, :2], bert.hidden_states(IDS[1:2, :2])[0])
    assert not ragged[1, 2:].any()


def test_hidden_states_of_a_decoder(llama: halfbyte.Model, tiny_llama: Path) -> None:
    mask = np.array([[0, 0, 1, 1, 1]])
    exact, same = states(tiny_llama, input_ids=IDS[:1], attention_mask=mask, position_ids=np.arange(5)[None])
    assert_rounding(llama.hidden_states(IDS[:1], mask)[:, 2:], exact[:, 2:], same[:, 2:])


def test_hidden_states_errors(bert: halfbyte.Model) -> None:
    with pytest.raises(InvalidArgumentError, match="attention_mask"):
        bert.hidden_states(IDS, np.ones((3, 4)))
    with pytest.raises(InvalidArgumentError, match="attention_mask"):
        bert.hidden_states([[1, 2], [3]], np.ones((2, 2)))
    with pytest.raises(InvalidArgumentError, match="0 and 1"):
        bert.hidden_states(IDS, np.full((3, 5), 2))
    with pytest.raises(InvalidArgumentError, match="token_type_ids"):
        bert.hidden_states(IDS, None, IDS[:, :4])


# ---- encode


@functools.cache
def token_vectors(folder: Path, dtype: torch.dtype) -> list[torch.Tensor]:
    """MiniLM's hidden states [tokens, hidden] of every sentence."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=dtype)
    batches = (tokenizer(s, truncation=True, max_length=256, return_tensors="pt") for s in SENTENCES)
    with torch.no_grad():
        return [model(**batch).last_hidden_state[0] for batch in batches]


def sentence_vectors(folder: Path, dtype: torch.dtype, normalize: bool = True, mode: str = "mean") -> NDArray[Any]:
    """What sentence-transformers computes for MiniLM."""
    rows = []
    for tokens in token_vectors(folder, dtype):
        pooled = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.max(0).values, "last": tokens[-1]}[mode]
        rows.append((pooled / pooled.norm() if normalize else pooled).numpy())
    return np.stack(rows)


def test_minilm_vectors(minilm: halfbyte.Model, minilm_path: Path) -> None:
    value = minilm.encode(SENTENCES)
    exact = sentence_vectors(minilm_path, torch.float64)
    assert value.shape == (len(SENTENCES), 384)
    np.testing.assert_allclose(np.linalg.norm(value, axis=1), 1, rtol=1e-6)
    # precision "high" is better than 16-bit floats: bfloat16 alone would be 2**-9 off
    assert np.abs(value - exact).max() < 2**-9 * np.abs(exact).max()


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "last"])
def test_pooling_and_normalisation(minilm_path: Path, mode: str) -> None:
    with halfbyte.load(minilm_path, precision="float32") as model:
        value = model.encode(SENTENCES, normalize=False, pooling=mode)
    exact, same = (sentence_vectors(minilm_path, d, False, mode) for d in (torch.float64, torch.float32))
    assert_rounding(value, exact, same)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_keep_the_order(minilm: halfbyte.Model, batch_size: int) -> None:
    seen: list[float] = []
    value = minilm.encode(SENTENCES, batch_size=batch_size, progress=seen.append)
    np.testing.assert_allclose(value, minilm.encode(SENTENCES), atol=1e-3)
    assert seen[-1] == 1.0
    assert len(seen) == -(-len(SENTENCES) // batch_size)


def test_one_sentence_and_none(minilm: halfbyte.Model) -> None:
    single = minilm.encode("A cat sits on the mat.")
    assert single.shape == (384,)
    np.testing.assert_allclose(single, minilm.encode(SENTENCES[:1])[0])
    assert minilm.encode([]).shape == (0, 384)


def test_encode_errors(minilm: halfbyte.Model) -> None:
    with pytest.raises(InvalidArgumentError, match="expected texts, got int"):
        minilm.encode([3])  # type: ignore[list-item]
    with pytest.raises(InvalidArgumentError, match="pooling"):
        minilm.encode(["a"], pooling="median")
    with pytest.raises(InvalidArgumentError, match="batch_size"):
        minilm.encode(["a"], batch_size=0)
