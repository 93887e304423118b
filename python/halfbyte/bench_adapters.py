"""``halfbyte bench --adapters N``: what adapters cost, each beside the same task without them, in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from . import _core, bench_models
from .adapters import Mix
from .bench_tasks import Size, adapter_trial

_IDLE = 64


@dataclass(frozen=True)
class AdapterRow:
    """One task with adapters; the fields of a line of ``--json``."""

    task: str  # decode, prefill, batch
    adapters: str  # what the rows of the batch run with
    threads: int
    batch: int
    rank: int
    tokens_per_s: float
    tokens_per_s_without: float
    cost: float  # 1 - the ratio of the two
    adapter_mb: float  # of one adapter in memory (1e6 bytes)
    file_mb: float  # of its tensors in the file
    model: str
    precision: str


def measure_adapters(
    path: str, *, threads: int, count: int, rank: int, size: Size, repeats: int, precision: str, output_layer: str = ""
) -> Iterator[AdapterRow]:
    """One adapter at decode and prefill, ``count`` different ones in a batch of as many, and 64 that nobody names.

    Medians of ``repeats`` rounds; in each, every task runs once with and once without.
    """
    engine = _core.Engine.load(path, "cpu", threads, precision, "", None, output_layer)
    folders = [bench_models.made_adapter(engine, rank, seed=seed) for seed in range(1, count + 1)]
    names = [f"bench-{i}" for i in range(count)]
    plain: Mix = []

    def row(task: str, words: str, batch: int, fast: float, slow: float) -> AdapterRow:
        file = sum(file.stat().st_size for file in folders[0].glob("adapter_model*.safetensors"))
        memory = engine.adapter_info(names[0])["bytes"]
        cost = 1 - slow / fast
        return AdapterRow(
            task, words, threads, batch, rank, slow, fast, cost, memory * 1e-6, file * 1e-6, path, precision
        )

    def load(folder_names: Sequence[str]) -> None:
        for i, name in enumerate(folder_names):
            engine.load_adapter(str(folders[i % count]), name, False, False)

    load(names)
    for task in ("decode", "prefill", "batch"):
        used: list[Mix] = [[(name, 1.0)] for name in names] if task == "batch" else [[(names[0], 1.0)]]
        of = Size(size.prompt_tokens, size.decode_tokens, count if task == "batch" else 1)
        fast, slow = _in_turns(
            adapter_trial(engine, task, of, [plain]), adapter_trial(engine, task, of, used), repeats=repeats
        )
        words = f"{count} different" if task == "batch" else "1"
        yield row(task, words, of.batch, fast, slow)

    # Loaded and idle: the same calls before and after they are there, in turns.
    once = adapter_trial(engine, "decode", Size(size.prompt_tokens, size.decode_tokens, 1), [plain])
    idle = [f"idle-{i}" for i in range(_IDLE)]

    def without() -> float:
        for name in set(engine.adapter_names()) - set(names):
            engine.unload_adapter(name)
        return once()

    def beside() -> float:
        load(idle)
        return once()

    fast, slow = _in_turns(without, beside, repeats=repeats)
    yield row("decode", f"{_IDLE} idle", 1, fast, slow)


def _in_turns(one: Callable[[], float], other: Callable[[], float], *, repeats: int) -> tuple[float, float]:
    """Medians of tokens a second."""
    one(), other()  # warm
    found = [(one(), other()) for _ in range(repeats)]
    return statistics.median(a for a, _ in found), statistics.median(b for _, b in found)


def line(row: AdapterRow) -> str:
    """For the table."""
    return (
        f"{row.task:8}{row.adapters:>14}{row.threads:9d}{row.batch:7d}{row.tokens_per_s:11.1f}"
        f"{row.tokens_per_s_without:11.1f}{row.cost:8.1%}{row.adapter_mb:10.1f}{row.file_mb:9.1f}"
    )


HEADER = (
    f"{'task':8}{'adapters':>14}{'threads':>9}{'batch':>7}{'tokens/s':>11}{'without':>11}{'cost':>8}{'MB each':>10}"
    f"{'MB file':>9}"
)
