"""Sequences decoded side by side say what each says alone."""

import numpy as np
import pytest

from halfbyte import _core, errors
from oracle import packages

PROMPTS = [[1, 504, 3575], [28], [351, 253, 4052, 28, 30, 339]]
STEPS = 6


@pytest.fixture(scope="module")
def engine():
    return _core.Engine.load(str(packages.smollm2()), "cpu", 2, "float32", "", None)


def lengths(counts):
    return np.array(counts, np.int64)


def ids(tokens):
    return np.array(tokens, np.int32)


def test_the_logits_are_those_of_each_sequence_by_itself(engine):
    decoder = _core.BatchDecoder(engine, len(PROMPTS), 16, None)
    decoder.extend(ids([token for prompt in PROMPTS for token in prompt]), lengths([len(prompt) for prompt in PROMPTS]))
    sequences = [list(prompt) for prompt in PROMPTS]
    for step in range(STEPS):
        for found, sequence in zip(decoder.logits, sequences, strict=True):
            expected = engine.logits(ids(sequence), lengths([len(sequence)]), None)[-1]
            # The cache holds keys and values as float32 in this precision: the same sums, in another order.
            assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
        tokens = decoder.logits.argmax(axis=1)
        counts = [1, 1, 1]
        if step == 2:  # one of them takes two tokens at once
            counts = [1, 2, 1]
            tokens = np.insert(tokens, 2, 28)
        decoder.extend(tokens.astype(np.int32), lengths(counts))
        start = 0
        for sequence, count in zip(sequences, counts, strict=True):
            sequence.extend(tokens[start : start + count].tolist())
            start += count


def test_what_is_truncated_can_be_said_again(engine):
    decoder = _core.BatchDecoder(engine, 2, 4, None)
    decoder.extend(ids([1, 2, 3]), lengths([1, 2]))
    decoder.extend(ids([4, 5]), lengths([1, 1]))
    first = decoder.logits
    decoder.extend(ids([6, 7]), lengths([1, 1]))
    decoder.truncate(1)  # [1] and [2]
    decoder.extend(ids([4, 3, 5]), lengths([1, 2]))
    assert np.abs(decoder.logits - first).max() < 1e-4 * np.abs(first).max()
    with pytest.raises(errors.InvalidArgumentError, match="cannot keep -1 tokens"):
        decoder.truncate(-1)


def test_a_wrong_call_changes_nothing(engine):
    decoder = _core.BatchDecoder(engine, 2, 4, None)
    decoder.extend(ids([1, 2, 3]), lengths([1, 2]))
    before = decoder.logits
    for tokens, counts, message in (
        ([1], [1], "a length for each of 2 sequences, found 1"),
        ([1], [2, -1], "sequence 0: expected 0 or more tokens, of which 1 are left, found a length of 2"),
        ([1], [1, -1], "sequence 1: expected 0 or more tokens, of which 0 are left, found a length of -1"),
        ([1, 2, 3], [1, 1], "the lengths sum to 2, but there are 3 tokens"),
        ([1, 2], [1, 2], "sequence 1: expected 0 or more tokens, of which 1 are left, found a length of 2"),
        ([1, 2, 3, 4], [1, 3], "sequence 1 has 2 tokens of 4, and 3 more do not fit"),
        ([1, 49152], [1, 1], "token 1: expected an id from 0 to 49151"),
        ([-1, 0], [1, 1], "token 0: expected an id from 0 to 49151"),
    ):
        with pytest.raises(errors.InvalidArgumentError, match=message):
            decoder.extend(ids(tokens), lengths(counts))
    assert np.array_equal(decoder.logits, before)
    decoder.extend(ids([4, 5, 6]), lengths([1, 2]))  # the room is still there
    alone = engine.logits(ids([1, 4]), lengths([2]), None)[-1]
    assert np.abs(decoder.logits[0] - alone).max() < 1e-4 * np.abs(alone).max()


def test_a_sequence_that_gets_nothing_stays_as_it_is(engine):
    decoder = _core.BatchDecoder(engine, 3, 8, None)
    decoder.extend(ids([1, 2, 3, 4]), lengths([1, 2, 1]))
    before = decoder.logits
    decoder.extend(ids([5, 6]), lengths([0, 2, 0]))
    decoder.extend(ids([]), lengths([0, 0, 0]))
    after = decoder.logits
    assert np.array_equal(before[[0, 2]], after[[0, 2]])
    alone = engine.logits(ids([2, 3, 5, 6]), lengths([4]), None)[-1]
    assert np.abs(after[1] - alone).max() < 1e-4 * np.abs(alone).max()


def test_what_no_decoder_can_be_made_of(engine):
    with pytest.raises(errors.InvalidArgumentError, match="sequences and capacity must be 1 or more, found 0 and 4"):
        _core.BatchDecoder(engine, 0, 4, None)
    with pytest.raises(
        errors.InvalidArgumentError, match="a capacity of 100000 tokens is more than the 8192 positions"
    ):
        _core.BatchDecoder(engine, 1, 100000, None)
    with pytest.raises(errors.NotFoundError, match='there is no adapter "a"'):
        _core.BatchDecoder(engine, 1, 4, [[("a", 1.0)]])
    encoder = _core.Engine.load(str(packages.minilm()), "cpu", 1, "float32", "", None)
    with pytest.raises(errors.UnsupportedError, match="this bert model writes no text"):
        _core.BatchDecoder(encoder, 1, 4, None)
