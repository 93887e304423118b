"""The writing of folders that transformers and bitsandbytes load: 4-bit linear layers, the rest as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from .convert import Conversion, Planned, Progress, Settings, check_room, converted, from_planes
from .convert_gguf import SIDE_FILES
from .errors import InputOutputError, InvalidArgumentError, UnsupportedError
from .safetensors_writer import SafetensorsWriter

_DTYPES = {"f32": ("F32", 4), "f16": ("F16", 2), "bf16": ("BF16", 2)}
_ROUNDED = ("nf4", "fp4", "int8_rows")


def write_folder(
    checkpoint: _core.Checkpoint,
    source: Path,
    plan: Sequence[Planned],
    settings: Settings,
    target: Path,
    progress: Progress | None,
) -> Conversion:
    """See :func:`halfbyte.convert.convert`."""
    if settings.weights not in ("keep", "nf4", "fp4"):
        raise InvalidArgumentError(f"convert: a bitsandbytes folder can't hold weights={settings.weights!r}")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidArgumentError(f"{target}: there is something already; name a folder that doesn't exist")
    if not checkpoint.has_reference_rows:
        text = "a GGUF file has no config.json to write; convert the folder that it was made from"
        raise UnsupportedError(f"{source}: {text}")
    for tensor in plan:
        if tensor.storage.removesuffix("_panels") not in (*_ROUNDED, *_DTYPES):
            raise UnsupportedError(f"{source}: {tensor.source} is {tensor.storage}, which bitsandbytes can't hold")
    check_room(target, sum(checkpoint.weight(t.source).nbytes for t in plan) + (64 << 20))
    building = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        building.mkdir()
        try:
            result = _write(checkpoint, source, plan, settings, building, progress)
            if target.is_dir():
                target.rmdir()
            building.replace(target)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    except OSError as error:
        raise InputOutputError(f"{target}: can't be written: {error.strerror or error}") from None
    result.path = target
    return result


def _write(
    checkpoint: _core.Checkpoint,
    source: Path,
    plan: Sequence[Planned],
    settings: Settings,
    folder: Path,
    progress: Progress | None,
) -> Conversion:
    rounded = {t.storage.removesuffix("_panels") for t in plan} & set(_ROUNDED)
    if len(rounded) > 1:
        raise UnsupportedError(f"{source}: a folder of bitsandbytes has one of its types, found {sorted(rounded)}")
    config = json.loads(checkpoint.metadata("halfbyte.config") or checkpoint.metadata_json())
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    result = Conversion(folder, len(plan), sum(checkpoint.weight(t.source).nbytes for t in plan), 0)
    ops = _core.Ops("cpu", 0, "high")
    path = folder / "model.safetensors"
    nested = False
    with SafetensorsWriter(path) as writer:
        done = 0
        for tensor in plan:
            if progress is not None:
                progress(tensor.source, done, result.source_bytes)
            done += checkpoint.weight(tensor.source).nbytes
            if tensor.storage.removesuffix("_panels") in ("nf4", "fp4"):
                weight = converted(checkpoint, tensor, settings, ops)
                weight = from_planes(weight) if weight.format.endswith("_panels") else weight
                nested = nested or weight.nested_block_size > 0
                _add_four_bit(writer, tensor.hf, weight, tensor, dtype)
            elif tensor.storage == "int8_rows":
                _add_eight_bit(writer, tensor.hf, checkpoint.weight(tensor.source))
            else:
                _add_floats(writer, checkpoint, tensor)
            if tensor.role != "vector":
                name = tensor.storage.removesuffix("_panels")
                result.storages[name] = result.storages.get(name, 0) + tensor.rows * tensor.cols
        kept = _add_unused(writer, checkpoint, plan, dtype) if checkpoint.format != "gguf" else []
    if rounded:
        config["quantization_config"] = _quantization(next(iter(rounded)), nested, dtype)
        # A pooler that a GGUF file has left behind is made anew by transformers, which can't make a quantised one.
        lost = config.get("model_type") == "bert" and not any("pooler" in name for name in checkpoint.names())
        floats = [*_float_modules(plan), *kept, *(["pooler.dense"] if lost else [])]
        config["quantization_config"]["llm_int8_skip_modules"] = floats or None
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    carried = checkpoint.metadata("halfbyte.files")
    origin = source if source.is_dir() else source.parent
    files = (
        json.loads(carried)
        if carried is not None
        else {n: (origin / n).read_text(encoding="utf-8") for n in SIDE_FILES if (origin / n).is_file()}
    )
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    result.bytes = path.stat().st_size
    if progress is not None:
        progress("", result.source_bytes, result.source_bytes)
    return result


def _quantization(kind: str, nested: bool, dtype: str) -> dict[str, Any]:
    """As transformers saves a BitsAndBytesConfig, without the modules that are left out."""
    eight = kind == "int8_rows"
    config: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": not eight, "load_in_8bit": eight}
    if not eight:
        config |= {
            "bnb_4bit_quant_type": kind,
            "bnb_4bit_use_double_quant": nested,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
        }
    return config


def _add_eight_bit(writer: SafetensorsWriter, name: str, weight: _core.Weight) -> None:
    """LLM.int8(): levels by rows, a scale a row, and the number of that layout."""
    layer = name.removesuffix(".weight")
    (_, _, levels), (_, _, scales) = weight.file_parts()
    writer.add(name, "I8", list(weight.shape), levels)
    writer.add(f"{layer}.SCB", "F32", [weight.shape[0]], scales)
    writer.add(f"{layer}.weight_format", "U8", [], np.zeros(1, np.uint8))


def _add_four_bit(writer: SafetensorsWriter, name: str, weight: _core.Weight, tensor: Planned, dtype: str) -> None:
    """Keys and values as bitsandbytes' QuantState.as_dict(packed=True) has them."""
    planes = weight.planes()
    nested = weight.nested_block_size > 0
    state: dict[str, Any] = {"quant_type": weight.format, "blocksize": weight.block_size, "dtype": dtype}
    state["shape"] = [tensor.rows, tensor.cols]
    if nested:
        state |= {"nested_blocksize": weight.nested_block_size, "nested_dtype": "float32"}
        state["nested_offset"] = planes["nested_offset"]
    codes = planes["codes"]
    writer.add(name, "U8", [codes.size, 1], codes)
    writer.add(f"{name}.absmax", "U8" if nested else "F32", [planes["absmax"].size], planes["absmax"])
    writer.add(f"{name}.quant_map", "F32", [16], planes["quant_map"])
    if nested:
        writer.add(f"{name}.nested_absmax", "F32", [planes["nested_absmax"].size], planes["nested_absmax"])
        writer.add(f"{name}.nested_quant_map", "F32", [256], planes["nested_quant_map"])
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    writer.add(f"{name}.quant_state.bitsandbytes__{weight.format}", "U8", [text.size], text)


def _float_modules(plan: Sequence[Planned]) -> list[str]:
    return [t.hf.removesuffix(".weight") for t in plan if t.role in ("linear", "output") and t.storage in _DTYPES]


def _add_unused(
    writer: SafetensorsWriter, checkpoint: _core.Checkpoint, plan: Sequence[Planned], dtype: str
) -> list[str]:
    """What halfbyte has no use for (a pooler, a head), as it is. Gives the modules of it that are floats.

    Buffers of integers that old files hold (position_ids) are left out: transformers makes them itself.
    """
    floats = []
    for name in sorted(set(checkpoint.names()) - {t.source for t in plan}):
        try:
            weight = checkpoint.weight(name)
        except UnsupportedError:
            continue
        rows, cols = weight.shape
        tensor = Planned(name, name, "", "vector", rows, cols, False, (), weight.format, weight.format)
        if weight.format in _DTYPES:
            _add_floats(writer, checkpoint, tensor)
            if len(checkpoint.shape(name)) == 2:
                floats.append(name.removesuffix(".weight"))
        elif weight.format == "int8_rows":
            _add_eight_bit(writer, name, weight)
        else:
            _add_four_bit(writer, name, weight, tensor, dtype)
    return floats


def _add_floats(writer: SafetensorsWriter, checkpoint: _core.Checkpoint, tensor: Planned) -> None:
    weight = checkpoint.weight(tensor.source)
    kind, width = _DTYPES.get(weight.format, ("F32", 4))
    [(_, _, data)] = weight.file_parts()
    shape = checkpoint.shape(tensor.source)
    if data.nbytes != int(np.prod(shape)) * width:
        raise UnsupportedError(f"{tensor.source}: {data.nbytes} bytes for shape {shape}")
    writer.add(tensor.hf, kind, shape, data)
