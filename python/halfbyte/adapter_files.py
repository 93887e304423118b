"""Adapters as files: PEFT folders and GGUF files, read without loading a model, and written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import CorruptFileError, InputOutputError, InvalidArgumentError, NotFoundError, UnsupportedError
from .files import parse_json
from .safetensors_writer import SafetensorsWriter

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class AdapterTensor:
    """One tensor as it was saved."""

    dtype: str  # F32, F16, BF16
    shape: tuple[int, ...]
    data: NDArray[np.uint8]  # its bytes in order

    def values(self) -> NDArray[np.float32]:
        """As float32, in its shape."""
        if self.dtype == "F32":
            flat = self.data.view(np.float32)
        elif self.dtype == "F16":
            flat = self.data.view(np.float16).astype(np.float32)
        else:
            flat = (self.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class AdapterFiles:
    """What a PEFT folder holds."""

    path: Path
    config_text: str
    config: dict[str, Any]
    tensors: dict[str, AdapterTensor]

    @property
    def kind(self) -> str:
        """PEFT's peft_type."""
        return str(self.config.get("peft_type"))


def read_folder(folder: Path) -> AdapterFiles:
    """A PEFT folder. Raises NotFoundError, CorruptFileError, UnsupportedError (a dtype that is no float)."""
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise NotFoundError(f"{folder / name}: no such file; a PEFT folder has {CONFIG} and {TENSORS}")
    text = (folder / CONFIG).read_text(encoding="utf-8")
    config = parse_json(text, str(folder / CONFIG))
    if not isinstance(config, dict):
        raise CorruptFileError(f"{folder / CONFIG}: expected a JSON object")
    return AdapterFiles(folder, text, config, read_safetensors(folder / TENSORS))


def read_safetensors(path: Path) -> dict[str, AdapterTensor]:
    """Every tensor of a .safetensors file, mapped."""
    data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    size = int.from_bytes(data[:8].tobytes(), "little") if data.size >= 8 else _LONGEST_HEADER
    if size > min(_LONGEST_HEADER, data.size - 8):
        raise CorruptFileError(f"{path}: the header is said to have {size} bytes, the file has {data.size}")
    header = parse_json(data[8 : 8 + size].tobytes(), str(path))
    if not isinstance(header, dict):
        raise CorruptFileError(f"{path}: the header must be a JSON object")
    body, tensors = data[8 + size :], {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
            begin, end = (int(n) for n in entry["data_offsets"])
        except (TypeError, KeyError, ValueError):
            raise CorruptFileError(f"{path}: the entry of {name!r} is none of a tensor") from None
        if dtype not in _WIDTHS:
            raise UnsupportedError(f"{path}: {name!r} is {dtype}; adapters hold F32, F16 or BF16")
        count = 1
        for n in shape:
            count *= n
        if min(shape, default=0) < 0 or not 0 <= begin <= end <= body.size or end - begin != count * _WIDTHS[dtype]:
            raise CorruptFileError(f"{path}: {name!r} has shape {list(shape)} and bytes {begin} to {end}")
        tensors[name] = AdapterTensor(dtype, shape, np.array(body[begin:end]))
    return tensors


def write_folder(adapter: AdapterFiles, target: Path) -> None:
    """A PEFT folder, under its name when it is whole. Raises InvalidArgumentError where there is something already."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidArgumentError(f"{target}: there is something already; name a folder that doesn't exist")
    building = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        building.mkdir()
        try:
            (building / CONFIG).write_text(adapter.config_text, encoding="utf-8")
            with SafetensorsWriter(building / TENSORS) as writer:
                for name, tensor in sorted(adapter.tensors.items()):
                    writer.add(name, tensor.dtype, tensor.shape, tensor.data)
            if target.is_dir():
                target.rmdir()
            building.replace(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise InputOutputError(f"{target}: can't be written: {error.strerror or error}") from None


@dataclass(frozen=True)
class Part:
    """Where a tensor of an adapter goes: "layers.0.self_attn.q_proj" and "lora_A"."""

    module: str
    what: str


_SUFFIXES = (
    (".lora_A.weight", "lora_A"),
    (".lora_B.weight", "lora_B"),
    (".lora_B.bias", "lora_bias"),
    (".lora_embedding_A", "embedding_A"),
    (".lora_embedding_B", "embedding_B"),
    (".lora_magnitude_vector.weight", "magnitude"),
    (".lora_magnitude_vector", "magnitude"),
    (".ia3_l", "ia3"),
    (".token_adapter.trainable_tokens_delta", "tokens"),
    (".trainable_tokens_delta", "tokens"),
    (".original_module.weight", "original"),
    (".original_module.bias", "original"),
    (".ln_tuning_layers.weight", "weight"),
    (".ln_tuning_layers.bias", "bias"),
    (".token_adapter.base_layer.weight", "base"),
    (".base_layer.weight", "base"),
    (".base_layer.bias", "bias"),
    (".modules_to_save.weight", "weight"),
    (".modules_to_save.bias", "bias"),
    (".weight", "weight"),
    (".bias", "bias"),
)


def part_of(name: str) -> Part | None:
    """What the name of a tensor says; None: it is none that PEFT gives."""
    for prefix in ("base_model.model.", "base_model."):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            for suffix, what in _SUFFIXES:
                if rest.endswith(suffix) and len(rest) > len(suffix):
                    return Part(rest.removesuffix(suffix), what)
            return None
    return Part("", "prompt") if name == "prompt_embeddings" else None


def by_module(adapter: AdapterFiles) -> dict[str, dict[str, AdapterTensor]]:
    """The tensors of each module, by what they are. Raises UnsupportedError for a name that PEFT does not give."""
    modules: dict[str, dict[str, AdapterTensor]] = {}
    for name, tensor in sorted(adapter.tensors.items()):
        part = part_of(name)
        if part is None:
            raise UnsupportedError(f"{adapter.path}: the tensor {name!r} is none of an adapter of PEFT")
        modules.setdefault(part.module, {})[part.what] = tensor
    return modules


def token_indices(config: dict[str, Any], module: str) -> list[int]:
    """The tokens whose rows of ``module`` were trained."""
    indices = config.get("trainable_token_indices") or config.get("token_indices") or []
    if isinstance(indices, dict):
        return next((list(v) for k, v in indices.items() if module == k or module.endswith(f".{k}")), [])
    return list(indices)


def config_json(config: dict[str, Any]) -> str:
    """As PEFT writes it."""
    return json.dumps(config, indent=2, sort_keys=True)
