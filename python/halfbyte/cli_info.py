"""``halfbyte info``: what a checkpoint holds and what it needs, read from its headers alone."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from . import _core
from .cli_devices import placement, print_devices, rows_of
from .cli_options import byte_count, positive
from .demo import demo_model
from .errors import CorruptFileError, Error, UnsupportedError
from .terminal import count_text, size_text

_DEFAULT_CONTEXT = 4096
# Bits a weight of linear layers as they are multiplied (docs/formats.md, "repacked as"), where the file has others.
_REPACKED_BITS = {
    **dict.fromkeys(("f64", "f32", "f16", "bf16"), 16.25),
    **dict.fromkeys(("q2_k", "q6_k", "iq1_m", "iq2_xs", "iq2_s", "nvfp4"), 17.0),
    **dict.fromkeys(("iq1_s", "iq2_xxs", "iq3_xxs", "iq3_s", "iq4_xs"), 5.0),
    **dict.fromkeys(("tq1_0", "tq2_0"), 4.07),
    "q3_k": 8.07,
    "q4_k": 6.0,
    "q5_0": 8.5,
    "q5_1": 9.0,
    "q5_k": 10.0,
    "mxfp4": 4.5,
}
_CACHE_BYTES = 2  # a cached key or value: 16-bit floats, but for --precision float32
# hyperparameter -> its names in config.json, and in GGUF after "<architecture>."
_KEYS: dict[str, tuple[tuple[str, ...], str]] = {
    "layers": (("num_hidden_layers", "n_layer"), "block_count"),
    "hidden_size": (("hidden_size", "n_embd"), "embedding_length"),
    "heads": (("num_attention_heads", "n_head"), "attention.head_count"),
    "kv_heads": (("num_key_value_heads",), "attention.head_count_kv"),
    "head_dim": (("head_dim",), "attention.key_length"),
    "max_positions": (("max_position_embeddings", "n_positions", "n_ctx"), "context_length"),
    "vocab_size": (("vocab_size",), "vocab_size"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``halfbyte info``."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or file (default: the demo model)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument(
        "--context",
        type=positive,
        metavar="N",
        help=f"tokens to reckon the cache for (default: {_DEFAULT_CONTEXT} or the model's most)",
    )
    parser.add_argument("--devices", action="store_true", help="list the devices of this machine, and no model")
    parser.add_argument("--device", metavar="NAME", help="cuda, cuda:1, ...: what of the model would lie in its memory")
    parser.add_argument(
        "--device-memory",
        type=byte_count,
        metavar="SIZE",
        help="what weights may take of it, as 6G (default: what is free)",
    )
    parser.set_defaults(run=run)


class _Tensor(NamedTuple):
    name: str
    shape: list[int]
    storage: str
    bytes: int
    parameters: int


def run(options: argparse.Namespace) -> int:
    """Run ``halfbyte info``."""
    if options.devices:
        if options.json:
            print(json.dumps(_core.list_devices(), indent=2))
        else:
            print_devices()
        return 0
    path = Path(options.model) if options.model is not None else demo_model()
    facts = describe_checkpoint(path, options.context)
    if options.device is not None and options.device != "cpu":
        checkpoint = _core.Checkpoint(str(path.expanduser()))
        facts["device"] = placement(checkpoint, options.device, options.device_memory)
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts, options.tensors)
    return 0


def describe_checkpoint(path: Path, context: int | None = None) -> dict[str, Any]:
    """Everything that ``halfbyte info --json`` prints. Sizes in bytes."""
    checkpoint = _core.Checkpoint(str(path.expanduser()))
    tensors = [_tensor(checkpoint, name) for name in checkpoint.names()]
    config = _config(checkpoint, str(path))
    sizes = _sizes(checkpoint, config)
    decoder = _is_decoder(checkpoint, config)
    storages: dict[str, dict[str, int]] = {}
    for tensor in tensors:
        entry = storages.setdefault(tensor.storage, {"tensors": 0, "parameters": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["parameters"] += tensor.parameters
        entry["bytes"] += tensor.bytes
    parameters = sum(t.parameters for t in tensors)
    weight_bytes = sum(t.bytes for t in tensors)
    facts: dict[str, Any] = {
        "path": str(path),
        "format": checkpoint.format,
        "architecture": checkpoint.architecture,
        "model_type": checkpoint.model_type,
        **sizes,
        "parameters": parameters,
        "bytes": weight_bytes,
        "bits_per_weight": 8 * weight_bytes / parameters if parameters else 0.0,
        "storages": dict(sorted(storages.items(), key=lambda item: -item[1]["bytes"])),
        "memory": _memory(sizes, _weights_in_memory(checkpoint, weight_bytes, decoder), context, decoder),
        "tensors": [tensor._asdict() for tensor in tensors],
    }
    return facts


def _tensor(checkpoint: _core.Checkpoint, name: str) -> _Tensor:
    shape = list(checkpoint.shape(name))
    try:
        weight = checkpoint.weight(name)
    except UnsupportedError as error:
        return _Tensor(name, shape, f"unsupported: {error}", 0, 0)
    rows, cols = weight.shape
    return _Tensor(name, shape, weight.format, weight.nbytes, rows * cols)


def _config(checkpoint: _core.Checkpoint, where: str) -> dict[str, Any]:
    """config.json, or the metadata of a GGUF file."""
    try:
        config = json.loads(checkpoint.metadata("halfbyte.config") or checkpoint.metadata_json())
    except json.JSONDecodeError as error:
        raise CorruptFileError(f"{where}: the config isn't JSON: {error}") from None
    if not isinstance(config, dict):
        raise CorruptFileError(f"{where}: the config must be a JSON object")
    return config


def _gguf_keys(checkpoint: _core.Checkpoint) -> bool:
    """True where hyperparameters have GGUF's names; halfbyte's own files carry a config.json."""
    return checkpoint.format == "gguf" and checkpoint.metadata("halfbyte.config") is None


def _is_decoder(checkpoint: _core.Checkpoint, config: dict[str, Any]) -> bool:
    """Whether it writes text, and so needs a cache of keys and values."""
    if _gguf_keys(checkpoint):
        return bool(config.get(f"{checkpoint.model_type}.attention.causal", checkpoint.model_type != "bert"))
    return checkpoint.architecture.endswith(("ForCausalLM", "LMHeadModel"))


def _sizes(checkpoint: _core.Checkpoint, config: dict[str, Any]) -> dict[str, int]:
    """Sizes that the config tells, under the names of _KEYS; those it doesn't tell are left out."""
    found: dict[str, int] = {}
    for name, (hf_names, gguf_name) in _KEYS.items():
        keys = [f"{checkpoint.model_type}.{gguf_name}"] if _gguf_keys(checkpoint) else hf_names
        value = next((config[key] for key in keys if config.get(key) is not None), None)
        if isinstance(value, int):
            found[name] = value
    if "heads" in found:
        found.setdefault("kv_heads", found["heads"])
        if "hidden_size" in found:
            found.setdefault("head_dim", found["hidden_size"] // found["heads"])
    return found


def _weights_in_memory(checkpoint: _core.Checkpoint, weight_bytes: int, decoder: bool) -> int:
    """Bytes of the weights in use: as the file has them, but for linear layers that are repacked while loading."""
    try:
        plan = checkpoint.plan()[1]
    except Error:
        return weight_bytes  # of what can't be run, the file's size is all that is known
    used = [(source, role, rows, cols) for source, _, _, role, rows, cols, *_ in plan]
    if decoder and not any(role == "output" for _, role, *_ in used):  # tied: its table is an output layer too
        used += [(source, "output", rows, cols) for source, role, rows, cols in used if role == "embedding"][:1]
    total = 0.0
    for source, role, rows, cols in used:
        weight = checkpoint.weight(source)
        repacked = role in ("linear", "output") and cols % 32 == 0 and weight.format in _REPACKED_BITS
        total += rows * cols * _REPACKED_BITS[weight.format] / 8 if repacked else weight.nbytes
    return round(total)


def _memory(sizes: dict[str, int], weight_bytes: int, context: int | None, decoder: bool) -> dict[str, int]:
    """What a run needs: the weights, and the keys and values of a conversation of `context` tokens."""
    most = sizes.get("max_positions", _DEFAULT_CONTEXT)
    tokens = min(context or _DEFAULT_CONTEXT, most)
    needed = ("layers", "kv_heads", "head_dim")
    per_token = 0
    if decoder and all(name in sizes for name in needed):
        per_token = 2 * sizes["layers"] * sizes["kv_heads"] * sizes["head_dim"] * _CACHE_BYTES
    return {
        "weights": weight_bytes,
        "context": tokens,
        "cache_per_token": per_token,
        "cache": per_token * tokens,
        "total": weight_bytes + per_token * tokens,
        "available": _available_memory(),
    }


def _available_memory() -> int:
    """Bytes that programs can still take, page cache included; 0 where the system doesn't tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _print(facts: dict[str, Any], tensors: bool) -> None:
    memory = facts["memory"]
    rows = [
        ("file", facts["path"]),
        ("format", facts["format"]),
        ("architecture", " ".join(dict.fromkeys((facts["architecture"], facts["model_type"])))),
        *((name.replace("_", " "), str(facts[name])) for name in _KEYS if name in facts),
        ("parameters", f"{count_text(facts['parameters'])} in {len(facts['tensors'])} tensors"),
        ("weights", f"{size_text(facts['bytes'])}, {facts['bits_per_weight']:.2f} bits a weight"),
    ]
    for storage, entry in facts["storages"].items():
        share = (
            f"{size_text(entry['bytes'])} in {entry['tensors']} tensors, {count_text(entry['parameters'])} parameters"
        )
        rows.append((f"  {storage}", share))
    context = f" with a context of {memory['context']} tokens" if memory["cache"] else ""
    rows.append(("memory", f"{size_text(memory['total'])}{context}"))
    rows.append(("  weights", f"{size_text(memory['weights'])} as they are multiplied"))
    if memory["cache"]:
        rows.append(("  cache", f"{size_text(memory['cache'])} ({size_text(memory['cache_per_token'])} a token)"))
    if memory["available"]:
        fits = "it fits" if memory["total"] <= memory["available"] else "it does not fit"
        rows.append(("this machine", f"{size_text(memory['available'])} available: {fits}"))
    if "device" in facts:
        rows += rows_of(facts["device"])
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        print(f"{name:<{width}}{value}")
    if tensors:
        print()
        for tensor in facts["tensors"]:
            print(f"{tensor['name']}  {tensor['shape']}  {tensor['storage']}  {size_text(tensor['bytes'])}")
