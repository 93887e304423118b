"""Arguments that several commands share, and the loading they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from .demo import demo_model
from .errors import InvalidArgumentError
from .model import Model, load
from .terminal import ProgressBar, count_text

PRECISIONS = ("high", "fast", "float32")
KV_CACHES = ("f16", "bf16", "f32", "int8")
_QUANTIZE = ("nf4", "fp4", "int8", "bf16", "f16")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, and how to run it."""
    group = parser.add_argument_group("model")
    add = group.add_argument
    add("-m", "--model", metavar="MODEL", help="folder or file (default: the demo model)")
    add("--quantize", choices=_QUANTIZE, help="round the linear layers while loading (default: the values they hold)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, cuda:1, ... or auto (default: %(default)s)")
    add(
        "--device-memory",
        type=byte_count,
        metavar="SIZE",
        help="what weights may take of a GPU's memory, as 6G; those beyond stay in the host's (default: what is free)",
    )
    add("--threads", type=int, metavar="N", help="default: one per core")
    add(
        "--precision",
        default="high",
        choices=PRECISIONS,
        help="high: better than 16-bit floats; fast: may use 8-bit activations; float32: the reference "
        "(default: %(default)s)",
    )
    add(
        "--kv-cache",
        choices=KV_CACHES,
        help="what is kept of the tokens read; int8: a scale for each head and token (default: f16)",
    )
    add("--adapter", metavar="FOLDER", help="apply a PEFT LoRA adapter, unmerged")


def load_model(options: argparse.Namespace) -> Model:
    """The model that add_model_arguments() describes, with the adapter, if any, under the name "default"."""
    path = Path(options.model) if options.model is not None else demo_model()
    with ProgressBar(f"loading {path.name}") as bar:
        model = load(
            path,
            quantize=options.quantize,
            device=options.device,
            threads=options.threads,
            precision=options.precision,
            kv_cache=options.kv_cache,
            device_memory=options.device_memory,
            progress=bar,
        )
        if options.adapter is not None:
            model.load_adapter(options.adapter)
    return model


def adapter_name(options: argparse.Namespace) -> str | None:
    """For the ``adapter`` keyword of a model made by load_model()."""
    return None if options.adapter is None else "default"


def describe(model: Model) -> str:
    """What runs, in one line: name, format, storages, bits a weight, device."""
    info = model.info
    kinds = {"gguf": "GGUF", "bitsandbytes": "bitsandbytes"}
    name = Path(info["path"]).name
    storages = "+".join(kind for kind, count in info["storages"].items() if count > 0.001 * info["parameters"])
    return (
        f"{name}: {count_text(info['parameters'])} parameters, {kinds.get(info['format'], info['format'])} "
        f"({info['architecture']}), {storages}, {info['bits_per_weight']:.1f} bits a weight, {info['device']}"
    )


def byte_count(text: str) -> int:
    """An argparse type: bytes, "800M", "6G" (powers of 1000)."""
    factor = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}.get(text[-1:].upper(), 1)
    try:
        value = float(text if factor == 1 else text[:-1]) * factor
    except ValueError:
        value = 0
    if not 1 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected a number of bytes such as 800M or 6G, found {text!r}")
    return int(value)


def positive(text: str) -> int:
    """An argparse type: a whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return value


def read_text_argument(text: str | None, stdin_text: str) -> str:
    """A text argument, or what came through stdin in its place."""
    value = stdin_text if text is None or text == "-" else text
    if not value:
        raise InvalidArgumentError("the prompt is empty")
    return value
