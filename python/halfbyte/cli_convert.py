"""``halfbyte convert``: a checkpoint into one GGUF file, or into a bitsandbytes folder."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .convert import WEIGHTS, Conversion, convert
from .convert_adapter import convert_adapter, is_adapter
from .convert_auto import Auto
from .errors import InvalidArgumentError
from .terminal import count_text, note, size_text

_LINES_EVERY = 10.0  # seconds between the lines of a log
_WORST = 10
_MOST_KEPT = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``halfbyte convert``."""
    parser.add_argument("source", metavar="SOURCE", help="folder or file that halfbyte opens")
    parser.add_argument("target", metavar="OUT", help="file (.gguf) to write; the folder, with --format bitsandbytes")
    parser.add_argument("--format", choices=("gguf", "bitsandbytes"), default="gguf", help="default: gguf")
    parser.add_argument(
        "--weights", choices=WEIGHTS, default="keep", help="storage of the linear layers (default: as it is)"
    )
    parser.add_argument("--block", type=int, default=64, help="elements that share a scale, nf4 and fp4 (default: 64)")
    parser.add_argument("--no-double-quant", action="store_true", help="scales of nf4 and fp4 as float32")
    parser.add_argument(
        "--keep-float", nargs="+", default=[], metavar="MODULE", help="modules that stay floats: names or patterns"
    )
    parser.add_argument(
        "--no-panels", action="store_true", help="nf4 and fp4 in the order of bitsandbytes, not of this processor"
    )
    parser.add_argument("--requantize", action="store_true", help="allow rounding of weights that are rounded already")
    parser.add_argument(
        "--auto",
        type=float,
        metavar="BITS",
        help="keep the layers that matter most wider than nf4, within an average of BITS a weight (4.2 to 16)",
    )
    parser.add_argument("--calibration", metavar="FILE", help="text that --auto measures on (default: its own)")
    parser.add_argument(
        "--adapter",
        metavar="ADAPTER",
        help="with --merge: put this adapter into the weights. Without: write it as a GGUF file for SOURCE, its model",
    )
    parser.add_argument("--merge", action="store_true", help="see --adapter; into 4-bit weights only with --requantize")
    parser.add_argument("--verify", action="store_true", help="read the output back and compare it with the source")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``halfbyte convert``."""
    if options.merge and options.adapter is None:
        raise InvalidArgumentError("convert: --merge needs --adapter")
    if (options.adapter is not None and not options.merge) or is_adapter(Path(options.source)):
        return _run_adapter(options)
    with _Progress() as progress:
        result = convert(
            options.source,
            options.target,
            format=options.format,
            weights=options.weights,
            block=options.block,
            double_quant=not options.no_double_quant,
            keep_float=options.keep_float,
            panels=not options.no_panels,
            requantize=options.requantize,
            auto=options.auto,
            calibration=options.calibration,
            verify=options.verify,
            adapter=options.adapter,
            progress=progress,
        )
    seconds = time.monotonic() - progress.started
    storages = ", ".join(f"{name} {count_text(count)}" for name, count in result.storages.items())
    print(
        f"{result.path}: {result.tensors} tensors, {size_text(result.source_bytes)} -> {size_text(result.bytes)} in "
        f"{seconds:.1f} s ({size_text(result.source_bytes / max(seconds, 1e-9))}/s); {storages}"
    )
    if result.auto is not None:
        _print_auto(result.auto)
    if result.merge is not None:
        print(
            f"merged and rounded again: on {result.merge.tokens} tokens the output is {result.merge.relative:.1%} off "
            f"that of the model with the adapter beside it (largest {result.merge.largest:.2e}), and "
            f"{result.merge.changed:.1%} of the most probable tokens are others"
        )
    if options.verify:
        _print_reports(result)
    return 0


def _run_adapter(options: argparse.Namespace) -> int:
    """An adapter alone: a PEFT folder into a GGUF file, or back."""
    if options.adapter is None:
        result = convert_adapter(options.source, options.target)
    else:
        result = convert_adapter(options.adapter, options.target, options.source)
    own = f"halfbyte alone reads it: {result.reason}"
    kinds = {"lora": "llama.cpp reads it too", "peft": own, "folder": "a PEFT folder"}
    print(f"{result.path}: {result.tensors} tensors, {size_text(result.bytes)}; {kinds[result.type]}")
    return 0


def _print_reports(result: Conversion) -> None:
    exact = sum(r.largest == 0 for r in result.reports)
    print(f"verified {len(result.reports)} matrices, {exact} of them equal; the worst:")
    width = max((len(r.name) for r in result.reports[:_WORST]), default=0)
    print(f"{'tensor':<{width}}  {'storage':<10}  {'largest':>9}  {'rel. RMS':>9}  {'1 - cosine':>10}")
    for r in result.reports[:_WORST]:
        angle = max(0.0, 1 - r.cosine)
        print(f"{r.name:<{width}}  {r.storage:<10}  {r.largest:9.2e}  {r.relative:9.2e}  {angle:10.2e}")


def _print_auto(auto: Auto) -> None:
    print(
        f"auto: {auto.bits:.3f} bits a weight of {auto.budget:g}; {len(auto.kept)} of {auto.layers} linear layers are "
        f"wider than {auto.narrow_format} ({auto.narrow_bits:.3f})"
    )
    width = max((len(k.name) for k in auto.kept[:_MOST_KEPT]), default=0)
    if auto.kept:
        print(f"{'layer':<{width}}  {'storage':<8}  {'bits':>6}  moves the output, {auto.narrow_format} alone")
    for k in auto.kept[:_MOST_KEPT]:
        print(f"{k.name:<{width}}  {k.storage:<8}  {k.bits:6.2f}  {k.moves:.2e}")
    if len(auto.kept) > _MOST_KEPT:
        print(f"... and {len(auto.kept) - _MOST_KEPT} that move it less")
    words = "" if auto.words else " (random ids: there is no tokenizer)"
    print(f"distance from the source{words}: divergence, and difference of the output, relative RMS")
    for text, tokens in auto.tokens.items():
        a, b = auto.narrow[text], auto.auto[text]
        print(
            f"  {text}, {tokens} tokens: {auto.narrow_format} {a.divergence:.3e}, {a.relative:.2%}; "
            f"auto {b.divergence:.3e}, {b.relative:.2%}"
        )


class _Progress:
    """A bar with the time left on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self._last = self.started
        self._phase, self._done = self.started, 0  # --auto measures first, and then all begins anew
        self._terminal = sys.stderr.isatty()

    def __call__(self, tensor: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < self._done:
            self._phase = now
        self._done = done
        if now - self._last < (0.2 if self._terminal else _LINES_EVERY) or not tensor:
            return
        self._last = now
        share = done / total if total else 1.0
        left = (now - self._phase) * (1 - share) / share if share > 0 else 0.0
        amount = "" if tensor.startswith("measuring ") else f"{size_text(done)} of {size_text(total)}, "
        text = f"{share:4.0%}  {amount}{left:.0f} s left  {tensor}"
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            note(f"convert: {text}")

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal and self._last != self.started:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
