"""The tokenizer of the tiny checkpoints."""

from __future__ import annotations

import functools
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 517
PAGE = Path(__file__).parents[1] / "data" / "page.txt"


@functools.cache
def bpe_tokenizer() -> Tokenizer:
    """A byte-level BPE of exactly VOCAB tokens, learnt from the page that ships with the tests; id 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(PAGE)], trainer)
    assert tokenizer.get_vocab_size() == VOCAB
    return tokenizer
