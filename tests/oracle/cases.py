"""What both sides are run on: token sequences of odd lengths, and the runs kept for the session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import halfbyte
from oracle import reference
from oracle.builders import Zoo
from oracle.vocabulary import VOCAB

PRECISIONS = ("float32", "high", "fast")
LENGTHS = (1, 2, 17, 65)


def random_ids(length: int, seed: int) -> list[int]:
    """Without id 0, which ends a text."""
    return [int(i) for i in np.random.default_rng(seed).integers(1, VOCAB, length)]


SEQUENCES = [random_ids(length, seed) for seed, length in enumerate(LENGTHS)]


class References:
    """Reference runs over SEQUENCES: logits of decoders, hidden states of encoders (or of any, where asked)."""

    def __init__(self, zoo: Zoo) -> None:
        self.zoo = zoo
        self._models: dict[str, Any] = {}
        self._references: dict[tuple[str, ...], reference.Reference] = {}

    def model(self, name: str) -> Any:
        """The float32 transformers model of a checkpoint. Not to be changed."""
        if name not in self._models:
            spec = self.zoo.spec(name)
            self._models[name] = reference.load(self.zoo.path(name), spec.build_config())
        return self._models[name]

    def get(self, name: str, run: str = "", quantize: str | None = None) -> reference.Reference:
        key = (name, run, quantize or "")
        if key not in self._references:
            run = run or ("logits" if self.zoo.spec(name).causal else "hidden")
            model = self.model(name)
            if quantize is not None:
                model = reference.round_linears(model, quantize)
            self._references[key] = reference.Reference(model, SEQUENCES, getattr(reference, run))
        return self._references[key]

    def get_adapted(self, name: str, adapters: Any, adapter: str) -> reference.Reference:
        """The checkpoint under peft."""
        key = (name, "adapter", adapter)
        if key not in self._references:
            model = adapters.attach(reference.load(self.zoo.path(name), self.zoo.spec(name).build_config()), adapter)
            run = reference.logits if self.zoo.spec(name).causal else reference.hidden
            self._references[key] = reference.Reference(model, SEQUENCES, run)
        return self._references[key]


class Engines:
    """halfbyte.Model by checkpoint and precision; the last few stay open."""

    def __init__(self, zoo: Zoo) -> None:
        self.zoo = zoo
        self._open: dict[tuple[Any, ...], Any] = {}

    def get(self, name: str, precision: str = "high", **options: Any) -> Any:
        key = (name, precision, *sorted(options.items()))
        if key not in self._open:
            if len(self._open) >= 8:
                self._open.pop(next(iter(self._open))).close()
            self._open[key] = halfbyte.load(self.zoo.path(name), precision=precision, **options)
        return self._open[key]

    def close(self) -> None:
        for model in self._open.values():
            model.close()
        self._open.clear()


def run(
    model: Any, sequences: Sequence[Sequence[int]], causal: bool, adapter: str | None = None
) -> list[NDArray[np.float32]]:
    """Logits (hidden states of encoders) of each sequence alone."""
    call = model.logits if causal else model.hidden_states
    out = []
    for ids in sequences:
        values = call([ids], adapter=adapter)
        assert values.dtype == np.float32 and values.shape[:2] == (1, len(ids)), (values.dtype, values.shape)
        out.append(values[0])
    return out


def run_together(
    model: Any, sequences: Sequence[Sequence[int]], causal: bool, adapter: str | None = None
) -> list[NDArray[np.float32]]:
    """The same as one ragged batch."""
    call = model.logits if causal else model.hidden_states
    values = call(sequences, adapter=adapter)
    longest = max(len(ids) for ids in sequences)
    assert values.dtype == np.float32 and values.shape[:2] == (len(sequences), longest), (values.dtype, values.shape)
    return [values[i, : len(ids)] for i, ids in enumerate(sequences)]
