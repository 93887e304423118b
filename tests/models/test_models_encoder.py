"""Hidden states of encoders under padding masks and token types, against transformers in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import halfbyte
from oracle.cases import random_ids
from oracle.reference import Reference

if TYPE_CHECKING:
    from oracle.cases import Engines, References

LENGTHS = (1, 17, 40, 12)
LONGEST = max(LENGTHS)


def padded(side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, mask and token types [batch, tokens]; what stands under the mask's zeros must not matter."""
    ids = np.array([random_ids(LONGEST, 50 + i) for i in range(len(LENGTHS))])
    mask = np.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, LONGEST - length :] = side == "left"
        mask[row, :length] |= side == "right"
    types = np.random.default_rng(3).integers(0, 2, ids.shape)
    return ids, mask, types


@torch.inference_mode()
def masked_hidden(model: Any, batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """[tokens where mask is 1, hidden]"""
    ids, mask, types = batch
    base = getattr(model, "base_model", model)
    out = base(
        input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), token_type_ids=torch.from_numpy(types)
    )
    return out.last_hidden_state.double().numpy()[mask == 1]


@pytest.mark.parametrize("precision", ("float32", "high", "fast"))
@pytest.mark.parametrize("side", ("right", "left"))
@pytest.mark.parametrize("name", ("bert", "bert/nf4-dq", "bert_blocks/Q8_0.gguf", "bert_types3"))
def test_padding_and_token_types(
    name: str, side: str, precision: str, engines: Engines, references: References
) -> None:
    batch = ids, mask, types = padded(side)
    reference = Reference(references.model(name), [batch], masked_hidden)
    model = engines.get(name, precision)
    values = model.hidden_states(ids, mask, token_type_ids=types)
    assert values.dtype == np.float32 and values.shape[:2] == ids.shape
    reference.check([values[mask == 1]], precision)
    assert not values[mask == 0].any()

    other = np.where(mask == 1, ids, random_ids(1, 99)[0])
    np.testing.assert_array_equal(model.hidden_states(other, mask, token_type_ids=types), values)


def test_token_types_matter(engines: Engines) -> None:
    model = engines.get("bert_types3", "float32")
    ids = [random_ids(7, 1)]
    plain = model.hidden_states(ids)
    np.testing.assert_array_equal(model.hidden_states(ids, token_type_ids=[[0] * 7]), plain)
    seen = [model.hidden_states(ids, token_type_ids=[[kind] * 7]) for kind in range(3)]
    assert all(np.abs(seen[i] - seen[j]).max() > 0.1 for i in range(3) for j in range(i))


def test_token_types_are_checked(engines: Engines) -> None:
    with pytest.raises(halfbyte.InvalidArgumentError, match="2"):
        engines.get("bert").hidden_states([[1, 2, 3]], token_type_ids=[[0, 1, 2]])
    with pytest.raises(halfbyte.InvalidArgumentError, match="token"):
        engines.get("llama").hidden_states([[1, 2, 3]], token_type_ids=[[0, 1, 1]])


@pytest.mark.parametrize("pooling", ("mean", "cls", "max", "last"))
def test_pooling(pooling: str, engines: Engines) -> None:
    """Of what hidden_states gives. A folder without a tokenizer can't be given text, so the engine is asked."""
    model = engines.get("bert", "float32")
    sequences = [random_ids(length, length) for length in LENGTHS]
    tokens = np.concatenate([np.array(ids, dtype=np.int32) for ids in sequences])
    lengths = np.array(LENGTHS, dtype=np.int64)
    for normalize in (False, True):
        vectors = model._engine.embed(tokens, lengths, None, pooling, normalize, None)
        for vector, ids in zip(vectors, sequences, strict=True):
            rows = model.hidden_states([ids])[0].astype(np.float64)
            expected = {"mean": rows.mean(0), "cls": rows[0], "max": rows.max(0), "last": rows[-1]}[pooling]
            if normalize:
                expected /= np.linalg.norm(expected)
            # One float32 rounding per addition of at most 40 rows: 40 x 2^-24 of the largest partial sum.
            np.testing.assert_allclose(vector, expected, rtol=0, atol=40 * 2.0**-24 * np.abs(rows).max())
