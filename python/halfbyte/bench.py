"""``halfbyte bench``: how fast a model runs, beside what the machine can do, measured in the same run.

No pass over a network can be quicker than its bytes can be read, nor than its products can be multiplied. Every row has
both roofs beside it, measured in the same run on the same number of threads, and says which of the two binds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import _core, bench_models
from .bench_adapters import HEADER, line, measure_adapters
from .bench_machine import commit, measure_roofs, peak_resident_bytes, processor, resident_bytes
from .bench_tasks import ADAPTER, TASKS, Size, bits_per_weight, check, flops_per_token, make_trial
from .cli_options import PRECISIONS, positive
from .demo import demo_model
from .errors import InvalidArgumentError

FORMATS = ("nf4", "fp4", "int8", "bf16", "f16")


@dataclass(frozen=True)
class Row:
    """One measurement; a JSON object of ``halfbyte bench --json``. GB are 1e9 bytes, GFLOP 1e9 operations."""

    task: str  # decode: one token after another; prefill: a prompt up to its first token;
    # batch: one token after another of several sequences; encode: a batch of sentences
    threads: int
    batch: int  # sequences at once
    prompt_tokens: int  # a sequence
    decode_tokens: int  # timed, a sequence; 0 but for decode and batch
    tokens_per_s: float  # of all sequences together; median of the repeats
    bytes_per_token: float  # weights and cached keys and values that must be read, shared among the tokens of one pass
    gb_per_s: float  # tokens_per_s * bytes_per_token
    read_gb_per_s: float  # what these threads can read from memory, measured in this run
    gflops: float  # multiplications and additions of linear layers and attention, per second
    peak_gflops: float  # what these threads can multiply in the arithmetic of this precision, measured in this run
    peak_arithmetic: str  # which that is: int16 for high, int8 for fast, float32
    peak_float32_gflops: float  # the others, for comparison
    peak_bfloat16_gflops: float  # 0: the processor has no instruction for it
    peak_int16_gflops: float
    peak_int8_gflops: float
    fraction: float  # of the roof that binds: the larger of gb_per_s / read_gb_per_s and gflops / peak_gflops
    roof: str  # which of the two it is: memory or arithmetic
    rss_mb: float  # resident memory of the process after the measurement (1e6 bytes), mapped file pages included
    peak_rss_mb: float  # the most that it was since the process began
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``halfbyte bench``."""
    add = parser.add_argument
    add("model", nargs="?", help="folder or file; without it (and without --shape) the demo model")
    add(
        "--shape",
        choices=tuple(bench_models.SHAPES),
        help="in place of a model: make one of these sizes with random weights, below ~/.cache/halfbyte/bench",
    )
    add(
        "--weights",
        choices=bench_models.WEIGHTS,
        default="nf4",
        help="of the linear layers of a --shape; nf4 is double-quantised (%(default)s)",
    )
    add("--task", choices=TASKS, help="default: decode and prefill for a decoder, encode for an encoder")
    add("--threads", type=_counts, metavar="N[,N...]", help="default: one per core")
    add("--prompt-tokens", type=positive, default=128, metavar="N", help="of a prompt or sentence (%(default)s)")
    add("--decode-tokens", type=positive, default=64, metavar="N", help="timed one by one (%(default)s)")
    add("--batch", type=positive, metavar="N", help="sequences at once: 16 for batch, 8 for encode")
    add("--repeats", type=positive, default=5, metavar="N", help="runs, of which the median counts (%(default)s)")
    add("--precision", choices=PRECISIONS, default="high", help="default: %(default)s")
    add("--quantize", choices=FORMATS, default="", help="round the linear layers while loading")
    add(
        "--output-layer",
        choices=FORMATS,
        default="",
        help="what the layer over the vocabulary is rounded to while loading; a --shape is made with it",
    )
    add("--adapter", metavar="PATH", help="a PEFT folder, applied unmerged; random:R makes one of rank R of all layers")
    add(
        "--adapters",
        type=positive,
        metavar="N",
        help="what made adapters cost: one at decode and prefill, N different ones in a batch of N, 64 idle; each in "
        "turns with the same task without. --adapter random:R sets the rank (16)",
    )
    add("--json", action="store_true", help="one JSON object a line instead of a table")


def run(args: argparse.Namespace) -> int:
    """Measure, print rows as they are ready, and return the exit code. Errors of loading and running are raised."""
    path, output_layer = _model(args)
    if args.adapters is not None:
        return _run_adapters(args, path, output_layer)
    rows = measure(
        path,
        task=args.task,
        threads=args.threads or [_core.available_cores()],
        prompt_tokens=args.prompt_tokens,
        decode_tokens=args.decode_tokens,
        batch=args.batch,
        repeats=args.repeats,
        precision=args.precision,
        quantize=args.quantize,
        output_layer=output_layer,
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


def _run_adapters(args: argparse.Namespace, path: str, output_layer: str) -> int:
    size = Size(args.prompt_tokens, args.decode_tokens, args.adapters)
    for threads in args.threads or [_core.available_cores()]:
        rows = measure_adapters(
            path,
            threads=threads,
            count=args.adapters,
            rank=_rank(args.adapter or "random:16"),
            size=size,
            repeats=args.repeats,
            precision=args.precision,
            output_layer=output_layer,
        )
        for index, row in enumerate(rows):
            if args.json:
                print(json.dumps(asdict(row)), flush=True)
                continue
            if index == 0:
                print(
                    f"{path}, made adapters of rank {row.rank}, precision {row.precision}, {_core.isa()}, {processor()}"
                )
                print(HEADER)
            print(line(row), flush=True)
    return 0


def _rank(adapter: str) -> int:
    """Of random:RANK. Raises InvalidArgumentError."""
    kind, _, rank = adapter.partition(":")
    if kind != "random" or not rank.isdecimal() or int(rank) < 1:
        raise InvalidArgumentError(f"bench: expected a PEFT folder or random:RANK, found {adapter!r}")
    return int(rank)


def _model(args: argparse.Namespace) -> tuple[str, str]:
    """The path of what is to be measured, and what its output layer is rounded to while loading."""
    if args.shape is None:
        return (str(demo_model()) if args.model is None else args.model), args.output_layer
    if args.model is not None:
        raise InvalidArgumentError("bench: name a model or a --shape, not both")
    wanted = args.output_layer or ("nf4" if args.weights == "nf4" else args.weights)
    stored = wanted if wanted in bench_models.WEIGHTS else "bf16"
    _note(f"making {args.shape}")
    path = bench_models.made_model(args.shape, weights=args.weights, output_layer=stored)
    return str(path), "" if stored == wanted else wanted


def measure(
    path: str,
    *,
    task: str | None = None,
    threads: Sequence[int],
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    batch: int | None = None,
    repeats: int = 5,
    precision: str = "high",
    quantize: str = "",
    output_layer: str = "",
    adapter: str | None = None,
) -> Iterator[Row]:
    """Yield one row for every number of threads and task. Raises ``halfbyte.Error`` where the model can't do it."""
    for count in threads:
        _note(f"loading {path}")
        engine = _core.Engine.load(path, "cpu", count, precision, quantize, None, output_layer)
        info = engine.info()
        tasks = [task] if task else ["decode", "prefill"] if info["causal"] else ["encode"]
        sizes = {name: Size(prompt_tokens, decode_tokens, batch or (16 if name == "batch" else 8)) for name in tasks}
        for name in tasks:
            check(info, [name], sizes[name])
        adapter_bytes = _load_adapter(engine, adapter)
        _note("measuring the machine")
        roofs = measure_roofs(count)
        arithmetic, peak_gflops = roofs.binding(precision)
        for name in tasks:
            _note(f"measuring {name} on {count} thread{'s' if count > 1 else ''}")
            trial = make_trial(engine, name, sizes[name], adapter and ADAPTER, adapter_bytes)
            trial.once()  # warm: pages of the file, scratch memory
            tokens_per_s = trial.tokens / statistics.median(trial.once() for _ in range(repeats))
            gb_per_s = tokens_per_s * trial.bytes_per_token * 1e-9
            gflops = tokens_per_s * flops_per_token(engine, name, sizes[name], trial.context) * 1e-9
            of_memory, of_arithmetic = gb_per_s / roofs.read_gb_per_s, gflops / peak_gflops
            _note("")
            yield Row(
                task=name,
                threads=count,
                batch=trial.batch,
                prompt_tokens=prompt_tokens,
                decode_tokens=trial.decode_tokens,
                tokens_per_s=tokens_per_s,
                bytes_per_token=trial.bytes_per_token,
                gb_per_s=gb_per_s,
                read_gb_per_s=roofs.read_gb_per_s,
                gflops=gflops,
                peak_gflops=peak_gflops,
                peak_arithmetic=arithmetic,
                peak_float32_gflops=roofs.float32,
                peak_bfloat16_gflops=roofs.bfloat16,
                peak_int16_gflops=roofs.int16,
                peak_int8_gflops=roofs.int8,
                fraction=max(of_memory, of_arithmetic),
                roof="memory" if of_memory > of_arithmetic else "arithmetic",
                rss_mb=resident_bytes() * 1e-6,
                peak_rss_mb=peak_resident_bytes() * 1e-6,
                load_s=float(info["load_seconds"]),
                model=path,
                architecture=info["architecture"],
                format=info["format"],
                storages=", ".join(sorted({weight["storage"] for weight in info["weights"]})),
                bits_per_weight=bits_per_weight(info),
                precision=precision,
                adapter=adapter or "",
                isa=_core.isa(),
                cpu=processor(),
                version=_core.__version__,
                commit=commit(),
            )


def _load_adapter(engine: _core.Engine, adapter: str | None) -> int:
    """Attach it under the name ADAPTER, and return the bytes of its factors as they are stored."""
    if adapter is None:
        return 0
    path = Path(adapter)
    if adapter.startswith("random:"):
        path = bench_models.made_adapter(engine, _rank(adapter))
    engine.load_adapter(str(path), ADAPTER, False, False)
    return sum(file.stat().st_size for file in path.glob("adapter_model*.safetensors"))


# --- printing ---

_COLUMNS = ("task", "threads", "tokens/s", "MB/token", "GB/s", "readable", "GFLOP/s", "peak", "of roof", "RSS MB")
_HEADER = f"{_COLUMNS[0]:8}" + "".join(f"{column:>10}" for column in _COLUMNS[1:])  # peak: that of the precision


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
