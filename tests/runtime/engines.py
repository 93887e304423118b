"""What the tests of this folder say often."""

from pathlib import Path

import numpy as np

from halfbyte import _core

VOCAB, POSITIONS = 97, 1200


def load(path: Path, precision: str = "float32", threads: int = 2) -> _core.Engine:
    return _core.Engine.load(str(path), "cpu", threads, precision, "", None)


def start(engine: _core.Engine, prompt: list[int], **changes: object) -> _core.Generation:
    options = {
        "max_tokens": 20,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 0,
        "stop": [],
        "stop_tokens": [],
        "adapter": None,
    }
    return engine.generate(np.array(prompt, np.int32), **{**options, **changes})


def finish(generation: _core.Generation) -> list[int]:
    while generation.step():
        pass
    return generation.tokens


def lengths(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def random_tokens(count: int, seed: int = 0, vocab: int = VOCAB) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.int32)
