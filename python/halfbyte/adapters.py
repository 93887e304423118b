"""Which adapters run with a call: names, weighted sums of names, one for every sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .errors import InvalidArgumentError

Mix = list[tuple[str, float]]
"""As the core takes a choice: (name, weight) of each adapter."""

AdapterChoice = str | Mapping[str, float] | None
"""None: the model alone; a name given to ``load_adapter``; or {name: weight, ...}: the weighted sum of LoRA adapters,
W x + sum of weight * scale * B (A x), which is what peft's ``add_weighted_adapter(..., combination_type="cat")`` makes."""

AdapterChoices = AdapterChoice | Sequence[AdapterChoice]
"""One choice for all sequences of a call, or a list with one for each."""


def mix(choice: AdapterChoice) -> Mix:
    """As the core takes it."""
    if choice is None:
        return []
    if isinstance(choice, str):
        return [(choice, 1.0)]
    if not isinstance(choice, Mapping):
        raise InvalidArgumentError(
            f"adapter: expected None, a name or {{name: weight}}, got {type(choice).__name__}: {choice!r}"
        )
    for name, weight in choice.items():
        if not isinstance(name, str) or isinstance(weight, bool) or not isinstance(weight, int | float):
            raise InvalidArgumentError(f"adapter: expected {{name: weight}}, got {{{name!r}: {weight!r}}}")
    return [(name, float(weight)) for name, weight in choice.items()]


def mixes(choices: AdapterChoices, sequences: int) -> list[Mix]:
    """One for all sequences, or one for each."""
    if choices is None or isinstance(choices, str | Mapping):
        return [mix(choices)]
    listed = [mix(choice) for choice in choices]
    if len(listed) != sequences:
        raise InvalidArgumentError(f"adapter: expected a list of {sequences}, one for each sequence, got {len(listed)}")
    return listed
