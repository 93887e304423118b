"""``halfbyte bench``: how fast a model runs, beside what the machine can do, measured in the same run.

A decoder reads all of its weights for every token, so its speed is bounded by the memory's; a prompt, or a batch of
sentences, is bounded by arithmetic. Every row therefore has both roofs beside it: the bandwidth that the same number of
threads can read, and the float32 operations that they can do.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import _core
from .cli_options import PRECISIONS, positive
from .demo import demo_model
from .errors import InternalError, InvalidArgumentError

TASKS = ("decode", "prefill", "encode")


@dataclass(frozen=True)
class Row:
    """One measurement; a JSON object of ``halfbyte bench --json``. GB are 1e9 bytes, GFLOP 1e9 operations."""

    task: str  # decode: one token after another; prefill: a prompt up to its first token; encode: a batch of sentences
    threads: int
    batch: int  # sequences at once
    prompt_tokens: int  # a sequence
    decode_tokens: int  # timed, a sequence; 0 but for decode
    tokens_per_s: float  # median of the repeats
    bytes_per_token: float  # weights and cached keys and values that must be read, shared among the tokens of one pass
    gb_per_s: float  # tokens_per_s * bytes_per_token
    read_gb_per_s: float  # what these threads can read from memory, measured in this run
    gflops: float  # multiplications and additions of linear layers and attention, per second
    peak_gflops: float  # what these threads can do in float32 multiply-adds, measured in this run
    fraction: float  # of the roof: decode gb_per_s / read_gb_per_s, others gflops / peak_gflops
    rss_mb: float  # resident memory of the process after the measurement (1e6 bytes), mapped file pages included
    load_s: float
    model: str
    architecture: str
    format: str
    storages: str
    bits_per_weight: float
    precision: str
    adapter: str
    isa: str
    cpu: str
    version: str
    commit: str  # of the source checkout that the package runs from; empty for an installed one


class _Trial(NamedTuple):
    """One task, ready to be timed."""

    once: Callable[[], float]  # runs it and gives the seconds that count
    batch: int  # sequences at once
    tokens: int  # that those seconds are for
    context: float  # keys that a token attends to, on average
    bytes_per_token: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``halfbyte bench``."""
    add = parser.add_argument
    add("model", nargs="?", help="folder or file; without it the demo model")
    add("--task", choices=TASKS, help="default: decode and prefill for a decoder, encode for an encoder")
    add("--threads", type=_counts, metavar="N[,N...]", help="default: one per core")
    add("--prompt-tokens", type=positive, default=128, metavar="N", help="of a prompt or sentence (%(default)s)")
    add("--decode-tokens", type=positive, default=64, metavar="N", help="timed one by one (%(default)s)")
    add("--batch", type=positive, default=8, metavar="N", help="sentences at once, for encode (%(default)s)")
    add("--repeats", type=positive, default=5, metavar="N", help="runs, of which the median counts (%(default)s)")
    add("--precision", choices=PRECISIONS, default="high", help="default: %(default)s")
    add("--quantize", default="", metavar="FORMAT", help="round while loading: nf4, fp4, int8, bf16 or f16")
    add("--adapter", metavar="PATH", help="a PEFT folder, applied unmerged")
    add("--json", action="store_true", help="one JSON object a line instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure, print rows as they are ready, and return the exit code. Errors of loading and running are raised."""
    rows = measure(
        str(demo_model()) if args.model is None else args.model,
        task=args.task,
        threads=args.threads or [_core.available_cores()],
        prompt_tokens=args.prompt_tokens,
        decode_tokens=args.decode_tokens,
        batch=args.batch,
        repeats=args.repeats,
        precision=args.precision,
        quantize=args.quantize,
        adapter=args.adapter,
    )
    for index, row in enumerate(rows):
        if args.json:
            print(json.dumps(asdict(row)), flush=True)
        else:
            if index == 0:
                print(_conditions(row))
                print(_HEADER)
            print(_line(row), flush=True)
    return 0


def measure(
    path: str,
    *,
    task: str | None = None,
    threads: Sequence[int],
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    batch: int = 8,
    repeats: int = 5,
    precision: str = "high",
    quantize: str = "",
    adapter: str | None = None,
) -> Iterator[Row]:
    """Yield one row for every number of threads and task. Raises ``halfbyte.Error`` where the model can't do it."""
    for count in threads:
        _note(f"loading {path}")
        engine = _core.Engine.load(path, "cpu", count, precision, quantize, None)
        info = engine.info()
        tasks = [task] if task else ["decode", "prefill"] if info["causal"] else ["encode"]
        _check(info, tasks, prompt_tokens, decode_tokens)
        if adapter is not None:
            engine.load_adapter(adapter, _ADAPTER)
        _note("measuring the machine")
        read_gb_per_s, peak_gflops = _core.read_bandwidth(count), _core.peak_gflops(count)
        for name in tasks:
            _note(f"measuring {name} on {count} thread{'s' if count > 1 else ''}")
            trial = _trial(engine, name, prompt_tokens, decode_tokens, batch, adapter and _ADAPTER)
            trial.once()  # warm: pages of the file, scratch memory
            tokens_per_s = trial.tokens / statistics.median(trial.once() for _ in range(repeats))
            gb_per_s = tokens_per_s * trial.bytes_per_token * 1e-9
            gflops = tokens_per_s * _flops_per_token(engine, trial.context) * 1e-9
            _note("")
            yield Row(
                task=name,
                threads=count,
                batch=trial.batch,
                prompt_tokens=prompt_tokens,
                decode_tokens=decode_tokens if name == "decode" else 0,
                tokens_per_s=tokens_per_s,
                bytes_per_token=trial.bytes_per_token,
                gb_per_s=gb_per_s,
                read_gb_per_s=read_gb_per_s,
                gflops=gflops,
                peak_gflops=peak_gflops,
                fraction=gb_per_s / read_gb_per_s if name == "decode" else gflops / peak_gflops,
                rss_mb=_resident_bytes() * 1e-6,
                load_s=float(info["load_seconds"]),
                model=path,
                architecture=info["architecture"],
                format=info["format"],
                storages=", ".join(sorted({weight["storage"] for weight in info["weights"]})),
                bits_per_weight=_bits_per_weight(info),
                precision=precision,
                adapter=adapter or "",
                isa=_core.isa(),
                cpu=_processor(),
                version=_core.__version__,
                commit=_commit(),
            )


# --- the tasks ---

_ADAPTER = "bench"


def _trial(
    engine: _core.Engine, task: str, prompt_tokens: int, decode_tokens: int, batch: int, adapter: str | None
) -> _Trial:
    info = engine.info()
    weight_bytes, cache_bytes = _weight_bytes(engine), _cache_bytes_per_token(info)
    if task == "encode":
        tokens, total = _tokens(info, prompt_tokens * batch), prompt_tokens * batch
        lengths = np.full(batch, prompt_tokens, np.int64)

        def encode() -> float:
            start = time.perf_counter()
            engine.embed(tokens, lengths, None, "mean", True, adapter)
            return time.perf_counter() - start

        return _Trial(encode, batch, total, prompt_tokens, weight_bytes / total)

    prompt = _tokens(info, prompt_tokens)
    after_prompt = decode_tokens if task == "decode" else 0

    def generate() -> float:
        # Greedy and without an end-of-sequence token: it goes on to the end, whatever it says.
        start = time.perf_counter()
        generation = engine.generate(prompt, after_prompt + 1, 0.0, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, [], [], adapter)
        while not generation.tokens and generation.step():  # the prompt, and the first token that comes with it
            pass
        if task == "decode":
            start = time.perf_counter()
            while len(generation.tokens) <= after_prompt and generation.step():
                pass
        seconds = time.perf_counter() - start
        if len(generation.tokens) != after_prompt + 1:
            raise InternalError(f"bench: {after_prompt + 1} tokens expected, {len(generation.tokens)} generated")
        return seconds

    if task == "prefill":
        return _Trial(generate, 1, prompt_tokens, (prompt_tokens + 1) / 2, weight_bytes / prompt_tokens + cache_bytes)
    context = prompt_tokens + (decode_tokens + 1) / 2
    return _Trial(generate, 1, decode_tokens, context, weight_bytes + context * cache_bytes)


def _tokens(info: dict[str, Any], count: int) -> NDArray[np.int32]:
    """Token ids spread over the vocabulary; what they say doesn't matter for the time."""
    ids: NDArray[np.int32] = (np.arange(count, dtype=np.int64) * 7919 % info["vocab_size"]).astype(np.int32)
    return ids


def _check(info: dict[str, Any], tasks: Sequence[str], prompt_tokens: int, decode_tokens: int) -> None:
    for task in tasks:
        if task != "encode" and not info["causal"]:
            raise InvalidArgumentError(
                f"bench: {task} needs a decoder, and {info['architecture']} is an encoder: use --task encode"
            )
        needed = prompt_tokens + (decode_tokens if task == "decode" else 0)
        if needed > info["max_positions"] > 0:
            raise InvalidArgumentError(
                f"bench: {task} needs {needed} positions and the model has {info['max_positions']}: "
                "lower --prompt-tokens or --decode-tokens"
            )


# --- what a pass costs, from the shapes and bytes of the loaded weights ---


def _weight_bytes(engine: _core.Engine) -> int:
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


def _flops_per_token(engine: _core.Engine, context: float) -> float:
    """Multiplications and additions of the linear layers, and of attention to `context` keys."""
    info = engine.info()
    linear = sum(rows * cols for _, rows, cols in engine.modules())
    return float(2 * linear + 4 * info["layers"] * info["heads"] * info["head_dim"] * context)


def _bits_per_weight(info: dict[str, Any]) -> float:
    elements = sum(weight["rows"] * weight["cols"] for weight in info["weights"])
    return 8 * sum(weight["bytes"] for weight in info["weights"]) / elements if elements else 0.0


# --- the conditions of a measurement ---


def _resident_bytes() -> int:
    return 1024 * int(_proc_field("/proc/self/status", "VmRSS").removesuffix("kB") or 0)


def _processor() -> str:
    return _proc_field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def _proc_field(path: str, name: str) -> str:
    """The first field of that name; empty where there is none (not Linux)."""
    try:
        for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""


def _commit() -> str:
    """Short hash of the checkout that this file is in, "+" behind it where tracked files differ; empty outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not (root / "csrc").is_dir():
        return ""
    try:
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        return _git(root, "rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# --- printing ---

_COLUMNS = ("task", "threads", "tokens/s", "MB/token", "GB/s", "readable", "GFLOP/s", "peak", "of roof", "RSS MB")
_HEADER = f"{_COLUMNS[0]:8}" + "".join(f"{column:>10}" for column in _COLUMNS[1:])


def _conditions(row: Row) -> str:
    adapter = f", adapter {row.adapter}" if row.adapter else ""
    return (
        f"{row.model}: {row.architecture}, {row.format}, {row.storages}, {row.bits_per_weight:.2f} bits a weight, "
        f"loaded in {row.load_s:.2f} s\n"
        f"{row.cpu}, {row.isa}, precision {row.precision}{adapter}, halfbyte {row.version} {row.commit}"
    ).rstrip()


def _line(row: Row) -> str:
    return (
        f"{row.task:8}{row.threads:10d}{row.tokens_per_s:10.1f}{row.bytes_per_token * 1e-6:10.2f}"
        f"{row.gb_per_s:10.1f}{row.read_gb_per_s:10.1f}{row.gflops:10.1f}{row.peak_gflops:10.1f}"
        f"{row.fraction:10.0%}{row.rss_mb:10.0f}"
    )


def _note(text: str) -> None:
    """Progress on a terminal; an empty text clears it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]
