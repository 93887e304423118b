"""Rows with different adapters in one call, weighted sums, and that nothing of one adapter is seen by another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import peft
import pytest

import halfbyte
from oracle import peft_models, reference
from oracle.adapter_zoo import SPECS
from oracle.cases import SEQUENCES, random_ids
from oracle.reference import Error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from oracle.builders import Zoo
    from oracle.cases import Engines, References
    from oracle.peft_models import TrainedZoo

LLAMA = [
    "llama-lora",
    "llama-dora",
    "llama-emb",
    "llama-ia3",
    "llama-prompt",
    "llama-prefix",
    "llama-p-MLP",
    "llama-saved",
    "llama-resized",
    "llama-tokens",
    "llama-alora",
    "llama-repeated",
    "llama-norms",
]
GPT2 = ["gpt2-lora", "gpt2-dora", "gpt2-ia3", "gpt2-prompt", "gpt2-prefix", "gpt2-resized-tied", "gpt2-tokens-tied"]
BERT = ["bert-lora", "bert-dora", "bert-ia3", "bert-prompt", "bert-prefix", "bert-resized", "bert-saved", "bert-norms"]
SUM = {"llama-lora": 0.7, "llama-rslora": -0.2}


BASES = {"llama": LLAMA, "llama/nf4-dq": LLAMA, "gpt2/nf4-dq": GPT2, "bert/nf4-dq": BERT}


@contextmanager
def loaded(model: Any, trained: TrainedZoo, keys: Iterable[str]) -> Iterator[Any]:
    """The adapters are loaded under their own keys."""
    for key in keys:
        model.load_adapter(trained.path(key), key)
    try:
        yield model
    finally:
        for key in model.adapters:
            model.unload_adapter(key)


def _rows(keys: list[str]) -> tuple[list[Any], list[list[int]]]:
    """A choice and its token ids for every row: not in the order of the names, some twice, lengths in a mess."""
    choices = [None, *keys, None, keys[0], *keys[::-2]]
    if "llama-lora" in keys:
        choices[3:3] = [SUM]
    ids = []
    for row, choice in enumerate(choices):
        own = SPECS[choice].tokens if isinstance(choice, str) else ()
        ids.append([*random_ids(1 + row * 7 % 23, 200 + row), *own, *random_ids(1 + row % 3, 300 + row)])
    return choices, ids


def _same(together: list[Any], alone: list[Any], bound: float) -> None:
    """Two runs in float32 of which each may be off by twice the reference's error."""
    for row, (a, b) in enumerate(zip(together, alone, strict=True)):
        width = b.shape[-1]
        assert np.isneginf(a[..., width:]).all(), row  # beside a row with a larger vocabulary
        assert np.abs(a[..., :width] - b).max() <= 4 * bound, row


@pytest.mark.parametrize("base", [base for base in BASES if not base.startswith("bert")])
def test_logits(base: str, engines: Engines, references: References, trained: TrainedZoo) -> None:
    choices, ids = _rows(BASES[base])
    bound = references.get(base).reference_error("float32").max
    with loaded(engines.get(base, "float32"), trained, {*BASES[base], *(SUM if "llama" in base else ())}) as model:
        together = peft_models.run(model, "logits", ids, choices)
        alone = [peft_models.run(model, "logits", [i], choice)[0] for i, choice in zip(ids, choices, strict=True)]
        plain = peft_models.run(model, "logits", ids[:1])
    _same(together, alone, bound)
    np.testing.assert_allclose(together[0][:, : plain[0].shape[-1]], plain[0], rtol=0, atol=4 * bound)
    assert any(value.shape[-1] > plain[0].shape[-1] for value in together)


@pytest.mark.parametrize("base", BASES)
def test_hidden_states(base: str, engines: Engines, references: References, trained: TrainedZoo) -> None:
    choices, ids = _rows(BASES[base])
    bound = references.get(base, "hidden").reference_error("float32").max
    with loaded(engines.get(base, "float32"), trained, {*BASES[base], *(SUM if "llama" in base else ())}) as model:
        together = peft_models.run(model, "hidden", ids, choices)
        alone = [peft_models.run(model, "hidden", [i], choice)[0] for i, choice in zip(ids, choices, strict=True)]
    _same(together, alone, bound)


@pytest.mark.parametrize("base", ["llama/nf4-dq", "gpt2", "bert"])
def test_classify(base: str, engines: Engines, trained: TrainedZoo) -> None:
    """Heads, with LoRA, a prompt and a prefix: every row against peft."""
    name = base.partition("/")[0]
    keys = [f"{name}-{kind}" for kind in ("classes", "prompt-classes", "prefix-classes")]
    variant = base.removeprefix(name)
    truths = {key: trained.reference(key, variant) for key in keys}
    sequences = SPECS[keys[0]].sequences()
    choices = [keys[row % 3] for row in range(len(sequences))]
    with loaded(engines.get(base, "float32"), trained, keys) as model:
        values = peft_models.run(model, "classify", sequences, choices)
        with pytest.raises(halfbyte.InvalidArgumentError, match="labels"):
            model.classify(sequences[:2], adapter=[keys[0], None])
    for key in keys:
        rows = [row for row, choice in enumerate(choices) if choice == key]
        error = Error.of([values[row] for row in rows], [truths[key].truth[row] for row in rows])
        assert error.at_most(truths[key].reference_error("float32"), 2, 2), key


@pytest.mark.parametrize("base", ["llama/nf4-dq", "gpt2"])
def test_generation_side_by_side(base: str, engines: Engines, trained: TrainedZoo) -> None:
    keys = [key for key in BASES["llama" if "llama" in base else "gpt2/nf4-dq"] if key != "llama-repeated"]
    choices, ids = _rows(keys)
    with loaded(engines.get(base, "float32"), trained, {*keys, *(SUM if "llama" in base else ())}) as model:
        alone = [model.generate_tokens(i, max_tokens=9, adapter=choice) for i, choice in zip(ids, choices, strict=True)]
        assert model.generate_tokens_batch(ids, max_tokens=9, adapter=choices) == alone
        texts = [model.generate(i, max_tokens=9, adapter=choice) for i, choice in zip(ids, choices, strict=True)]
        assert model.generate_batch(ids, max_tokens=9, adapter=choices) == texts
    assert len({tuple(tokens) for tokens in alone}) > len(keys)


def _peft(zoo: Zoo, base: str, trained: TrainedZoo, keys: Iterable[str]) -> Any:
    """One peft model with several adapters."""
    first, *others = keys
    plain = reference.load(zoo.path(base), zoo.spec(base).build_config())
    model = peft.PeftModel.from_pretrained(plain, trained.path(first), adapter_name=first)
    for key in others:
        model.load_adapter(trained.path(key), key)
    return model.eval()


@pytest.mark.parametrize("weights", [(0.7, -0.2), (1.5, 0.5)])
@pytest.mark.parametrize("base", ["llama/nf4-dq", "gpt2", "bert/nf4-dq"])
def test_a_weighted_sum(
    base: str, weights: tuple[float, float], zoo: Zoo, engines: Engines, trained: TrainedZoo
) -> None:
    """What peft's add_weighted_adapter makes of them."""
    name = base.partition("/")[0]
    mix = dict(zip([f"{name}-lora", f"{name}-rslora"], weights, strict=True))
    combined = _peft(zoo, base, trained, mix)
    combined.add_weighted_adapter(list(mix), list(mix.values()), "sum", combination_type="cat")
    combined.set_adapter("sum")
    kind = "hidden" if name == "bert" else "logits"
    truth = reference.Reference(combined, SEQUENCES, peft_models.Tokens(kind))
    with loaded(engines.get(base, "float32"), trained, mix) as model:
        truth.check(peft_models.run(model, kind, SEQUENCES, mix), "float32")
        truth.check(peft_models.run(model, kind, SEQUENCES, dict(reversed(mix.items()))), "float32")


def test_a_weighted_sum_of_three(zoo: Zoo, engines: Engines, trained: TrainedZoo) -> None:
    """The sum of their deltas in float64."""
    mix = {"llama-lora": -0.4, "llama-patterns": 0.9, "llama-layers": 0.3}
    base = reference.double(reference.load(zoo.path("llama/nf4-dq")))
    plain = _peft(zoo, "llama/nf4-dq", trained, mix)
    for name, layer in plain.double().base_model.model.named_modules():
        for key, weight in mix.items():
            if key in getattr(layer, "lora_A", ()):
                base.get_submodule(name).weight.data += weight * layer.get_delta_weight(key)
    truth = [reference.logits(base, ids) for ids in SEQUENCES]
    bound = trained.reference("llama-lora", "/nf4-dq").reference_error("float32")
    with loaded(engines.get("llama/nf4-dq", "float32"), trained, mix) as model:
        assert Error.of(peft_models.run(model, "logits", SEQUENCES, mix), truth).at_most(bound, 2, 2)
        one = peft_models.run(model, "logits", SEQUENCES, {"llama-lora": 1.0})
        for a, b in zip(one, peft_models.run(model, "logits", SEQUENCES, "llama-lora"), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_cannot_be_summed(engines: Engines, trained: TrainedZoo) -> None:
    keys = [key for key in LLAMA if key not in ("llama-lora", "llama-emb")]
    with loaded(engines.get("llama", "float32"), trained, [*keys, "llama-lora"]) as model:
        for key in keys:
            for mix in ({key: 0.5}, {"llama-lora": 0.5, key: 1.0}):
                with pytest.raises(halfbyte.InvalidArgumentError, match=f'"{key}"'):
                    model.logits([[1, 2]], adapter=mix)
            model.logits([SPECS[key].sequences()[1]], adapter={key: 1.0})  # alone and as it is
        with pytest.raises(halfbyte.InvalidArgumentError, match="llama-lora"):
            model.logits([[1, 2]], adapter={"llama-lora": float("nan")})


PAIRS = [("llama-lora", "llama-rslora"), ("llama-prefix", "llama-dora"), ("llama-resized", "llama-prompt")]


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_nothing_of_one_adapter_is_seen_by_another(
    pair: tuple[str, str], engines: Engines, zoo: Zoo, trained: TrainedZoo
) -> None:
    """The same prompt with A, with B, with none and with A again: each as of a model that has seen nothing else."""
    prompt = random_ids(13, 77)
    a, b = pair

    def fresh(choice: str | None) -> list[int]:
        with halfbyte.load(zoo.path("llama/nf4-dq"), precision="float32") as model:
            if choice is not None:
                model.load_adapter(trained.path(choice), choice)
            return model.generate_tokens(prompt, max_tokens=10, adapter=choice)

    expected = {choice: fresh(choice) for choice in (a, b, None)}
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    with loaded(engines.get("llama/nf4-dq", "float32"), trained, pair) as model:
        for choice in (a, b, None, a, None, b, a):
            assert model.generate_tokens(prompt, max_tokens=10, adapter=choice) == expected[choice]


CALLS, SWAPS = 12, 40


def test_swapped_while_threads_generate(engines: Engines, trained: TrainedZoo) -> None:
    """A call has one adapter from beginning to end, whatever is loaded meanwhile; or none of that name is there."""
    prompt = random_ids(13, 78)
    names = ("llama-lora", "llama-prefix")
    model = engines.get("llama/nf4-dq", "float32")
    with loaded(model, trained, names):
        either = [model.generate_tokens(prompt, max_tokens=8, adapter=name) for name in names]
        plain = model.generate_tokens(prompt, max_tokens=8)
        model.load_adapter(trained.path(names[0]), "x")

        def calls(_: int) -> list[Any]:
            results: list[Any] = []
            for _ in range(CALLS):
                try:
                    results.append(model.generate_tokens(prompt, max_tokens=8, adapter="x"))
                except halfbyte.NotFoundError:
                    results.append(None)
                assert model.generate_tokens(prompt, max_tokens=8) == plain
            return results

        with ThreadPoolExecutor(3) as threads:
            running = [threads.submit(calls, thread) for thread in range(3)]
            for swap in range(SWAPS):
                if swap % 5 == 4:
                    model.unload_adapter("x")
                model.load_adapter(trained.path(names[swap % 2]), "x")
            found = [result for future in running for result in future.result()]
    assert len(found) == 3 * CALLS
    assert all(result is None or result in either for result in found)


def test_a_stream_keeps_the_adapter_it_began_with(engines: Engines, trained: TrainedZoo) -> None:
    prompt = random_ids(13, 79)
    with loaded(engines.get("llama/nf4-dq", "float32"), trained, ["llama-lora", "llama-dora"]) as model:
        expected = model.generate_tokens(prompt, max_tokens=8, adapter="llama-lora")
        stream = model.generate_tokens(prompt, max_tokens=8, adapter="llama-lora", stream=True)
        tokens = [next(stream)]
        model.load_adapter(trained.path("llama-dora"), "llama-lora")
        tokens.append(next(stream))
        model.unload_adapter("llama-lora")
        assert tokens + list(stream) == expected
