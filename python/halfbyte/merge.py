"""Adapters into the weights of their model: a float folder with W + scale * B A, which a conversion then reads.

A merged model is another model: a sum rounded to 16 bits is close to what was trained, one rounded to 4 bits is not.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core, calibration
from .adapter_files import AdapterFiles, AdapterTensor, by_module, read_folder, token_indices
from .convert import Conversion, Planned, Settings, convert, plan_tensors
from .convert_adapter import find_layer, lora_scale, read_gguf
from .convert_gguf import SIDE_FILES
from .errors import UnsupportedError
from .model import Model, load
from .safetensors_writer import SafetensorsWriter

Floats = NDArray[np.float32]
_KINDS = ("LORA", "IA3", "LN_TUNING", "TRAINABLE_TOKENS")
_DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


def read_adapter(path: Path) -> AdapterFiles:
    """A PEFT folder, or the one inside a GGUF file of halfbyte."""
    return read_folder(path) if path.is_dir() else read_gguf(path)


@dataclass(frozen=True)
class MergeCost:
    """How far a merged model that was rounded again is from the model with the adapter beside it, on a small text."""

    tokens: int
    relative: float  # root of the mean square of the differences of the logits over that of the logits
    largest: float
    changed: float  # share of tokens whose most probable successor is another


def convert_merged(source: Path, target: Path, adapter: Path, **options: Any) -> Conversion:
    """See :func:`halfbyte.convert`: the merged model, in the storage of ``weights`` ("keep": that of the source)."""
    checkpoint = _core.Checkpoint(str(source))
    _, plan = plan_tensors(checkpoint, Settings(), str(source))
    rounded = sorted({t.found.removesuffix("_panels") for t in plan if t.role == "linear" and t.found not in _DTYPES})
    if rounded and not options["requantize"]:
        raise UnsupportedError(
            f"{source}: its linear layers are {', '.join(rounded)}; merging rounds the sums again, and that is another "
            "model: keep the adapter beside it, or allow that with requantize (--requantize)"
        )
    if options["weights"] == "keep" and rounded:
        if len(rounded) > 1 or rounded[0] not in ("nf4", "fp4", "int8", "q8_0"):
            raise UnsupportedError(f"{source}: say what the sums are rounded to: its layers are {', '.join(rounded)}")
        options["weights"] = rounded[0]
    with merged(source, adapter, target) as folder:
        result = convert(folder, target, **options)
    if options["weights"] not in ("keep", "f16", "bf16"):
        result.merge = _cost(source, adapter, target)
    return result


def _cost(source: Path, adapter: Path, target: Path) -> MergeCost:
    with load(source) as model, load(target) as result:
        model.load_adapter(adapter, "merged")
        texts, _ = calibration.sequences(model, calibration.CALIBRATION)

        def output(of: Model, ids: Sequence[int], name: str | None) -> NDArray[np.float64]:
            run = of.logits if model.info["has_logits"] else of.hidden_states
            return np.asarray(run([ids], adapter=name)[0], np.float64)

        before = np.concatenate([output(model, ids, "merged") for ids in texts])
        after = np.concatenate([output(result, ids, None) for ids in texts])
    off = after - before
    relative = float(np.sqrt((off**2).sum() / (before**2).sum()))
    changed = float((before.argmax(-1) != after.argmax(-1)).mean())
    return MergeCost(len(before), relative, float(np.abs(off).max()), changed)


@contextmanager
def merged(source: Path, adapter_path: Path, beside: Path) -> Iterator[Path]:
    """A temporary folder of float weights beside ``beside``: the model with the adapter in it, tensor by tensor.

    A float tensor keeps its dtype: the sum is made in float32 and rounded once. A quantised one becomes float32.

    Raises:
        UnsupportedError: an adapter that no weights can hold (prompts, prefixes, aLoRA, repeated layers, a head that
            the model does not have), a source without config.json.

    """
    adapter = read_adapter(adapter_path)
    checkpoint = _core.Checkpoint(str(source))
    if not checkpoint.has_reference_rows:
        raise UnsupportedError(f"{source}: a GGUF file has no config.json; merge into the folder that it was made from")
    _, plan = plan_tensors(checkpoint, Settings(), str(source))
    merge = _Merge(adapter, plan)
    config = json.loads(checkpoint.metadata("halfbyte.config") or checkpoint.metadata_json())
    config.pop("quantization_config", None)
    folder = Path(tempfile.mkdtemp(prefix=f".{beside.name}.merge-", dir=beside.parent))
    try:
        with SafetensorsWriter(folder / "model.safetensors") as writer:
            for tensor in plan:
                _add(writer, checkpoint, tensor, merge)
            for name, values in merge.rest():
                writer.add(name, "F32", values.shape, values)
        config.update(merge.config)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        carried = checkpoint.metadata("halfbyte.files")
        origin = source if source.is_dir() else source.parent
        found = (n for n in SIDE_FILES if (origin / n).is_file())
        files = (
            json.loads(carried) if carried is not None else {n: (origin / n).read_text(encoding="utf-8") for n in found}
        )
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _add(writer: SafetensorsWriter, checkpoint: _core.Checkpoint, tensor: Planned, merge: _Merge) -> None:
    weight = checkpoint.weight(tensor.source)
    change = merge.change_of(tensor)
    dtype = _DTYPES.get(weight.format, "F32")
    if change is None and weight.format in _DTYPES:
        [(_, _, data)] = weight.file_parts()
        writer.add(tensor.hf, dtype, checkpoint.shape(tensor.source), data)
        return
    values = weight.dequantize()
    if tensor.transposed:  # the adapter sees [out, in]
        values = values.T
    if change is not None:
        values = change(values.reshape(-1) if tensor.role == "vector" else values)
    if tensor.transposed:
        values = values.T
    values = np.ascontiguousarray(values, np.float32)
    rounded = values if dtype == "F32" else _rounded(values, dtype)
    writer.add(tensor.hf, dtype, values.shape, rounded)


def _rounded(values: Floats, dtype: str) -> NDArray[Any]:
    """To nearest, ties to even."""
    if dtype == "F16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


Change = Callable[[Floats], Floats]


class _Merge:
    """What an adapter makes of each tensor of a model."""

    def __init__(self, adapter: AdapterFiles, plan: list[Planned]) -> None:
        where = adapter.path
        if adapter.kind not in _KINDS:
            raise UnsupportedError(f"{where}: an adapter of the kind {adapter.kind} can't be merged into weights")
        for field in ("alora_invocation_tokens", "layer_replication"):
            if adapter.config.get(field):
                raise UnsupportedError(f"{where}: {field} can't be merged into weights")
        self.config: dict[str, Any] = {}
        self._adapter = adapter
        self._modules: dict[str, dict[str, AdapterTensor]] = {}
        self._names: dict[str, str] = {}  # of the model -> of the adapter
        layers = {t.hf.removesuffix(".weight"): t for t in plan if t.hf.endswith(".weight")}
        self._biases = {t.hf.removesuffix(".bias") for t in plan if t.hf.endswith(".bias")}
        for module, tensors in by_module(adapter).items():
            name = find_layer(layers, module)
            if name is None and module == "lm_head":
                name = "lm_head"  # tied: it becomes a tensor of its own
            if name is None:
                raise UnsupportedError(f"{where}: {module!r} is no part of the model that weights are saved of")
            self._modules[name], self._names[name] = tensors, module
        self._embedding = next((n for n, t in layers.items() if t.role == "embedding"), "")
        self._tied = "lm_head" not in layers and "lm_head" not in {n.rpartition(".")[2] for n in layers}
        self._check_tied()

    def _check_tied(self) -> None:
        own = self._modules.get("lm_head")
        changed = self._modules.get(self._embedding, {}).keys() - {"tokens"}
        if self._tied and (own is not None or changed):
            raise UnsupportedError(
                f"{self._adapter.path}: the output layer shares the embedding's table, and the adapter changes one of "
                "them alone: no weights of this model are that"
            )
        resized = self._modules.get(self._embedding, {}).get("weight") or self._modules.get(self._embedding, {}).get(
            "base"
        )
        if resized is not None:
            self.config["vocab_size"] = resized.shape[0]

    def rest(self) -> Iterator[tuple[str, Floats]]:
        """Tensors that the model did not have: biases."""
        for name, tensors in self._modules.items():
            if name in self._biases:
                continue
            shift = self._bias(name, None)
            if shift is not None:
                yield f"{name}.bias", shift
            elif "bias" in tensors:
                yield f"{name}.bias", tensors["bias"].values().reshape(-1)

    def change_of(self, tensor: Planned) -> Change | None:
        name, _, part = tensor.hf.rpartition(".")
        tensors = self._modules.get(name)
        if tensors is None:
            return None
        if part == "bias":
            return lambda values: self._merged_bias(name, values)
        return lambda values: self._weight(name, tensor, values)

    def _merged_bias(self, name: str, values: Floats) -> Floats:
        merged_bias = self._bias(name, values)
        return values if merged_bias is None else merged_bias

    def _bias(self, name: str, base: Floats | None) -> Floats | None:
        tensors = self._modules[name]
        out = tensors["bias"].values().reshape(-1) if "bias" in tensors else base
        if "lora_bias" in tensors:
            scale = np.float32(self._scale(name, tensors["lora_B"].shape[1]))
            shift = scale * tensors["lora_bias"].values().reshape(-1)
            out = shift if out is None else out + shift
        if "ia3" in tensors and out is not None and tensors["ia3"].shape[0] != 1:
            out = out * tensors["ia3"].values().reshape(-1)
        return out

    def _scale(self, name: str, rank: int) -> float:
        return lora_scale(self._adapter, self._names[name], rank)

    def _weight(self, name: str, tensor: Planned, values: Floats) -> Floats:
        tensors = self._modules[name]
        for what in ("weight", "base"):
            if what in tensors:
                saved = tensors[what].values()
                values = saved.T if tensor.transposed else saved
        if "lora_A" in tensors:
            a, b = tensors["lora_A"].values(), tensors["lora_B"].values()
            values = values + np.float32(self._scale(name, a.shape[0])) * (b @ a)
        if "embedding_A" in tensors:
            a, b = tensors["embedding_A"].values(), tensors["embedding_B"].values()
            values = values + np.float32(self._scale(name, a.shape[0])) * (b @ a).T
        if "magnitude" in tensors:
            axis = 0 if "embedding_A" in tensors else 1
            lengths = np.sqrt((values.astype(np.float64) ** 2).sum(axis))
            gain = (tensors["magnitude"].values().reshape(-1) / lengths).astype(np.float32)
            values = values * (gain if axis == 0 else gain[:, None])
        if "ia3" in tensors:
            gain = tensors["ia3"].values()
            values = values * (gain.reshape(1, -1) if gain.shape[0] == 1 else gain.reshape(-1, 1))
        if "tokens" in tensors:
            values = np.array(values)
            values[token_indices(self._adapter.config, self._names[name])] = tensors["tokens"].values()
        return values
