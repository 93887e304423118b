"""halfbyte itself, measured through the same protocol as the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from side import Floats, Side, Tokens

from halfbyte import _core
from halfbyte.bench_machine import commit
from halfbyte.bench_tasks import weight_bytes


class Halfbyte(Side):
    """A model on the engine's own interface."""

    def __init__(
        self,
        path: str,
        threads: int,
        precision: str = "high",
        quantize: str = "",
        output_layer: str = "",
        adapters: Sequence[str] = (),
        idle: Sequence[str] = (),
    ) -> None:
        """`adapters`: one for all sequences, or sequence i runs with the i-th. `idle`: loaded, and named by nobody."""
        self.engine = _core.Engine.load(path, "cpu", threads, precision, quantize, None, output_layer)
        self.version = f"{_core.__version__} {commit()}".strip()
        self.weight_bytes = weight_bytes(self.engine)
        for index, folder in enumerate([*adapters, *idle]):
            self.engine.load_adapter(folder, f"bench-{index}", False, False)
        self.mixes: list[list[tuple[str, float]]] = [[(f"bench-{i}", 1.0)] for i in range(len(adapters))] or [[]]

    def prefill(self, tokens: Tokens) -> None:
        generation = self.engine.generate(tokens, 1, 0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, [], [], self.mixes[0])
        while generation.step():
            pass

    def start(self, prompts: NDArray[np.int32]) -> None:
        count, length = prompts.shape
        self.ones = np.ones(count, np.int64)
        self.decoder = _core.BatchDecoder(self.engine, count, length + 512, self.mixes)
        self.decoder.extend(np.ascontiguousarray(prompts.ravel()), self.ones * length)

    def step(self, tokens: Tokens) -> Floats:
        self.decoder.extend(tokens, self.ones)
        return self.decoder.logits

    def logits(self, tokens: Tokens) -> Floats:
        return self.engine.logits(tokens, np.array([len(tokens)], np.int64), self.mixes[:1])

    def encode(self, tokens: NDArray[np.int32]) -> Floats:
        count, length = tokens.shape
        lengths = np.full(count, length, np.int64)
        return self.engine.embed(np.ascontiguousarray(tokens.ravel()), lengths, None, "mean", True, self.mixes[:1])
