"""The adapters of a model, and which of them run with a call: names, weighted sums of names, one for every sequence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InvalidArgumentError

if TYPE_CHECKING:
    from . import _core

Mix = list[tuple[str, float]]
"""As the core takes a choice: (name, weight) of each adapter."""

AdapterChoice = str | Mapping[str, float] | None
"""None: the model alone; a name given to ``load_adapter``; or {name: weight, ...}: the weighted sum of LoRA adapters,
W x + sum of weight * scale * B (A x), as peft's ``add_weighted_adapter(..., combination_type="cat")`` does."""

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


class AdapterMethods:
    """Of :class:`halfbyte.Model`: what is loaded."""

    if TYPE_CHECKING:

        @property
        def _engine(self) -> _core.Engine: ...

    def load_adapter(
        self, path: str | os.PathLike[str], name: str = "default", *, pinned: bool = False, lazily: bool = False
    ) -> None:
        """Keep the adapter of a PEFT folder under ``name``, unmerged; one of that name is replaced.

        Safe while other threads generate: calls in flight keep the adapter they began with.

        Args:
            path: folder with adapter_config.json and adapter_model.safetensors.
            name: what calls name it by.
            pinned: never put away for :meth:`set_adapter_budget`.
            lazily: read it when a call first names it.

        Raises:
            NotFoundError: no such folder or file.
            UnsupportedError: a field or tensor that halfbyte can't apply exactly; the text names it.
            CorruptFileError: shapes that don't fit this model.

        """
        self._engine.load_adapter(str(Path(path).expanduser()), name, pinned, lazily)

    def unload_adapter(self, name: str = "default") -> None:
        """Forget an adapter. Calls in flight keep it until they end. Raises NotFoundError."""
        self._engine.unload_adapter(name)

    def set_adapter_budget(self, bytes: int | None) -> None:  # noqa: A002, RUF100
        """Memory that adapters may take together; None: no limit.

        Beyond it, those used least recently are put away, pinned ones never, and read again when a call names them.
        """
        self._engine.set_adapter_budget(bytes or 0)

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters, those on disk included."""
        return self._engine.adapter_names()

    @property
    def adapter_stats(self) -> dict[str, int]:
        """Names in calls: ``hits``, ``misses`` (read from the disk); ``put_away``; ``resident`` and their ``bytes``."""
        return self._engine.adapter_stats()

    def adapter_info(self, name: str = "default") -> dict[str, Any]:
        """What an adapter does: its kind, bytes, and for each module what is applied there, its rank and scale."""
        return self._engine.adapter_info(name)
