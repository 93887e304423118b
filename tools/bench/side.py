"""What every yardstick is to the comparison: a process that loads one model once and measures it on request.

Each side lives in a process of its own, so that two runtimes never share a thread pool, an allocator or a peak of
memory. A request and its reply are one JSON object a line on stdin and stdout; everything else goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
Floats = NDArray[np.floating[Any]]


class Side:
    """One runtime with one model. A subclass loads it in ``__init__`` and has the tasks that it can do."""

    version = ""
    weight_bytes = 0  # that a decoded token reads; 0: not known

    def prefill(self, tokens: Tokens) -> None:
        """One prompt up to the logits of its last token, from an empty cache."""
        raise NotImplementedError

    def start(self, prompts: NDArray[np.int32]) -> None:
        """Empty caches for [sequences, tokens], filled with these prompts."""
        raise NotImplementedError

    def step(self, tokens: Tokens) -> Floats:
        """One more token of each sequence; the logits [sequences, vocab] behind them."""
        raise NotImplementedError

    def logits(self, tokens: Tokens) -> Floats:
        """[tokens, vocab] of one sequence: for quality, never timed."""
        raise NotImplementedError

    def encode(self, tokens: NDArray[np.int32]) -> Floats:
        """[sentences, tokens] to mean-pooled, normalised vectors [sentences, hidden]; every token counts."""
        raise NotImplementedError


def pooled(hidden: Floats) -> Floats:
    """[sentences, tokens, hidden] to mean-pooled, normalised vectors."""
    mean = hidden.mean(axis=1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)  # type: ignore[no-any-return]


def peak_mb() -> float:
    """The most memory that this process had resident so far, mapped file pages included (1e6 bytes)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024e-6
    return 0.0


def measured(side: Side, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request: {"seconds": of one run} or, for quality, {"saved": file}."""
    task = request["task"]
    if task == "decode":
        prompt = np.asarray(request["prompts"], np.int32)
        side.start(prompt)
        token = prompt[:, -1]
        steps = int(request["steps"])
        side.step(token)
        start = time.perf_counter()
        for _ in range(steps):
            token = side.step(token).argmax(axis=1).astype(np.int32)
        return {"seconds": time.perf_counter() - start}
    tokens = np.asarray(request["tokens"], np.int32)
    if task in ("logits", "vectors"):
        values = side.logits(tokens) if task == "logits" else side.encode(tokens)
        np.save(request["save"], np.asarray(values, np.float32))
        return {"saved": request["save"]}
    run: Callable[[Tokens], Any] = side.prefill if task == "prefill" else side.encode
    repeats = int(request.get("repeats", 1))
    start = time.perf_counter()
    for _ in range(repeats):
        run(tokens)
    return {"seconds": (time.perf_counter() - start) / repeats}


def make(name: str, options: dict[str, Any]) -> Side:
    """Import only the runtime that is asked for."""
    if name == "halfbyte":
        from side_halfbyte import Halfbyte as Chosen  # noqa: PLC0415
    elif name == "llama.cpp":
        from side_llama import LlamaCpp as Chosen  # type: ignore[assignment]  # noqa: PLC0415
    elif name == "torch":
        from side_torch import Torch as Chosen  # type: ignore[assignment]  # noqa: PLC0415
    elif name == "openvino":
        from side_openvino import OpenVino as Chosen  # type: ignore[assignment]  # noqa: PLC0415
    elif name == "onnxruntime":
        from side_onnx import OnnxRuntime as Chosen  # type: ignore[assignment]  # noqa: PLC0415
    elif name == "ctranslate2":
        from side_ctranslate2 import CTranslate2 as Chosen  # type: ignore[assignment]  # noqa: PLC0415
    else:
        raise ValueError(f"there is no yardstick {name!r}")
    return Chosen(**options)


def main() -> None:
    """``side.py NAME OPTIONS``: load, say so, answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like a reply
    name, options = sys.argv[1], json.loads(sys.argv[2])
    threads = options["threads"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    start = time.perf_counter()
    try:
        side = make(name, options)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:500]}), file=replies)
        return
    seconds = time.perf_counter() - start
    loaded = {"load_s": seconds, "peak_mb": peak_mb(), "version": side.version, "bytes": side.weight_bytes}
    print(json.dumps(loaded), file=replies)
    for line in sys.stdin:
        try:
            reply = measured(side, json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(reply | {"peak_mb": peak_mb()}), file=replies)


if __name__ == "__main__":
    main()
