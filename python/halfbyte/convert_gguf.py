"""The writing of GGUF files, through the package ``gguf``: see docs/formats.md for what halfbyte's own keys say."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .convert import Conversion, Planned, Progress, Settings, check_room, converted, inverse, source_hash, vector
from .convert_vocabulary import add_pooling, add_vocabulary
from .errors import InputOutputError, UnsupportedError

if TYPE_CHECKING:
    import gguf

ALIGNMENT = 64  # kernels load whole lines
SIDE_FILES = (  # of a folder: what says how texts become tokens and tokens vectors
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)
_NOT_COPIED = (
    "GGUF.",
    "split.",
    "general.architecture",
    "general.alignment",
    "general.quantization_version",
    "halfbyte.",
)


def import_gguf() -> Any:
    """The package, or the error that says how to get it."""
    try:
        import gguf  # noqa: PLC0415
    except ImportError:
        text = 'GGUF files are written through the package gguf: pip install "halfbyte[convert]"'
        raise UnsupportedError(text) from None
    return gguf


def write_gguf(
    checkpoint: _core.Checkpoint,
    source: Path,
    architecture: str,
    plan: Sequence[Planned],
    settings: Settings,
    target: Path,
    progress: Progress | None,
) -> Conversion:
    """See :func:`halfbyte.convert.convert`."""
    package = import_gguf()
    ops = _core.Ops("cpu", 0, "high")
    # Own storages have the rows of transformers. A file of GGUF's types alone has those of llama.cpp, which reads it.
    reference = any(t.combined for t in plan)
    entries = [_entry(checkpoint, t, settings, package) for t in plan]
    total = sum(size for entry in entries for _, _, _, size, _ in entry)
    check_room(target, total + (64 << 20))
    with temporary(target) as path:
        writer = package.GGUFWriter(path, architecture)
        writer.add_custom_alignment(ALIGNMENT)
        _add_metadata(writer, package, checkpoint, source, architecture, plan, settings, reference)
        for entry in entries:
            for name, shape, dtype, size, raw in entry:
                writer.add_tensor_info(name, shape, dtype, size, raw)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        result = Conversion(target, len(plan), sum(checkpoint.weight(t.source).nbytes for t in plan), 0)
        done = 0
        for tensor, entry in zip(plan, entries, strict=True):
            if progress is not None:
                progress(tensor.source, done, result.source_bytes)
            arrays = _arrays(checkpoint, tensor, settings, ops, reference)
            for (name, _, _, size, _), array in zip(entry, arrays, strict=True):
                if array.nbytes != size:
                    raise UnsupportedError(f"{name}: {size} bytes were announced, and {array.nbytes} were made")
                writer.write_tensor_data(array)
            done += checkpoint.weight(tensor.source).nbytes
            if tensor.role != "vector":
                result.storages[tensor.storage] = result.storages.get(tensor.storage, 0) + tensor.rows * tensor.cols
        for file in writer.fout:
            file.flush()
            os.fsync(file.fileno())
        writer.close()
    result.bytes = target.stat().st_size
    if progress is not None:
        progress("", done, result.source_bytes)
    return result


@contextlib.contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A name beside ``target`` that becomes it at the end; what earlier runs left there, killed, is removed."""
    for old in target.parent.glob(f".{target.name}.*.tmp"):
        pid = old.suffixes[-2][1:] if len(old.suffixes) > 1 else ""
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            old.unlink(missing_ok=True)
    path = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield path
        path.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        kept = " (it is as it was before)" if target.is_file() else ""
        raise InputOutputError(f"{target}: can't be written{kept}: {error.strerror or error}") from None
    finally:
        path.unlink(missing_ok=True)


# ---- tensors

_Entry = tuple[str, tuple[int, ...], Any, int, Any]  # name, shape, numpy dtype, bytes, GGUF type or None


def _entry(checkpoint: _core.Checkpoint, tensor: Planned, settings: Settings, package: Any) -> list[_Entry]:
    """The tensors of the file that hold one of the model, with their sizes, which are known before their values."""
    rows, cols, name = tensor.rows, tensor.cols, tensor.gguf
    if tensor.role == "vector":
        return [(name, (cols,), np.dtype(np.float32), 4 * cols, None)]
    if not tensor.combined:
        kind = package.GGMLQuantizationType[tensor.storage.upper()]
        block, size = package.GGML_QUANT_SIZES[kind]
        row = cols // block * size
        return [(name, (rows, row), np.dtype(np.uint8), rows * row, kind)]
    block, nested = _blocks(checkpoint, tensor, settings)

    def part(suffix: str, count: int, width: int) -> _Entry:
        dtype = np.dtype(np.int8 if width == 1 else np.float32)
        return f"{name}.{suffix}", (count,), dtype, count * width, None

    if tensor.storage == "int8":
        return [part("levels", rows * cols, 1), part("scales", rows * cols // block, 4)]
    if tensor.storage == "int8_rows":
        return [part("levels", rows * cols, 1), part("SCB", rows, 4)]
    blocks = -(-rows * cols // block)
    if tensor.storage.endswith("_panels"):
        padded = -(-rows // 16) * 16
        parts = [
            part("codes", padded * cols // 2, 1),
            part("absmax", padded * cols // block, 1 if nested else 4),
            part("maps", 16 + (256 if nested else 0), 4),
            part("places", 128, 1),
        ]
        nested_parts = [part("nested_absmax", -(-blocks // nested), 4)] if nested else []
    else:
        parts = [
            part("codes", -(-rows * cols // 2), 1),
            part("absmax", blocks, 1 if nested else 4),
            part("quant_map", 16, 4),
        ]
        nested_parts = []
        if nested:
            nested_parts = [part("nested_absmax", -(-blocks // nested), 4), part("nested_quant_map", 256, 4)]
    return [*parts, *nested_parts, *([part("nested_offset", 1, 4)] if nested else [])]


def _blocks(checkpoint: _core.Checkpoint, tensor: Planned, settings: Settings) -> tuple[int, int]:
    """Elements that share a scale, and scales that share one of the second level (0: none), of a combined weight."""
    found = checkpoint.weight(tensor.source)
    if found.format.removesuffix("_panels") == tensor.storage.removesuffix("_panels"):
        return found.block_size, found.nested_block_size
    if tensor.storage == "int8":
        return _core.int8_block(tensor.cols), 0
    return settings.block, 256 if settings.double_quant else 0


def _arrays(
    checkpoint: _core.Checkpoint, tensor: Planned, settings: Settings, ops: _core.Ops, reference: bool
) -> list[NDArray[Any]]:
    """What goes into the tensors of :func:`_entry`, in their order."""
    order: list[int] = []
    if tensor.order and checkpoint.has_reference_rows != reference:
        order = list(tensor.order) if reference else inverse(tensor.order)
    if tensor.role == "vector":
        values = vector(checkpoint, tensor)
        return [values[order] if order else values]
    if order and tensor.combined:
        # Before anything is rounded: blocks of the flattened matrix may cross rows.
        weight = checkpoint.weight(tensor.source).reordered(order)
        if weight.format != tensor.storage.removesuffix("_panels"):
            weight = weight.encoded(tensor.storage.removesuffix("_panels"), settings.block, settings.double_quant)
        weight = ops.arranged(weight) if tensor.storage.endswith("_panels") else weight
    else:
        weight = converted(checkpoint, tensor, settings, ops)
        weight = weight.reordered(order) if order else weight
    arrays: list[NDArray[Any]] = [
        np.frombuffer(data, np.float32) if kind == "F32" else data for _, kind, data in weight.file_parts()
    ]
    if tensor.combined and weight.nested_block_size:
        arrays.append(np.array([weight.nested_offset], np.float32))
    return arrays


# ---- metadata


def _add_metadata(
    writer: gguf.GGUFWriter,
    package: Any,
    checkpoint: _core.Checkpoint,
    source: Path,
    architecture: str,
    plan: Sequence[Planned],
    settings: Settings,
    reference: bool,
) -> None:
    writer.add_quantization_version(2)
    if checkpoint.format == "gguf":
        _copy_metadata(writer, package, source)
        for key in ("halfbyte.config", "halfbyte.files"):
            if (text := checkpoint.metadata(key)) is not None:
                writer.add_string(key, text)
    else:
        folder = source if source.is_dir() else source.parent
        config = checkpoint.metadata_json()
        writer.add_name(folder.resolve().name)
        _add_standard_keys(writer, architecture, json.loads(config), plan)
        writer.add_string("halfbyte.config", config)
        files = {n: (folder / n).read_text(encoding="utf-8") for n in SIDE_FILES if (folder / n).is_file()}
        writer.add_string("halfbyte.files", json.dumps(files, ensure_ascii=False, sort_keys=True))
        if "tokenizer.json" in files:
            writer.add_string("tokenizer.huggingface.json", files["tokenizer.json"])
            add_vocabulary(writer, package, files)
        add_pooling(writer, package, files)
    if reference:
        writer.add_string("halfbyte.row_order", "huggingface")
        writer.add_string("halfbyte.weights", json.dumps(_weights(checkpoint, plan, settings), sort_keys=True))
    writer.add_string("halfbyte.version", _core.__version__)
    writer.add_string("halfbyte.source_sha256", source_hash(source))
    writer.add_string(
        "halfbyte.settings",
        json.dumps(
            {
                "weights": settings.weights,
                "block": settings.block,
                "double_quant": settings.double_quant,
                "keep_float": list(settings.keep_float),
                "panels": settings.panels,
                "requantize": settings.requantize,
                **({} if settings.auto is None else {"auto": settings.auto}),
            },
            sort_keys=True,
        ),
    )


def _weights(checkpoint: _core.Checkpoint, plan: Sequence[Planned], settings: Settings) -> dict[str, Any]:
    """The text under halfbyte.weights: how planes make weights."""
    weights: dict[str, Any] = {}
    for tensor in plan:
        if not tensor.combined:
            continue
        block, nested = _blocks(checkpoint, tensor, settings)
        weights[tensor.gguf] = {
            "storage": tensor.storage,
            "rows": tensor.rows,
            "cols": tensor.cols,
            "block": block,
            **({"nested_block": nested} if nested else {}),
        }
    return {"version": 1, "weights": weights}


def _copy_metadata(writer: gguf.GGUFWriter, package: Any, source: Path) -> None:
    for key, field in package.GGUFReader(source).fields.items():
        if key.startswith(_NOT_COPIED):
            continue
        kind = field.types[0]
        if kind == package.GGUFValueType.ARRAY:
            writer.add_key_value(key, field.contents(), kind, sub_type=field.types[-1])
        else:
            writer.add_key_value(key, field.contents(), kind)


def _add_standard_keys(
    writer: gguf.GGUFWriter, architecture: str, config: dict[str, Any], plan: Sequence[Planned]
) -> None:
    """The hyperparameters under GGUF's names, for other tools; halfbyte itself reads halfbyte.config."""

    def number(*names: str) -> Any:
        return next((config[n] for n in names if config.get(n) is not None), None)

    hidden, heads = number("hidden_size", "n_embd"), number("num_attention_heads", "n_head")
    layers = {t.gguf.split(".")[1] for t in plan if t.gguf.startswith("blk.")}
    writer.add_block_count(len(layers))
    if hidden:
        writer.add_embedding_length(hidden)
        inner = number("intermediate_size", "n_inner") or (4 * hidden if architecture == "gpt2" else None)
        if inner:
            writer.add_feed_forward_length(inner)
    if heads:
        writer.add_head_count(heads)
        writer.add_head_count_kv(number("num_key_value_heads") or heads)
    if context := number("max_position_embeddings", "n_positions"):
        writer.add_context_length(context)
    if architecture == "llama":
        head = number("head_dim") or hidden // heads
        writer.add_vocab_size(next(t.rows for t in plan if t.role == "embedding"))
        writer.add_layer_norm_rms_eps(number("rms_norm_eps") or 1e-6)
        writer.add_rope_dimension_count(head)
        writer.add_key_length(head)
        writer.add_value_length(head)
        rope = config.get("rope_parameters") or {}
        writer.add_rope_freq_base(number("rope_theta") or rope.get("rope_theta") or 10000.0)
    else:
        writer.add_layer_norm_eps(number("layer_norm_epsilon", "layer_norm_eps") or 1e-5)
        writer.add_causal_attention(architecture != "bert")
        if types := number("type_vocab_size"):
            writer.add_token_type_count(types)
