"""SmolLM2-135M-Instruct from its GGUF file, with the file's values and rounded to NF4, against transformers in float64.

Greedy text is checked by one float64 run over prompt and continuation: every token must be the argmax after those
before it, which makes the whole the greedy continuation by induction.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch

import halfbyte
from oracle import gguf_files, packages, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

# Among thirty candidates, those where the float64 network decides every one of 24 tokens most clearly, under both sets
# of weights: the second logit is at least 0.069 below the first (logits have a standard deviation of about 3).
PROMPTS = (
    "The capital city of France is",
    "The human heart pumps blood",
    "Photosynthesis is the process by which",
    "def fibonacci(n):\n",
    "The sun rises in the",
)
TOKENS = 24
LEAST_GAP = 0.06


class Truth:
    """The float64 network, its answers kept."""

    def __init__(self, model: Any) -> None:
        self.model = reference.double(model)
        self._logits: dict[tuple[int, ...], NDArray[np.float64]] = {}

    def logits(self, ids: list[int]) -> NDArray[np.float64]:
        key = tuple(ids)
        if key not in self._logits:
            self._logits[key] = reference.logits(self.model, ids)
        return self._logits[key]


@pytest.fixture(scope="module", autouse=True)
def all_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def truths() -> dict[str, Truth]:
    path = packages.smollm2()
    reader = gguf.GGUFReader(path)
    config = gguf_files.read_llama_config(reader)
    native = reference.build("LlamaForCausalLM", config, gguf_files.read_weights(reader, config))
    return {"": Truth(native), "nf4": Truth(reference.round_linears(native, "nf4"))}


@pytest.fixture(
    scope="module", params=[("", "float32"), ("", "high"), ("nf4", "float32"), ("nf4", "high")], ids="-".join
)
def loaded(request: pytest.FixtureRequest) -> Iterator[tuple[Any, str, str]]:
    quantize, precision = request.param
    with halfbyte.load(packages.smollm2(), quantize=quantize or None, precision=precision) as model:
        yield model, quantize, precision


def perplexity(logits: NDArray[Any], ids: list[int]) -> float:
    scores = logits[:-1].astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    log_probabilities = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    return math.exp(-log_probabilities[np.arange(len(ids) - 1), ids[1:]].mean())


def test_greedy_continuations(
    loaded: tuple[Any, str, str], truths: dict[str, Truth], report: Callable[[str], None]
) -> None:
    model, quantize, precision = loaded
    gaps = []
    for prompt in PROMPTS:
        ids = model.tokenizer.encode(prompt)
        tokens = model.generate_tokens(prompt, max_tokens=TOKENS)
        assert len(tokens) == TOKENS
        logits = truths[quantize].logits(ids + tokens[:-1])[len(ids) - 1 :]
        gap = reference.top_gap(logits)
        for step, (token, best) in enumerate(zip(tokens, logits.argmax(-1), strict=True)):
            assert token == best, (
                f"{prompt!r}, token {step}: {token}, expected {best}, which is {gap[step]:.3f} above the second"
            )
        gaps.append(float(gap.min()))
        assert gaps[-1] > LEAST_GAP, f"{prompt!r}: decided by {gaps[-1]}, too close to prove anything"
        if "France" in prompt:
            assert "Paris" in model.generate(prompt, max_tokens=8)
    report(
        f"SmolLM2 {quantize or 'native'} {precision}: {len(PROMPTS)} x {TOKENS} tokens equal, least gap {min(gaps):.3f}"
    )


def test_perplexity(
    loaded: tuple[Any, str, str], truths: dict[str, Truth], page: str, report: Callable[[str], None]
) -> None:
    model, quantize, precision = loaded
    ids = model.tokenizer.encode(page)
    assert len(ids) > 400
    expected = perplexity(truths[quantize].logits(ids), ids)
    value = perplexity(model.logits([ids])[0], ids)
    report(f"SmolLM2 {quantize or 'native'} {precision}: perplexity {value:.5f}, float64 {expected:.5f}")
    # transformers in float32 is within 4e-7 of float64 on this page; 16-bit floating point within 1e-3.
    assert value == pytest.approx(expected, rel={"float32": 1e-5, "high": 1e-3}[precision])
    assert 20 < value < 40  # English that the model can read, after either rounding


def test_nf4_costs_what_it_costs(truths: dict[str, Truth], page: str) -> None:
    """Of the reference itself: rounding this model a second time raises its perplexity, but not beyond a half."""
    with halfbyte.load(packages.smollm2(), precision="high") as model:
        ids = model.tokenizer.encode(page)
    native, nf4 = (perplexity(truths[quantize].logits(ids), ids) for quantize in ("", "nf4"))
    assert 1.05 < nf4 / native < 1.5


def test_a_ragged_batch(loaded: tuple[Any, str, str], truths: dict[str, Truth]) -> None:
    """Prompts of several lengths in one call: the same next tokens as in float64."""
    model, quantize, _ = loaded
    batch = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    logits = model.logits(batch)
    for row, ids in zip(logits, batch, strict=True):
        assert row[len(ids) - 1].argmax() == truths[quantize].logits(ids)[-1].argmax()


def test_a_decoded_token_costs_at_most_six_parallel_regions_a_layer() -> None:
    """QKV, attention, output, gate and up, down: a fork and a join cost more than what else there is to share."""
    with halfbyte.load(packages.smollm2(), threads=2) as model:
        engine = model._engine
        stream = engine.generate(np.arange(1, 200, dtype=np.int32), 8, 0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, [], [], None)
        stream.step()  # the prompt
        before = engine.parallel_regions
        for _ in range(4):
            stream.step()
        regions = (engine.parallel_regions - before) / 4
        layers = engine.info()["layers"]
        assert 4 * layers <= regions <= 6 * layers + 1  # 1: the output layer
