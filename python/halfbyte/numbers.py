"""Numbers out of a model: logits, hidden states, classes, sentence vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _core, pooling
from .adapters import AdapterChoices, mixes
from .errors import InvalidArgumentError
from .packing import TokenLists, pack, unpack, whole

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

Progress = Callable[[float], None]


class NumberMethods:
    """Of :class:`halfbyte.Model`."""

    if TYPE_CHECKING:
        _facts: dict[str, Any]

        @property
        def _engine(self) -> _core.Engine: ...
        @property
        def tokenizer(self) -> Tokenizer: ...  # noqa: D102
        @property
        def sentence_config(self) -> pooling.SentenceConfig: ...  # noqa: D102

    def logits(self, token_lists: TokenLists, adapter: AdapterChoices = None) -> NDArray[np.float32]:
        """Scores of every next token: [batch, tokens, vocab] for token ids [batch, tokens].

        The lists may differ in length: rows past the end of a shorter one are zeros. No special tokens are added.

        Args:
            token_lists: a rectangle, or lists that differ in length.
            adapter: as in :meth:`generate`, or a list with one for each sequence. An adapter with a vocabulary of its
                own has so many columns; beside it, sequences of a smaller one are filled up with -inf.

        """
        packed = pack("logits: token_lists", token_lists)
        rows = self._engine.logits(packed.tokens, packed.lengths, mixes(adapter, len(packed.lengths)))
        return unpack(rows, packed.lengths)

    def classify(
        self,
        inputs: Sequence[str] | TokenLists,
        per_token: bool = False,
        token_type_ids: TokenLists | None = None,
        adapter: AdapterChoices = None,
    ) -> NDArray[np.float32]:
        """Scores of classes, before any softmax: float32 [batch, labels].

        The head is the checkpoint's (``...ForSequenceClassification``, ``...ForTokenClassification``) or comes with the
        adapter. It reads the first token of a sequence, through the pooler, in an encoder, and the last one in a
        decoder.

        Args:
            inputs: texts (special tokens are added) or lists of token ids (taken as they are).
            per_token: a head over tokens: float32 [batch, tokens, labels], zeros past the end of a shorter list.
            token_type_ids: for lists of ids; None: all 0.
            adapter: as in :meth:`logits`.

        Raises:
            NotFoundError: neither the checkpoint nor the adapter has a head.

        """
        texts = [item for item in inputs if isinstance(item, str)]
        lists = self.tokenizer.encode_batch(texts) if texts and len(texts) == len(inputs) else inputs
        packed = pack("classify: inputs", lists)  # type: ignore[arg-type]
        types = None if token_type_ids is None else pack("classify: token_type_ids", token_type_ids).tokens
        choices = mixes(adapter, len(packed.lengths))
        rows = self._engine.classify(packed.tokens, packed.lengths, types, per_token, choices)
        return unpack(rows, packed.lengths) if per_token else rows

    def hidden_states(
        self,
        token_ids: TokenLists,
        attention_mask: ArrayLike | None = None,
        token_type_ids: TokenLists | None = None,
        adapter: AdapterChoices = None,
    ) -> NDArray[np.float32]:
        """Hidden states behind the last norm: [batch, tokens, hidden] for token ids [batch, tokens].

        Args:
            token_ids: a rectangle, or lists that differ in length.
            attention_mask: [batch, tokens], 1 or True where there is a token. The others are left out of the
                computation (the rest keep their positions), and their rows in the result are zeros. None: all ones.
            token_type_ids: like token_ids; None: all 0.
            adapter: as in :meth:`logits`.

        """
        packed = pack("hidden_states: token_ids", token_ids)
        choices = mixes(adapter, len(packed.lengths))
        types = None if token_type_ids is None else pack("hidden_states: token_type_ids", token_type_ids)
        if types is not None and not np.array_equal(types.lengths, packed.lengths):
            raise InvalidArgumentError("hidden_states: token_type_ids must have the shape of token_ids")
        type_ids = None if types is None else types.tokens
        if attention_mask is None:
            rows = self._engine.hidden_states(packed.tokens, packed.lengths, None, type_ids, choices)
            return unpack(rows, packed.lengths)
        mask = np.asarray(attention_mask)
        batch, longest = len(packed.lengths), int(packed.lengths.max(initial=0))
        if mask.shape != (batch, longest) or np.any(packed.lengths != longest):
            raise InvalidArgumentError(
                f"hidden_states: attention_mask must have the shape of token_ids [batch, tokens], got {mask.shape} "
                f"for {batch} lists of at most {longest} tokens"
            )
        if not np.isin(mask, (0, 1)).all():
            raise InvalidArgumentError("hidden_states: attention_mask must hold 0 and 1 (or False and True) alone")
        keep = mask.astype(bool)
        positions = np.broadcast_to(np.arange(longest, dtype=np.int32), keep.shape)[keep]
        flat = keep.reshape(-1)
        kept = self._engine.hidden_states(
            np.ascontiguousarray(packed.tokens[flat]),
            keep.sum(axis=1).astype(np.int64),
            np.ascontiguousarray(positions),
            None if type_ids is None else np.ascontiguousarray(type_ids[flat]),
            choices,
        )
        out = np.zeros((batch, longest, kept.shape[1]), dtype=np.float32)
        out[keep] = kept
        return out

    def encode(
        self,
        sentences: str | Sequence[str],
        normalize: bool | None = None,
        pooling: str | None = None,  # noqa: A002, RUF100
        batch_size: int = 32,
        adapter: AdapterChoices = None,
        progress: Progress | None = None,
    ) -> NDArray[np.float32]:
        """One vector per sentence: float32 [batch, dim], in the order given; [dim] for a single text.

        Args:
            sentences: texts; the end of one longer than the checkpoint's ``max_seq_length`` is cut off, as
                sentence-transformers does.
            normalize: True: vectors of length 1. None: as the checkpoint's modules.json says.
            pooling: "mean", "cls", "max" or "last" token; None: as the checkpoint's files say (mean without any).
            batch_size: sentences computed together; they are sorted by length for that.
            adapter: as in :meth:`logits`.
            progress: called with 0..1 after every batch.

        """
        config = self.sentence_config
        mode = config.pooling if pooling is None else pooling
        unit = config.normalize if normalize is None else bool(normalize)
        if whole("batch_size", batch_size) < 1:
            raise InvalidArgumentError(f"encode: batch_size must be positive, got {batch_size}")
        if isinstance(sentences, str):
            return self.encode([sentences], normalize, pooling, batch_size, adapter, progress)[0]  # type: ignore[no-any-return]
        ids = self._sentence_ids(sentences, config)
        choices = mixes(adapter, len(ids))
        out = np.empty((len(ids), self._facts["hidden_size"]), dtype=np.float32)
        order = sorted(
            range(len(ids)), key=lambda i: len(ids[i]), reverse=True
        )  # the longest first: memory is known early
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            packed = pack("encode", [ids[i] for i in rows])
            chosen = choices if len(choices) == 1 else [choices[i] for i in rows]
            out[rows] = self._engine.embed(packed.tokens, packed.lengths, None, mode, unit, chosen)
            if progress is not None:
                progress(min(1.0, (start + len(rows)) / len(order)))
        return out

    def _sentence_ids(self, sentences: Iterable[str], config: pooling.SentenceConfig) -> list[list[int]]:
        texts = list(sentences)
        for text in texts:
            if not isinstance(text, str):
                raise InvalidArgumentError(f"encode: expected texts, got {type(text).__name__}")
        texts = [config.prompt + text for text in texts]
        if config.do_lower_case:
            texts = [text.lower() for text in texts]
        limits = (config.max_seq_length or self.tokenizer.settings.max_length, self._facts["max_positions"])
        return self.tokenizer.encode_batch(texts, max_length=min((n for n in limits if n), default=None))
