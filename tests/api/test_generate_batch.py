"""generate_batch: what generate() would write for each prompt alone."""

from __future__ import annotations

import pytest

import halfbyte
from oracle import packages

PROMPTS = ["The capital of France is", "Once upon a time", "Gravity"]


@pytest.fixture(scope="module")
def model():
    with halfbyte.load(packages.smollm2(), precision="float32") as model:
        yield model


def test_each_text_is_the_one_of_its_prompt_alone(model):
    texts = model.generate_batch(PROMPTS, max_tokens=12)
    assert texts == [model.generate(prompt, max_tokens=12) for prompt in PROMPTS]
    assert all(texts)


def test_sampling_and_stop_strings(model):
    options = {"max_tokens": 16, "temperature": 0.8, "top_k": 50, "seed": 3, "stop": [" the", "."]}
    texts = model.generate_batch(PROMPTS, **options)
    assert texts == [model.generate(prompt, **options) for prompt in PROMPTS]
    assert not any(" the" in text or "." in text for text in texts)


def test_ids_and_ends_at_different_times(model):
    prompts = [model.tokenizer.encode(prompt) for prompt in PROMPTS]
    batch = model.generate_tokens_batch(prompts, max_tokens=9)
    assert batch == [model.generate_tokens(prompt, max_tokens=9) for prompt in prompts]
    assert model.generate_tokens_batch(prompts, max_tokens=1) == [tokens[:1] for tokens in batch]
    assert model.generate_batch([]) == []


def test_what_is_refused(model):
    with pytest.raises(halfbyte.InvalidArgumentError, match="max_tokens must be 1 or more"):
        model.generate_batch(PROMPTS, max_tokens=0)
    with pytest.raises(halfbyte.InvalidArgumentError, match="a list of 3, one for each sequence, got 1"):
        model.generate_batch(PROMPTS, adapter=["x"])
    with pytest.raises(halfbyte.InvalidArgumentError, match="the prompt is empty"):
        model.generate_batch([[1, 2], []])
    with pytest.raises(halfbyte.InvalidArgumentError, match="use generate_batch"):
        model.generate_tokens_batch([[1]], stop="x")
