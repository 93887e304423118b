"""What a generation is asked for, and its text or ids as an iterator that may be left at any time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypedDict

from . import _core
from .adapters import AdapterChoice
from .errors import InvalidArgumentError
from .packing import whole


class SamplingOptions(TypedDict):
    """What the core's sampler takes."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int


class TextOptions(TypedDict, total=False):
    """The keywords of :meth:`Model.generate_batch`: how each text is written."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | Sequence[str]


class GenerationOptions(TextOptions, total=False):
    """The keywords of :meth:`Model.generate`, :meth:`Model.chat` and :meth:`Model.generate_tokens`."""

    adapter: AdapterChoice


def sampling_options(options: TextOptions) -> SamplingOptions:
    """Those of the sampler; without a seed, one that nobody knows."""
    seed = options.get("seed")
    return SamplingOptions(
        temperature=options.get("temperature", 0.0),
        top_k=whole("top_k", options.get("top_k", 0)),
        top_p=options.get("top_p", 1.0),
        min_p=options.get("min_p", 0.0),
        repetition_penalty=options.get("repetition_penalty", 1.0),
        presence_penalty=options.get("presence_penalty", 0.0),
        frequency_penalty=options.get("frequency_penalty", 0.0),
        seed=int.from_bytes(os.urandom(8), "little") if seed is None else int(seed) % 2**64,
    )


def stop_texts(options: TextOptions) -> list[str]:
    """The ``stop`` option as a list. Raises InvalidArgumentError."""
    stop = options.get("stop", ())
    stops = [stop] if isinstance(stop, str) else list(stop)
    if not all(isinstance(text, str) and text for text in stops):
        raise InvalidArgumentError(f"generate: stop must be a text or texts, none of them empty, got {stop!r}")
    return stops


class Stream(Iterator[str]):
    """The text of a running generation, piece by piece; whole characters only. Leave it whenever you like.

    ``close()``, the end of a ``with`` block, or dropping the object ends the work and frees its cache.
    """

    def __init__(self, generation: _core.Generation) -> None:
        self._generation: _core.Generation | None = generation
        self._tokens: list[int] = []
        self._finish_reason = ""

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        # Each step is short (one token, or a chunk of the prompt), so that Ctrl-C is met between two of them.
        try:
            while self._generation is not None:
                generation = self._generation
                running = generation.step()
                piece = generation.piece
                if not running:
                    self.close()
                if piece:
                    return piece
        except BaseException:
            self.close()
            raise
        raise StopIteration

    @property
    def tokens(self) -> list[int]:
        """Token ids generated so far, without the one that ended the text."""
        return self._tokens if self._generation is None else self._generation.tokens

    @property
    def finish_reason(self) -> str:
        """Why it ended: "stop" (end-of-sequence token or stop string), "length", or "" (running, or abandoned)."""
        return self._finish_reason if self._generation is None else self._generation.finish_reason

    def close(self) -> None:
        """End the generation; no more text comes."""
        if self._generation is not None:
            self._tokens, self._finish_reason = self._generation.tokens, self._generation.finish_reason
            self._generation = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def token_iterator(generation: _core.Generation) -> Iterator[int]:
    """Ids of a running generation as they come."""
    seen, running = 0, True
    while running:
        running = generation.step()
        tokens = generation.tokens
        yield from tokens[seen:]
        seen = len(tokens)
