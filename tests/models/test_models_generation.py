"""Greedy generation token for token against the float64 network, through KV caches, windows and chunks of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from oracle import reference
from oracle.cases import random_ids
from oracle.vocabulary import bpe_tokenizer

if TYPE_CHECKING:
    from oracle.cases import Engines, References

STEPS = 24
CANDIDATES = 32

NAMES = [
    "llama",
    "llama_tied",
    "llama_rope3",
    "mistral",
    "mistral/nf4",
    "gpt2",
    "gpt2_scaled",
    "llama/nf4-dq",
    "llama/fp4",
    "gpt2/nf4",
    "llama_blocks/Q4_1.gguf",
    "gpt2_blocks/Q4_0.gguf",
]


@torch.inference_mode()
def greedy(model64: Any, prompts: torch.Tensor) -> torch.Tensor:
    """[batch, STEPS]"""
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": STEPS}
    return model64.generate(prompts, **options)[:, prompts.shape[1] :]


def clear_chain(model64: Any, length: int) -> tuple[list[int], list[int], float]:
    """(prompt, continuation, least gap between the greatest and the second logit) of the fixed candidate whose greedy
    continuation is decided most clearly. Continuations that end the text or repeat themselves are passed over."""
    prompts = torch.tensor([random_ids(length, 1000 + i) for i in range(CANDIDATES)])
    continuations = greedy(model64, prompts)
    best: tuple[list[int], list[int], float] = ([], [], 0.0)
    for prompt, continuation in zip(prompts.tolist(), continuations.tolist(), strict=True):
        if 0 in continuation or len(set(continuation)) < STEPS // 4:
            continue
        logits = reference.logits(model64, prompt + continuation[:-1])[length - 1 :]  # without a cache
        gap = float(reference.top_gap(logits).min())
        if logits.argmax(-1).tolist() == continuation and gap > best[2]:
            best = (prompt, continuation, gap)
    return best


_CHAINS: dict[tuple[str, int], tuple[list[int], list[int], float]] = {}


@pytest.mark.parametrize("precision", ("high", "float32"))
@pytest.mark.parametrize("length", (1, 20, 67))
@pytest.mark.parametrize("name", NAMES)
def test_greedy(name: str, length: int, precision: str, engines: Engines, references: References) -> None:
    ref = references.get(name)
    if (name, length) not in _CHAINS:
        _CHAINS[name, length] = clear_chain(ref.model64, length)
    prompt, continuation, gap = _CHAINS[name, length]
    # The gap between two logits moves by the difference of two errors, sqrt(2) x rms: three times the rms of the whole
    # tolerance of "high" is beyond that even if an implementation were as bad as it may be.
    assert gap > 3 * ref.reference_error("high").rms, f"no clear chain among the candidates: {gap}"

    model = engines.get(name, precision)
    assert model.generate_tokens(prompt, max_tokens=STEPS) == continuation

    # The cached steps see what a full recomputation sees.
    again = model.logits([prompt + continuation[:-1]])[0, length - 1 :]
    assert again.argmax(-1).tolist() == continuation


@pytest.mark.parametrize("kv_cache", ("f32", "f16", "bf16", "int8"))
@pytest.mark.parametrize("length", (20, 67))
@pytest.mark.parametrize("name", ("llama", "gpt2"))
def test_greedy_by_cache(name: str, length: int, kv_cache: str, engines: Engines, references: References) -> None:
    ref = references.get(name)
    if (name, length) not in _CHAINS:
        _CHAINS[name, length] = clear_chain(ref.model64, length)
    prompt, continuation, gap = _CHAINS[name, length]
    # reference_error("high") is that of bfloat16, which rounds all by 2^-9 / sqrt(3) = 1.1e-3 (root mean square).
    # int8 rounds keys and values alone, in steps of greatest / 127: with a greatest of 2 to 2.6 sigma, as heads of
    # 16 to 64 normal numbers have, that is 2.6 / (127 sqrt(12)) = 5.9e-3 sigma: at most six times as much.
    assert gap > (3 if kv_cache != "int8" else 6) * ref.reference_error("high").rms
    model = engines.get(name, "high", kv_cache=kv_cache)
    assert model.info["kv_cache"] == {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "int8": "int8"}[kv_cache]
    assert model.generate_tokens(prompt, max_tokens=STEPS) == continuation


@pytest.mark.parametrize("name", ("llama", "gpt2/nf4"))
def test_streams_do_not_share_state(name: str, engines: Engines, references: References) -> None:
    """Two generations of one model, interleaved, say what each says alone."""
    model = engines.get(name, "float32")
    prompts = [random_ids(13, 70), random_ids(5, 71)]
    alone = [model.generate_tokens(prompt, max_tokens=12) for prompt in prompts]
    streams = [model.generate_tokens(prompt, max_tokens=12, stream=True) for prompt in prompts]
    together: list[list[int]] = [[], []]
    for _ in range(12):
        for out, stream in zip(together, streams, strict=True):
            out.extend(token for token in [next(stream, None)] if token is not None)
    assert together == alone


@pytest.mark.parametrize("name", ("llama", "gpt2"))
def test_the_end_of_the_context(name: str, engines: Engines) -> None:
    """256 positions: a prompt of 250 leaves room for 6 positions more, and so for at most 7 tokens."""
    model = engines.get(name, "high")
    tokens = model.generate_tokens(random_ids(250, 3), max_tokens=100)
    assert len(tokens) in (6, 7) or (len(tokens) < 6)
    assert all(0 < token < 517 for token in tokens)


def test_text_of_generated_tokens(engines: Engines, references: References) -> None:
    """The text of a generation is the tokenizer's text of its tokens."""
    model = engines.get("llama", "high")
    prompt = random_ids(20, 8)
    tokens = model.generate_tokens(prompt, max_tokens=16)
    assert tokens
    expected = bpe_tokenizer().decode(tokens)
    assert model.generate(prompt, max_tokens=16) == expected
    assert "".join(model.generate(prompt, max_tokens=16, stream=True)) == expected
    assert np.isfinite(model.logits([tokens])).all()
