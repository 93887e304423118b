"""Several texts written side by side: one pass over the weights serves a token of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .adapters import AdapterChoices, Mix, mixes
from .errors import InvalidArgumentError
from .packing import whole
from .stream import TextOptions, sampling_options, stop_texts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .tokenizer import Tokenizer

Prompt = str | Sequence[int] | NDArray[np.integer[Any]]

_PROMPT_TOKENS = 2048  # of several prompts that are read in one pass


class BatchGeneration:
    """Sequences that run until each has ended by itself; the finished ones cost nothing."""

    def __init__(
        self,
        engine: _core.Engine,
        prompts: Sequence[NDArray[np.int32]],
        mixes: list[Mix],
        samplers: Sequence[_core.Sampler],
        max_tokens: int,
        stop_ids: Sequence[int],
        texts: Sequence[_core.TextStream],
        vocabulary: Sequence[bytes],
    ) -> None:
        self._prompts, self._samplers, self._stop_ids = prompts, samplers, set(stop_ids)
        self._texts, self._vocabulary = texts, vocabulary
        room = engine.info()["max_positions"] - max((_virtual_tokens(engine, mix) for mix in mixes), default=0)
        longest = max(len(prompt) for prompt in prompts)
        # The last token of a sequence is never read back: it needs no place.
        self._capacity = min(longest + max_tokens - 1, room) if room > 0 else longest + max_tokens - 1
        self._decoder = _core.BatchDecoder(engine, len(prompts), self._capacity, mixes)
        self._max_tokens = max_tokens
        self.tokens: list[list[int]] = [[] for _ in prompts]
        self.pieces: list[list[str]] = [[] for _ in prompts]
        for prompt, sampler in zip(prompts, samplers, strict=True):
            sampler.observe_prompt(prompt)

    def run(self) -> None:
        """To the end of all of them."""
        for group in self._prompt_groups():
            self._extend({row: self._prompts[row] for row in group})
        running = {row: self._next(row) for row in range(len(self._prompts))}
        while running := {row: token for row, token in running.items() if token is not None}:
            self._extend({row: np.array([token], np.int32) for row, token in running.items()})
            running = {row: self._next(row) for row in running}

    def _prompt_groups(self) -> list[list[int]]:
        """Rows whose prompts are read together; each prompt is read whole, since it may invoke an adapter."""
        groups: list[list[int]] = []
        total = 0
        for row, prompt in enumerate(self._prompts):
            total += len(prompt)
            if not groups or total > _PROMPT_TOKENS:
                groups.append([])
                total = len(prompt)
            groups[-1].append(row)
        return groups

    def _extend(self, tokens: dict[int, NDArray[np.int32]]) -> None:
        lengths = np.zeros(len(self._prompts), np.int64)
        for row, ids in tokens.items():
            lengths[row] = len(ids)
        self._decoder.extend(np.concatenate([tokens[row] for row in sorted(tokens)]), lengths)
        self._logits = self._decoder.logits

    def _next(self, row: int) -> int | None:
        """Samples the next token of a row; None: the row has ended."""
        token = self._samplers[row].sample(self._logits[row])
        text = self._texts[row] if self._texts else None
        ended = token in self._stop_ids
        if not ended:
            self.tokens[row].append(token)
            if text is not None:
                self.pieces[row].append(text.push(self._vocabulary[token] if token < len(self._vocabulary) else b""))
                ended = text.stopped
        length = len(self.tokens[row])
        if not ended and length < self._max_tokens and len(self._prompts[row]) + length <= self._capacity:
            return token
        if text is not None:
            self.pieces[row].append(text.finish())
        return None


def _virtual_tokens(engine: _core.Engine, mix: Mix) -> int:
    if not mix:
        return 0
    info = engine.adapter_info(mix[0][0])
    return int(info["prompt_tokens"] + info["prefix_tokens"])


class BatchMethods:
    """Of :class:`halfbyte.Model`: texts side by side."""

    if TYPE_CHECKING:
        _facts: dict[str, Any]

        @property
        def _engine(self) -> _core.Engine: ...
        @property
        def tokenizer(self) -> Tokenizer: ...  # noqa: D102
        def _prompt_ids(self, prompt: Prompt) -> NDArray[np.int32]: ...
        def _stop_ids(self) -> tuple[int, ...]: ...

    def generate_batch(
        self, prompts: Sequence[Prompt], *, adapter: AdapterChoices = None, **options: Unpack[TextOptions]
    ) -> list[str]:
        """Continue several prompts side by side: each gets the text that :meth:`generate` would give it.

        One pass over the weights serves a token of every sequence, whatever adapters they run with.

        Args:
            prompts: texts or lists of token ids.
            adapter: as in :meth:`generate`, or a list with one for each prompt.
            options: the other keywords of :meth:`generate`, the same for all; ``seed`` begins anew for each.

        """
        vocabulary = self.tokenizer.vocabulary_pieces(self._facts["vocab_size"])
        stops = stop_texts(options)
        ids = [self._prompt_ids(prompt) for prompt in prompts]
        texts = [_core.TextStream(stops) for _ in ids]
        batch = self._run_batch(ids, mixes(adapter, len(ids)), options, texts, vocabulary)
        return ["".join(pieces) for pieces in batch.pieces] if batch else []

    def generate_tokens_batch(
        self, prompts: Sequence[Prompt], *, adapter: AdapterChoices = None, **options: Unpack[TextOptions]
    ) -> list[list[int]]:
        """Like :meth:`generate_batch`, but gives token ids, and takes no ``stop``: see :meth:`generate_tokens`."""
        if options.get("stop"):
            raise InvalidArgumentError("generate_tokens_batch: stop strings need text: use generate_batch")
        ids = [self._prompt_ids(prompt) for prompt in prompts]
        batch = self._run_batch(ids, mixes(adapter, len(ids)), options, [], [])
        return batch.tokens if batch else []

    def _run_batch(
        self,
        ids: list[NDArray[np.int32]],
        adapters: list[Mix],
        options: TextOptions,
        texts: list[_core.TextStream],
        vocabulary: Sequence[bytes],
    ) -> BatchGeneration | None:
        if not ids:
            return None
        max_tokens = whole("max_tokens", options.get("max_tokens", 256))
        if max_tokens < 1:
            raise InvalidArgumentError(f"generate: max_tokens must be 1 or more, found {max_tokens}")
        samplers = [_core.Sampler(**sampling_options(options)) for _ in ids]
        batch = BatchGeneration(self._engine, ids, adapters, samplers, max_tokens, self._stop_ids(), texts, vocabulary)
        batch.run()
        return batch
