"""The sampler against the logits processors of transformers, run in float64."""

import itertools

import numpy as np
import pytest
import torch
import transformers

from halfbyte import _core

VOCAB = 1009


def f32(value: float) -> float:
    """The float32 that the sampler will see, so that both sides filter by the same number."""
    return float(np.float32(value))


def reference(
    logits: np.ndarray,
    *,
    prompt: list[int] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
) -> np.ndarray:
    ids = torch.tensor([prompt or []], dtype=torch.int64)
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    processors = transformers.LogitsProcessorList()
    if repetition_penalty != 1:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature != 1:
        processors.append(transformers.TemperatureLogitsWarper(temperature))
    if top_k:
        processors.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(transformers.TopPLogitsWarper(top_p))
    if min_p:
        processors.append(transformers.MinPLogitsWarper(min_p))
    return torch.softmax(processors(ids, scores), dim=-1)[0].numpy()


def random_logits(seed: int, scale: float = 4.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * scale).astype(np.float32)


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    list(itertools.product([1.0, 0.7, 1.9], [0, 1, 40, VOCAB, 5000], [1.0, 0.95, 0.3, 1e-6], [0.0, 0.05, 0.9])),
)
def test_probabilities_equal_transformers(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    options = {"temperature": f32(temperature), "top_k": top_k, "top_p": f32(top_p), "min_p": f32(min_p)}
    for seed in range(3):
        logits = random_logits(seed)
        found = _core.Sampler(**options).probabilities(logits)
        # Both sides in float64: an exponent of up to 40 carries 40 * 2^-53 relative error into exp.
        np.testing.assert_allclose(found, reference(logits, **options), rtol=1e-13, atol=0)


@pytest.mark.parametrize("penalty", [0.5, 1.1, 3.0])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    logits = random_logits(3)
    prompt = np.random.default_rng(1).integers(0, VOCAB, 300)
    sampler = _core.Sampler(temperature=1.0, repetition_penalty=f32(penalty))
    sampler.observe_prompt(prompt.astype(np.int32))
    expected = reference(logits, prompt=prompt.tolist(), repetition_penalty=f32(penalty))
    # Logits are float32: the product is rounded once, at most half a unit in the last place of the greatest.
    rtol = 3 * float(np.spacing(np.abs(logits).max() * np.float32(max(penalty, 1 / penalty))))
    np.testing.assert_allclose(sampler.probabilities(logits), expected, rtol=rtol)


def test_presence_and_frequency_penalties_count_generated_tokens_alone() -> None:
    sampler = _core.Sampler(presence_penalty=0.5, frequency_penalty=0.25)
    logits = np.array([3.0, 2.9, 2.0, 0.0], np.float32)
    sampler.observe_prompt(np.array([0, 0, 0], np.int32))
    # Greedy on 3, 2.9, 2.0; each choice costs its token 0.5 once and 0.25 a time.
    assert [sampler.sample(logits) for _ in range(9)] == [0, 1, 0, 1, 0, 2, 1, 0, 1]


def test_generated_tokens_count_for_the_repetition_penalty() -> None:
    sampler = _core.Sampler(repetition_penalty=4.0)
    logits = np.array([4.0, 2.0, -1.0, -9.0], np.float32)
    assert [sampler.sample(logits) for _ in range(3)] == [0, 1, 0]


def test_greedy_takes_the_lowest_id_of_a_tie_and_ignores_filters() -> None:
    logits = np.array([0.0, 5.0, 5.0, 1.0], np.float32)
    assert _core.Sampler().sample(logits) == 1
    assert _core.Sampler(top_k=1, top_p=0.01, min_p=0.99).sample(logits) == 1
    assert _core.Sampler().probabilities(logits).tolist() == [0, 1, 0, 0]


def test_top_k_keeps_ties_of_the_last_one() -> None:
    logits = np.array([1.0, 3.0, 1.0, 0.0], np.float32)
    found = _core.Sampler(temperature=1.0, top_k=2).probabilities(logits)
    np.testing.assert_allclose(found, reference(logits, top_k=2), rtol=1e-14)
    assert np.count_nonzero(found) == 3


def test_masked_logits_have_no_chance() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 1.0], np.float32)
    for options in ({}, {"top_p": 0.9}, {"top_k": 3}, {"min_p": 0.01}):
        sampler = _core.Sampler(temperature=1.0, **options)
        assert {sampler.sample(logits) for _ in range(200)} <= {1, 3}
        assert sampler.probabilities(logits)[[0, 2]].tolist() == [0, 0]


@pytest.mark.parametrize("temperature", [1e-30, 1e-4, 1e30])
def test_extreme_temperatures_do_not_overflow(temperature: float) -> None:
    logits = np.array([1e4, 3e38, -3e38, 0.0], np.float32)
    found = _core.Sampler(temperature=temperature).probabilities(logits)
    assert np.isfinite(found).all()
    assert found.argmax() == 1
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize("options", [{}, {"top_k": 7}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_draws_follow_the_distribution(options: dict[str, float]) -> None:
    logits = (np.random.default_rng(5).standard_normal(23) * 1.5).astype(np.float32)
    expected = _core.Sampler(temperature=1.0, **options).probabilities(logits)
    sampler = _core.Sampler(temperature=1.0, seed=11, **options)
    draws = 20_000
    counts = np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=23)
    assert counts[expected == 0].sum() == 0
    # Five standard deviations of each binomial count; the seed is fixed.
    deviation = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) <= 5 * deviation + 1e-9).all()


def test_the_same_seed_gives_the_same_tokens_everywhere() -> None:
    logits = random_logits(0, scale=2.0)
    first, second, other = (_core.Sampler(temperature=0.8, seed=seed) for seed in (7, 7, 8))
    drawn = [first.sample(logits) for _ in range(50)]
    assert drawn == [second.sample(logits) for _ in range(50)]
    assert drawn != [other.sample(logits) for _ in range(50)]


def test_the_generator_is_splitmix64() -> None:
    # Two tokens of equal weight: a draw is the top bit of the generator, here written again from its paper.
    def bits(seed: int) -> int:
        mask = 2**64 - 1
        z = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) >> 63

    logits = np.zeros(2, np.float32)
    seeds = [*range(64), 2**63, 2**64 - 1]
    assert [_core.Sampler(temperature=1.0, seed=s).sample(logits) for s in seeds] == [bits(s) for s in seeds]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2, "top_p": 0.5}])
def test_logits_that_are_not_numbers_are_an_error(bad: float, options: dict[str, float]) -> None:
    logits = np.array([0.0, 1.0, bad, 2.0], np.float32)
    with pytest.raises(_core.CorruptFileError, match=r"logit of token 2 is (nan|inf).*NaN, infinite"):
        _core.Sampler(**options).sample(logits)


def test_all_logits_masked_is_an_error() -> None:
    with pytest.raises(_core.CorruptFileError, match="every one of 3 logits is -infinity"):
        _core.Sampler().sample(np.full(3, -np.inf, np.float32))


def test_no_logits_is_an_error() -> None:
    with pytest.raises(_core.InvalidArgumentError, match="no logits"):
        _core.Sampler().sample(np.zeros(0, np.float32))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -0.1),
        ("temperature", np.nan),
        ("temperature", np.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", np.nan),
        ("min_p", -0.1),
        ("min_p", 1.0),
        ("min_p", np.nan),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", np.inf),
        ("presence_penalty", np.nan),
        ("frequency_penalty", np.inf),
    ],
)
def test_options_out_of_range_are_named(option: str, value: float) -> None:
    with pytest.raises(_core.InvalidArgumentError, match=f"sampling: {option} must be .*, found"):
        _core.Sampler(**{option: value})


def test_negative_prompt_token_is_an_error() -> None:
    with pytest.raises(_core.InvalidArgumentError, match="0 or more, found -3"):
        _core.Sampler().observe_prompt(np.array([1, -3], np.int32))


def test_tokens_beyond_the_logits_are_harmless() -> None:
    sampler = _core.Sampler(temperature=1.0, repetition_penalty=2.0)
    sampler.observe_prompt(np.array([100_000], np.int32))
    np.testing.assert_allclose(sampler.probabilities(np.zeros(4, np.float32)), 0.25)
