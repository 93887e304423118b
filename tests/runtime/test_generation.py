"""Generation: prompts in chunks, sampling, stops, streamed text. The oracle is transformers."""

import numpy as np
import pytest
import torch
import transformers
from engines import POSITIONS, VOCAB, finish, lengths, load, random_tokens, start

from halfbyte import _core


def reference_greedy(
    model: transformers.LlamaForCausalLM, prompt: list[int], count: int, **options: object
) -> list[int]:
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, use_cache=True, **options)
    return out[0, len(prompt) :].tolist()


# --- generation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt", [[5], [1, 2, 3, 4, 5, 6, 7], random_tokens(511).tolist(), random_tokens(1100).tolist()]
)
def test_greedy_equals_transformers(engine, llama, prompt):
    # 511 and 1100: two chunks, the second nearly full; five.
    assert finish(start(engine, prompt)) == reference_greedy(llama[1], prompt, 20)


def test_repetition_penalty_equals_transformers(engine, llama):
    prompt = random_tokens(30, seed=3).tolist()
    found = finish(start(engine, prompt, repetition_penalty=1.25, max_tokens=40))
    assert found == reference_greedy(llama[1], prompt, 40, repetition_penalty=1.25)


def test_a_cache_that_grows_changes_nothing(engine, llama):
    # 10 + 256 tokens fit in the first; then it doubles. Every token is the greatest logit after those before it.
    prompt = list(range(10))
    found = finish(start(engine, prompt, max_tokens=600))
    with torch.inference_mode():
        logits = llama[1](torch.tensor([prompt + found])).logits[0].numpy()
    assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == found


def test_sampling_draws_from_the_logits_of_the_whole_sequence(engine):
    prompt = [3, 1, 4, 1, 5]
    options = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "seed": 42}
    found = finish(start(engine, prompt, presence_penalty=0.2, frequency_penalty=0.1, **options))
    sampler = _core.Sampler(presence_penalty=0.2, frequency_penalty=0.1, **options)
    sampler.observe_prompt(np.array(prompt, np.int32))
    expected: list[int] = []
    for _ in range(20):
        tokens = np.array(prompt + expected, np.int32)
        expected.append(sampler.sample(engine.logits(tokens, lengths(len(tokens)), None)[-1]))
    assert found == expected
    assert found == finish(start(engine, prompt, presence_penalty=0.2, frequency_penalty=0.1, **options))


def test_a_step_is_one_chunk_or_one_token(engine):
    generation = start(engine, random_tokens(1100).tolist(), max_tokens=3)
    counts = []
    while generation.step():
        counts.append(len(generation.tokens))
    assert counts == [0, 0, 0, 0, 1, 2, 3]
    assert generation.finish_reason == "length"
    assert generation.step() is False
    assert generation.piece == ""


def test_stop_tokens_are_not_part_of_the_output(engine):
    whole = finish(start(engine, [7, 8]))
    generation = start(engine, [7, 8], stop_tokens=[10**6, whole[4]])
    assert finish(generation) == whole[: whole.index(whole[4])]
    assert generation.finish_reason == "stop"


def test_it_stops_where_the_context_is_full(engine):
    prompt = random_tokens(POSITIONS - 2).tolist()
    generation = start(engine, prompt, max_tokens=2**62)
    assert len(finish(generation)) == 3  # two places, and one token that needs none
    assert generation.finish_reason == "length"
    assert len(finish(start(engine, random_tokens(POSITIONS).tolist()))) == 1


def test_an_abandoned_generation_leaves_no_trace(engine):
    expected = finish(start(engine, [1, 2, 3]))
    for steps in range(3):
        generation = start(engine, [9] * 600)
        for _ in range(steps):
            generation.step()
        del generation
    assert finish(start(engine, [1, 2, 3])) == expected


def test_a_generation_outlives_its_engine(llama):
    alone = load(llama[0])
    generation = start(alone, [1, 2, 3])
    expected = finish(start(alone, [1, 2, 3]))
    del alone
    assert finish(generation) == expected


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def speaking(llama) -> _core.Engine:
    """Every token shows one byte of a text full of long characters, so that characters straddle tokens."""
    engine = load(llama[0])
    text = "né€😀x\n日本".encode()
    engine.set_vocabulary([text[t % len(text) :][:1] if t % 7 else b"" for t in range(VOCAB)])
    return engine


def shown_by(engine: _core.Engine, tokens: list[int]) -> bytes:
    text = "né€😀x\n日本".encode()
    return b"".join(text[t % len(text) :][:1] if t % 7 else b"" for t in tokens)


def pieces(generation: _core.Generation) -> list[str]:
    out = []
    while generation.step():
        out.append(generation.piece)
    return out


def test_pieces_join_to_the_decoded_bytes(speaking):
    for seed in range(10):
        generation = start(speaking, [1, 2], temperature=3.0, seed=seed, max_tokens=60)
        text = "".join(pieces(generation))
        assert text == shown_by(speaking, generation.tokens).decode("utf-8", errors="replace")


def test_stop_strings_cut_the_text(speaking):
    for seed in range(10):
        whole = start(speaking, [1, 2], temperature=3.0, seed=seed, max_tokens=60)
        text = "".join(pieces(whole))
        stop = text[20:22]
        generation = start(speaking, [1, 2], temperature=3.0, seed=seed, max_tokens=60, stop=["never", stop])
        assert "".join(pieces(generation)) == text[: text.index(stop)]
        assert generation.finish_reason == "stop"
        assert generation.tokens == whole.tokens[: len(generation.tokens)]
        assert len(generation.tokens) < 60


def test_without_a_vocabulary_there_is_no_text(engine):
    assert set(pieces(start(engine, [1, 2]))) == {""}
    with pytest.raises(_core.InvalidArgumentError, match="set the vocabulary first"):
        start(engine, [1, 2], stop=["x"])


def test_a_running_generation_keeps_its_vocabulary(speaking):
    generation = start(speaking, [1, 2], max_tokens=30)
    speaking.set_vocabulary([b"?"] * VOCAB)
    text = "".join(pieces(generation))
    assert text == shown_by(speaking, generation.tokens).decode("utf-8", errors="replace")
