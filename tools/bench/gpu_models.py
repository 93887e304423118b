"""Times one model shape on a GPU: halfbyte, and transformers with bitsandbytes on the same folder. Two rows of a table.

    python tools/bench/gpu_models.py llama-1b

Called by tools/bench/gpu.sh. Needs a GPU; the model is the one that `halfbyte bench --shape` makes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import halfbyte
from halfbyte.bench_models import made_model

PROMPT, WRITTEN, REPEATS = 512, 64, 5


def median(f: Callable[[], Any]) -> float:
    """Seconds, after one run that is not counted."""
    f()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        f()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def ours(path: Path, prompt: list[int]) -> tuple[float, float]:
    """Seconds to the first token, and to the last."""
    with halfbyte.load(path, device="cuda") as model:
        first = median(lambda: model.generate_tokens(prompt, max_tokens=1))
        return first, median(lambda: model.generate_tokens(prompt, max_tokens=WRITTEN))


def theirs(path: Path, prompt: list[int]) -> tuple[float, float]:
    """The same of transformers with bitsandbytes."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, device_map="cuda", dtype=torch.bfloat16).eval()
    ids = torch.tensor([prompt], device="cuda")

    def write(count: int) -> None:
        with torch.inference_mode():
            model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        torch.cuda.synchronize()

    return median(lambda: write(1)), median(lambda: write(WRITTEN))


def main() -> int:
    """Print the rows."""
    shape = sys.argv[1]
    path = made_model(shape, output_layer="bf16")
    prompt = [3 + i % 1000 for i in range(PROMPT)]
    for name, timed in (("halfbyte", ours), ("transformers + bitsandbytes", theirs)):
        first, last = timed(path, prompt)
        print(f"| {shape} | {name} | {(WRITTEN - 1) / (last - first):.1f} | {PROMPT / first:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
