"""PEFT folders to GGUF adapter files and back.

What llama.cpp computes alike is written in its words: one alpha, scale = alpha / rank, A and B of linear layers. All
else is an adapter of the type "peft", which it refuses: a wrong scale or half of an adapter is worse than none.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .adapter_files import CONFIG, AdapterFiles, AdapterTensor, by_module, read_folder, write_folder
from .convert import check_room, inverse
from .convert_gguf import import_gguf, temporary
from .errors import InvalidArgumentError, UnsupportedError
from .files import parse_json

if TYPE_CHECKING:
    import gguf

_SAME = 1e-6  # of two scales, relative: alpha / rank in float32


@dataclass(frozen=True)
class AdapterConversion:
    """What was written."""

    path: Path
    type: str  # "lora": llama.cpp reads it too; "peft": halfbyte alone; "folder"
    reason: str  # why it is not "lora"
    tensors: int
    bytes: int


@dataclass(frozen=True)
class Layer:
    """A linear layer of a model, for the names of GGUF."""

    gguf: str
    order: tuple[int, ...]  # row i is row order[i] of llama.cpp; empty: the same


def convert_adapter(source: str | Path, target: str | Path, model: str | Path | None = None) -> AdapterConversion:
    """Write a PEFT folder as one GGUF adapter file, or such a file as the PEFT folder that it was made from.

    Args:
        source: a PEFT folder, or a .gguf file that this function wrote.
        target: a .gguf file, or a folder that does not exist.
        model: the base model, which llama.cpp's names of layers are taken from; without it the file is of the type
            "peft", which halfbyte alone reads.

    The way back gives the tensors and the config bit for bit.

    """
    source, target = Path(source), Path(target)
    if source.is_dir():
        return _to_gguf(read_folder(source), target, None if model is None else Path(model))
    adapter = read_gguf(source)
    write_folder(adapter, target)
    size = sum(file.stat().st_size for file in target.iterdir())
    return AdapterConversion(target, "folder", "", len(adapter.tensors), size)


def is_adapter(path: Path) -> bool:
    """A PEFT folder, or a GGUF file that says it is an adapter."""
    if path.is_dir():
        return (path / CONFIG).is_file() and not (path / "config.json").is_file()
    if path.suffix != ".gguf" or not path.is_file():
        return False
    with path.open("rb") as file:
        return b"adapter.type" in file.read(1 << 16)


def read_gguf(path: Path) -> AdapterFiles:
    """The PEFT folder inside a GGUF adapter file of halfbyte. Raises UnsupportedError for those of others."""
    reader = import_gguf().GGUFReader(path)

    def text(key: str) -> str | None:
        field = reader.get_field(key)
        return None if field is None else str(field.contents())

    config = text("halfbyte.adapter_config")
    if text("general.type") != "adapter" or config is None:
        raise UnsupportedError(f"{path}: no adapter that halfbyte wrote: halfbyte.adapter_config is missing")
    names = parse_json(text("halfbyte.adapter_tensors") or "{}", f"{path}: halfbyte.adapter_tensors")
    tensors = {}
    for tensor in reader.tensors:
        name, shape, order = names.get(tensor.name, [tensor.name, None, None])
        dims = tuple(int(n) for n in reversed(tensor.shape)) if shape is None else tuple(shape)
        data = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1)
        if order is not None:
            data = np.ascontiguousarray(data.reshape(dims[0], -1)[np.asarray(order)]).reshape(-1)
        tensors[name] = AdapterTensor(tensor.tensor_type.name, dims, data)
    return AdapterFiles(path, config, parse_json(config, str(path)), tensors)


def _to_gguf(adapter: AdapterFiles, target: Path, model: Path | None) -> AdapterConversion:
    package = import_gguf()
    if target.suffix != ".gguf":
        raise InvalidArgumentError(f"{target}: an adapter is written to a file that ends with .gguf")
    architecture, layers = _layers(model) if model is not None else ("", {})
    alpha, reason = _llama_alpha(adapter, layers) if model is not None else (0.0, "no model was given")
    check_room(target, sum(t.data.nbytes for t in adapter.tensors.values()) + (1 << 20))
    with temporary(target) as path:
        writer = package.GGUFWriter(path, architecture or "halfbyte")
        writer.add_type("adapter")
        writer.add_string("adapter.type", "peft" if reason else "lora")
        writer.add_string("halfbyte.adapter_config", adapter.config_text)
        if reason:
            entries = [(name, t.data, t) for name, t in sorted(adapter.tensors.items())]
        else:
            writer.add_float32("adapter.lora.alpha", alpha)
            if invocation := adapter.config.get("alora_invocation_tokens"):
                writer.add_array("adapter.alora.invocation_tokens", [int(token) for token in invocation])
            entries = _add_lora(writer, adapter, layers)
        kinds = {"F32": np.float32, "F16": np.float16, "BF16": np.uint8}
        for name, data, tensor in entries:
            view = data.view(kinds[tensor.dtype])
            shape = (*tensor.shape[:-1], tensor.shape[-1] * 2) if tensor.dtype == "BF16" else tensor.shape
            raw = package.GGMLQuantizationType.BF16 if tensor.dtype == "BF16" else None
            writer.add_tensor(name, view.reshape(shape), raw_dtype=raw)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
        writer.close()
    size = target.stat().st_size
    return AdapterConversion(target, "peft" if reason else "lora", reason, len(adapter.tensors), size)


def _layers(model: Path) -> tuple[str, dict[str, Layer]]:
    """The architecture, and by the names in a Hugging Face model its linear layers."""
    architecture, plan = _core.Checkpoint(str(model)).plan()
    return architecture, {
        hf.removesuffix(".weight"): Layer(gguf.removesuffix(".weight"), tuple(order))
        for _, hf, gguf, role, _, _, _, order in plan
        if role in ("linear", "output") and hf.endswith(".weight")
    }


def find_layer(layers: dict[str, Any], module: str) -> str | None:
    """The name in ``layers`` that a module of an adapter means: with or without the prefix of the base model."""
    if module in layers:
        return module
    found = [name for name in layers if name.endswith(f".{module}") and name.count(".") == module.count(".") + 1]
    return found[0] if len(found) == 1 else None


def _llama_alpha(adapter: AdapterFiles, layers: dict[str, Layer]) -> tuple[float, str]:
    """The one alpha that llama.cpp would divide by each rank, and "" ; or 0 and why there is none."""
    if adapter.kind != "LORA":
        return 0.0, f"its kind is {adapter.kind}"
    alphas = []
    for module, tensors in by_module(adapter).items():
        if tensors.keys() - {"lora_A", "lora_B"}:
            return 0.0, f"{module} has {min(tensors.keys() - {'lora_A', 'lora_B'})}"
        if find_layer(layers, module) is None:
            return 0.0, f"{module} is no linear layer of the model"
        rank = tensors["lora_B"].shape[1]
        alphas.append(lora_scale(adapter, module, rank) * rank)
    if not alphas or max(alphas) - min(alphas) > _SAME * abs(alphas[0]):
        return 0.0, "its layers have different values of alpha, or of rank with rsLoRA"
    if adapter.config.get("layer_replication"):
        return 0.0, "it repeats layers"
    return float(np.float32(alphas[0])), ""


def lora_scale(adapter: AdapterFiles, module: str, rank: int) -> float:
    """What B (A x) of a layer is multiplied by."""
    return _core.lora_scale(adapter.config_text, str(adapter.path), module, rank)


def _add_lora(
    writer: gguf.GGUFWriter, adapter: AdapterFiles, layers: dict[str, Layer]
) -> list[tuple[str, NDArray[np.uint8], AdapterTensor]]:
    """The tensors under llama.cpp's names; what they were called before goes into a key."""
    entries, names = [], {}
    for module, tensors in by_module(adapter).items():
        layer = layers[find_layer(layers, module) or ""]
        for what, suffix in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
            tensor, name = tensors[what], f"{layer.gguf}.weight.{suffix}"
            data, back = tensor.data, None
            if what == "lora_B" and layer.order:
                back = list(layer.order)
                data = np.ascontiguousarray(data.reshape(tensor.shape[0], -1)[inverse(back)]).reshape(-1)
            entries.append((name, data, tensor))
            saved = next(n for n, t in adapter.tensors.items() if t is tensor)
            names[name] = [saved, list(tensor.shape), back]
    writer.add_string("halfbyte.adapter_tensors", json.dumps(names, separators=(",", ":")))
    return entries
