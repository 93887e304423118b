"""The tasks of ``halfbyte bench``: what is timed, and what a pass must read and compute."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core
from .adapters import Mix, mix
from .errors import InternalError, InvalidArgumentError

TASKS = ("decode", "prefill", "batch", "encode")
ADAPTER = "bench"  # the name under which the adapter of a run is loaded


class Size(NamedTuple):
    """How much of a task is run."""

    prompt_tokens: int  # of a prompt, or of a sentence
    decode_tokens: int  # timed one by one, of each sequence
    batch: int  # sequences at once, for batch and encode


class Trial(NamedTuple):
    """One task, ready to be timed."""

    once: Callable[[], float]  # runs it and gives the seconds that count
    batch: int  # sequences at once
    decode_tokens: int  # 0: nothing is decoded
    tokens: int  # that those seconds are for
    context: float  # keys that a token attends to, on average
    bytes_per_token: float


def make_trial(engine: _core.Engine, task: str, size: Size, adapter: str | None, adapter_bytes: int) -> Trial:
    """Prepare one task. ``adapter``: the name of a loaded one; ``adapter_bytes``: of its factors."""
    info = engine.info()
    weights, cache = weight_bytes(engine) + adapter_bytes, _cache_bytes_per_token(info)
    middle = size.prompt_tokens + (size.decode_tokens + 1) / 2  # keys of the token in the middle of a decoding run
    if task == "encode":
        total = size.prompt_tokens * size.batch
        once = _encode(engine, size, mix(adapter))
        return Trial(once, size.batch, 0, total, size.prompt_tokens, weights / total)
    if task == "batch":
        total, read = size.decode_tokens * size.batch, weights / size.batch + middle * cache
        return Trial(_batch(engine, size, [mix(adapter)]), size.batch, size.decode_tokens, total, middle, read)
    if task == "prefill":
        mean, read = (size.prompt_tokens + 1) / 2, weights / size.prompt_tokens + cache
        return Trial(_generate(engine, size, mix(adapter), False), 1, 0, size.prompt_tokens, mean, read)
    once = _generate(engine, size, mix(adapter), True)
    return Trial(once, 1, size.decode_tokens, size.decode_tokens, middle, weights + middle * cache)


def adapter_trial(engine: _core.Engine, task: str, size: Size, mixes: Sequence[Mix]) -> Callable[[], float]:
    """A call that runs a task once, row i of a batch with mixes[i] (or all with the one there is): tokens a second."""
    if task == "batch":
        once, tokens = _batch(engine, size, mixes), size.batch * size.decode_tokens
    else:
        decode = task == "decode"
        once, tokens = _generate(engine, size, mixes[0], decode), size.decode_tokens if decode else size.prompt_tokens
    return lambda: tokens / once()


def check(info: dict[str, Any], tasks: Sequence[str], size: Size) -> None:
    """Raise InvalidArgumentError where the model can't do one of the tasks."""
    for task in tasks:
        if task != "encode" and not info["causal"]:
            raise InvalidArgumentError(
                f"bench: {task} needs a decoder, and {info['architecture']} is an encoder: use --task encode"
            )
        needed = size.prompt_tokens + (size.decode_tokens if task in ("decode", "batch") else 0)
        if needed > info["max_positions"] > 0:
            raise InvalidArgumentError(
                f"bench: {task} needs {needed} positions and the model has {info['max_positions']}: "
                "lower --prompt-tokens or --decode-tokens"
            )


# --- what is run and timed ---


def _encode(engine: _core.Engine, size: Size, adapter: Mix) -> Callable[[], float]:
    tokens = spread_tokens(engine.info(), size.prompt_tokens * size.batch)
    lengths = np.full(size.batch, size.prompt_tokens, np.int64)

    def once() -> float:
        start = time.perf_counter()
        engine.embed(tokens, lengths, None, "mean", True, [adapter])
        return time.perf_counter() - start

    return once


def _batch(engine: _core.Engine, size: Size, adapters: Sequence[Mix]) -> Callable[[], float]:
    """Sequences with a prompt each, then a token of each in every pass, the greedy one."""
    prompts = spread_tokens(engine.info(), size.prompt_tokens * size.batch)
    long, one = np.full(size.batch, size.prompt_tokens, np.int64), np.ones(size.batch, np.int64)

    decoder = _core.BatchDecoder(engine, size.batch, size.prompt_tokens + size.decode_tokens, list(adapters))
    decoder.extend(prompts, long)

    def once() -> float:
        decoder.truncate(size.prompt_tokens)
        start = time.perf_counter()
        for _ in range(size.decode_tokens):
            decoder.extend(decoder.logits.argmax(axis=1).astype(np.int32), one)
        return time.perf_counter() - start

    return once


def _generate(engine: _core.Engine, size: Size, adapter: Mix, decode: bool) -> Callable[[], float]:
    prompt = spread_tokens(engine.info(), size.prompt_tokens)
    after_prompt = size.decode_tokens if decode else 0

    def once() -> float:
        # Greedy and without an end-of-sequence token: it goes on to the end, whatever it says.
        start = time.perf_counter()
        generation = engine.generate(prompt, after_prompt + 1, 0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, [], [], adapter)
        while not generation.tokens and generation.step():  # the prompt, and the first token that comes with it
            pass
        if decode:
            start = time.perf_counter()
            while len(generation.tokens) <= after_prompt and generation.step():
                pass
        seconds = time.perf_counter() - start
        if len(generation.tokens) != after_prompt + 1:
            raise InternalError(f"bench: {after_prompt + 1} tokens expected, {len(generation.tokens)} generated")
        return seconds

    return once


def spread_tokens(info: dict[str, Any], count: int) -> NDArray[np.int32]:
    """Token ids spread over the vocabulary; what they say doesn't matter for the time."""
    ids: NDArray[np.int32] = (np.arange(count, dtype=np.int64) * 7919 % info["vocab_size"]).astype(np.int32)
    return ids


# --- what a pass costs, from the shapes and bytes of the loaded weights ---


def weight_bytes(engine: _core.Engine) -> int:
    """Read once by every pass, whatever its number of tokens: the linear layers, not the tables of embeddings.

    A table that is tied to the output layer stands in the report once, and is read as that layer.
    """
    layers = Counter((rows, cols) for _, cols, rows in engine.modules())
    total = 0
    for weight in reversed(engine.info()["weights"]):  # tables come before the output layer that may have their shape
        shape = (weight["rows"], weight["cols"])
        if layers[shape] > 0:
            layers[shape] -= 1
            total += weight["bytes"]
    return total


def _cache_bytes_per_token(info: dict[str, Any]) -> int:
    """Keys and values of all layers; int8 has a float scale for each head."""
    head = {"float32": 4, "int8": 1}.get(info["kv_cache"], 2) * info["head_dim"] + 4 * (info["kv_cache"] == "int8")
    return int(2 * head * info["layers"] * info["kv_heads"]) if info["causal"] else 0


def flops_per_token(engine: _core.Engine, task: str, size: Size, context: float) -> float:
    """Multiplications and additions of the linear layers, and of attention to `context` keys.

    A prompt needs the output layer for its last token alone.
    """
    info = engine.info()
    layers = engine.modules()
    linear = float(sum(inputs * outputs for _, inputs, outputs in layers))
    if task == "prefill":
        output = sum(inputs * outputs for _, inputs, outputs in layers if outputs == info["vocab_size"])
        linear -= output * (1 - 1 / size.prompt_tokens)
    return 2 * linear + 4.0 * int(info["layers"]) * int(info["heads"]) * int(info["head_dim"]) * context


def bits_per_weight(info: dict[str, Any]) -> float:
    """Bytes of all weights, embeddings included, over their elements."""
    elements = sum(weight["rows"] * weight["cols"] for weight in info["weights"])
    return 8 * sum(weight["bytes"] for weight in info["weights"]) / elements if elements else 0.0
