"""``halfbyte adapters inspect``: what an adapter is, and what it would do to a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .adapter_files import AdapterFiles, by_module, token_indices
from .convert_adapter import lora_scale
from .errors import Error
from .merge import read_adapter
from .model import load
from .terminal import size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``halfbyte adapters``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    inspect = actions.add_parser("inspect", help="tell what an adapter holds, and what of it a model can apply")
    inspect.add_argument("path", metavar="PATH", help="a PEFT folder, or a .gguf adapter")
    inspect.add_argument("model", metavar="MODEL", nargs="?", help="the model that it would be applied to")
    inspect.add_argument("--json", action="store_true", help="one JSON object")
    inspect.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run ``halfbyte adapters inspect``; 1 where the adapter does not fit the model."""
    facts = describe(Path(options.path), None if options.model is None else Path(options.model))
    if options.json:
        print(json.dumps(facts))
    else:
        _print(facts)
    return 1 if facts.get("error") else 0


def describe(path: Path, model: Path | None) -> dict[str, Any]:
    """Kind, size, modules with ranks and scales; with a model, what is applied where, or the error that says why."""
    facts: dict[str, Any] = {"path": str(path)}
    try:
        facts |= _of_files(read_adapter(path))
    except Error as error:
        if path.is_dir() or model is None:
            raise
        facts["note"] = str(error)  # an adapter of llama.cpp: the model tells
    if model is None:
        return facts
    with load(model, threads=1, precision="float32") as loaded:
        try:
            loaded.load_adapter(path, "inspected")
        except Error as error:
            return facts | {"model": str(model), "error": str(error)}
        info = loaded.adapter_info("inspected")
    return facts | {"model": str(model), "applied": info["modules"], "memory": info["bytes"], "kind": info["kind"]}


def _of_files(adapter: AdapterFiles) -> dict[str, Any]:
    modules = []
    for module, tensors in by_module(adapter).items():
        entry: dict[str, Any] = {"name": module or "prompt", "has": sorted(tensors)}
        first = tensors.get("lora_A") or tensors.get("embedding_A")
        if first is not None and len(first.shape) == 2:
            entry["rank"] = first.shape[0]
            try:
                entry["scale"] = lora_scale(adapter, module, first.shape[0])
            except Error as error:
                entry["error"] = str(error)
        if "tokens" in tensors:
            entry["tokens"] = token_indices(adapter.config, module)
        entry["shapes"] = {what: list(tensor.shape) for what, tensor in tensors.items()}
        modules.append(entry)
    config = adapter.config
    return {
        "kind": adapter.kind,
        "base": config.get("base_model_name_or_path"),
        "task": config.get("task_type"),
        "bytes": sum(tensor.data.nbytes for tensor in adapter.tensors.values()),
        "dtypes": sorted({tensor.dtype for tensor in adapter.tensors.values()}),
        "dora": bool(config.get("use_dora")),
        "rslora": bool(config.get("use_rslora")),
        "modules": modules,
    }


def _print(facts: dict[str, Any]) -> None:
    print(f"{facts['path']}: {facts.get('kind', 'adapter')}" + ("" if not facts.get("dora") else ", DoRA"))
    if facts.get("base"):
        print(f"trained on {facts['base']}" + (f" for {facts['task']}" if facts.get("task") else ""))
    if "bytes" in facts:
        print(f"{size_text(facts['bytes'])} of {', '.join(facts['dtypes'])} in {len(facts['modules'])} modules")
    applied = facts.get("applied")
    for entry in applied if applied is not None else facts.get("modules", []):
        words = ", ".join(entry.get("does") or entry.get("has") or [])
        rank = f"  rank {entry['rank']}" if entry.get("rank") else ""
        scale = f"  scale {entry['scale']:g}" if entry.get("scale") is not None else ""
        print(f"  {entry['name']}: {words}{rank}{scale}")
        if entry.get("error"):
            print(f"    {entry['error']}")
    if "error" in facts:
        print(f"does not fit {facts['model']}: {facts['error']}")
    elif applied is not None:
        print(f"fits {facts['model']}: {len(applied)} modules, {size_text(facts['memory'])} in memory")
