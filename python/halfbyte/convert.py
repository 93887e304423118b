"""Checkpoints to files: one GGUF file that is mapped and run, or a bitsandbytes folder.

Tensor by tensor: what is in memory at a time is one tensor of the source, decoded a few rows at a time, and what it
becomes. The output appears under its name when it is whole and on the disk (see :mod:`halfbyte.files`).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import InputOutputError, InvalidArgumentError, UnsupportedError
from .rounding import names_module

if TYPE_CHECKING:
    from .convert_auto import Auto
    from .merge import MergeCost

Weights = Literal["keep", "nf4", "fp4", "int8", "q8_0", "f16", "bf16"]
WEIGHTS: tuple[Weights, ...] = ("keep", "nf4", "fp4", "int8", "q8_0", "f16", "bf16")
FLOATS = ("f32", "f16", "bf16")
FOREIGN = ("gptq", "gptq_v2", "awq", "fp8_e4m3")  # of folders alone
COMBINED = ("nf4", "fp4", "nf4_panels", "fp4_panels", "int8", "int8_rows")  # of several planes: no type of GGUF


@dataclass(frozen=True)
class Settings:
    """What is asked of a conversion; see :func:`convert`."""

    weights: Weights = "keep"
    block: int = 64
    double_quant: bool = True
    keep_float: tuple[str, ...] = ()
    panels: bool = True
    requantize: bool = False
    auto: float | None = None
    chosen: tuple[tuple[str, str], ...] = ()  # linear layers and the storages that ``auto`` gives them


@dataclass(frozen=True)
class Planned:
    """One tensor on its way: ``_core.Checkpoint.plan``, and the storage that it will have."""

    source: str
    hf: str
    gguf: str
    role: str  # linear, output, embedding, vector
    rows: int
    cols: int
    transposed: bool
    order: tuple[int, ...]
    found: str  # storage in the source
    storage: str  # in the output; of a vector: f32

    @property
    def combined(self) -> bool:
        """Of several planes, which GGUF has no type for."""
        return self.storage in COMBINED


@dataclass
class Report:
    """One tensor read back from the output, against the source: see :func:`verify`."""

    name: str
    storage: str
    largest: float  # of the differences
    relative: float  # root of the mean square of the differences over that of the source
    cosine: float


@dataclass
class Conversion:
    """What was written."""

    path: Path
    tensors: int
    source_bytes: int
    bytes: int
    storages: dict[str, int] = field(default_factory=dict)  # parameters in each
    reports: list[Report] = field(default_factory=list)  # with ``verify``, the worst first
    merge: MergeCost | None = None  # with ``adapter``, into quantised weights
    auto: Auto | None = None  # with ``auto``: what was chosen, and what it gains


Progress = Callable[[str, int, int], None]
"""progress(tensor, bytes of the source done so far, bytes of the source in all)"""


def convert(
    source: str | Path,
    target: str | Path,
    *,
    format: Literal["gguf", "bitsandbytes"] = "gguf",
    weights: Weights = "keep",
    block: int = 64,
    double_quant: bool = True,
    keep_float: Sequence[str] = (),
    panels: bool = True,
    requantize: bool = False,
    auto: float | None = None,
    calibration: str | Path | None = None,
    verify: bool = False,
    adapter: str | Path | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write a checkpoint that :func:`halfbyte.load` opens as one GGUF file, or as a bitsandbytes folder.

    Args:
        source: what :func:`halfbyte.load` takes.
        target: the file or folder to make. A folder must not exist, or be empty.
        format: "gguf" needs the package ``gguf`` (the extra ``convert``); "bitsandbytes" is what transformers loads.
        weights: the storage of the linear layers. "keep": as they are. "nf4", "fp4", "int8": embeddings and the output
            layer stay as they are. "f16", "bf16": they are converted too. "q8_0": GGUF's own, which other tools read.
        block: elements that share a scale, for nf4 and fp4.
        double_quant: scales as bytes, for nf4 and fp4.
        keep_float: modules that stay floats, by name or pattern ("lm_head", "model.layers.0.*").
        panels: nf4 and fp4 in the order in which this processor multiplies them (every other reads them too, and
            repacks): the model runs where it is mapped.
        requantize: allow rounding of weights that are rounded already.
        auto: bits a weight, on average over the linear layers: those whose rounding to nf4 (or what ``weights`` says)
            moves the model's output most stay wider, as int8 or as they are, within this budget. Runs the model once
            for every layer, in memory. ``result.auto`` says what was chosen and what it gains.
        calibration: a text file to measure on, with ``auto``; None: a page of English that comes along.
        verify: read the output back and compare; see :class:`Report`.
        adapter: a PEFT folder (or a GGUF adapter of halfbyte) to merge into the weights first: W + scale * B A in
            float32, rounded once. Into float weights, or with ``requantize`` into quantised ones: ``result.merge`` says
            what that costs. See also :func:`halfbyte.convert_adapter`, which writes the adapter alone.
        progress: called before every tensor; with ``auto`` first as progress("measuring LAYER", weights so far, weights
            in all).

    Raises:
        Error: what opening the source raises; UnsupportedError (already rounded, a tensor that has no name in the
            format, no package ``gguf``); InputOutputError (a full disk, no permission): what was at ``target`` is still
            there.

    """
    if weights not in WEIGHTS:
        raise InvalidArgumentError(f"convert: weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    if format not in ("gguf", "bitsandbytes"):
        raise InvalidArgumentError(f"convert: format must be gguf or bitsandbytes, got {format!r}")
    if auto is not None and weights == "keep":
        weights = "nf4"
    settings = Settings(weights, block, double_quant, tuple(keep_float), panels, requantize, auto)
    source, target = Path(source), Path(target)
    if adapter is not None:
        from .merge import convert_merged  # noqa: PLC0415 - it needs this module

        return convert_merged(
            source,
            target,
            Path(adapter),
            format=format,
            weights=weights,
            block=block,
            double_quant=double_quant,
            keep_float=keep_float,
            panels=panels,
            requantize=requantize,
            auto=auto,
            calibration=calibration,
            verify=verify,
            progress=progress,
        )
    checkpoint = _core.Checkpoint(str(source))
    architecture, plan = plan_tensors(checkpoint, settings, str(source))
    found: Auto | None = None
    if auto is not None:
        if weights not in ("nf4", "fp4"):
            raise InvalidArgumentError(f"convert: auto takes weights='nf4' or 'fp4', got {weights!r}")
        from .convert_auto import choose  # noqa: PLC0415 - it needs this module

        text = None if calibration is None else Path(calibration)
        found = choose(checkpoint, source, plan, settings, auto, format == "gguf", text, progress)
        settings = replace(settings, chosen=tuple(sorted(found.storages.items())))
        architecture, plan = plan_tensors(checkpoint, settings, str(source))
    elif calibration is not None:
        raise InvalidArgumentError("convert: calibration is what auto measures on, and auto is not given")
    if format == "gguf":
        from .convert_gguf import write_gguf  # noqa: PLC0415 - the package gguf is optional

        result = write_gguf(checkpoint, source, architecture, plan, settings, target, progress)
    else:
        from .convert_folder import write_folder  # noqa: PLC0415

        result = write_folder(checkpoint, source, plan, settings, target, progress)
    result.auto = found
    if verify:
        result.reports = compare(checkpoint, plan, target, settings)
    return result


def plan_tensors(checkpoint: _core.Checkpoint, settings: Settings, where: str) -> tuple[str, list[Planned]]:
    """The architecture, and the tensors of a checkpoint with the storage that each will have."""
    architecture, tensors = checkpoint.plan()
    plan = []
    unused = set(settings.keep_float)
    chosen = dict(settings.chosen)
    for source, hf, gguf, role, rows, cols, transposed, order in tensors:
        found = checkpoint.weight(source).format
        module = hf.removesuffix(".weight")
        kept = [p for p in settings.keep_float if names_module(p, module) or hf.startswith(p + ".")]
        unused -= set(kept)
        storage = found
        if role == "vector":
            storage = "f32"
        elif settings.weights != "keep" and not kept and (role == "linear" or settings.weights in FLOATS):
            storage = chosen.get(module, settings.weights) if role == "linear" else settings.weights
            same = found.removesuffix("_panels") == storage
            if found not in FLOATS and not same and not settings.requantize:
                raise UnsupportedError(
                    f"{where}: tensor {source} is {found} already; rounding it to {storage} would be another model. "
                    "weights='keep' (--weights keep) leaves it; requantize=True (--requantize) rounds it all the same"
                )
            if storage in ("int8", "q8_0") and cols % 32 != 0:
                raise UnsupportedError(
                    f"{where}: tensor {source} has {cols} inputs, and {storage} needs a multiple of 32; "
                    f"keep_float=[{module!r}] (--keep-float) leaves it as it is"
                )
        block = checkpoint.weight(source).block_size if found == storage else settings.block
        if storage in ("nf4", "fp4") and settings.panels and cols % block == 0:
            storage += "_panels"
        elif storage in FOREIGN:
            raise UnsupportedError(
                f"{where}: {source} is {storage}, which no file of halfbyte holds; say what it becomes (weights: f16 "
                "or bf16, or with requantize nf4, int8, ...)"
            )
        elif storage in ("nf4_panels", "fp4_panels") and not settings.panels:
            storage = storage.removesuffix("_panels")
        plan.append(Planned(source, hf, gguf, role, rows, cols, transposed, tuple(order), found, storage))
    if unused:
        raise InvalidArgumentError(f"keep_float: nothing in the model is named {', '.join(sorted(unused))}")
    return architecture, plan


def converted(checkpoint: _core.Checkpoint, tensor: Planned, settings: Settings, ops: _core.Ops) -> _core.Weight:
    """One matrix in its new storage, its rows in the order of the source."""
    weight = checkpoint.weight(tensor.source)
    if tensor.transposed:
        weight = weight.transposed()
    plain = tensor.storage.removesuffix("_panels")
    if weight.format.removesuffix("_panels") != plain:
        weight = weight.encoded(plain, settings.block, settings.double_quant)
    if tensor.storage.endswith("_panels") and not weight.format.endswith("_panels"):
        weight = ops.arranged(weight)
    elif weight.format.endswith("_panels") and not tensor.storage.endswith("_panels"):
        weight = from_planes(weight)
    if weight.format != tensor.storage:
        raise UnsupportedError(f"{tensor.source}: expected {tensor.storage}, and {weight.format} was made")
    return weight


def from_planes(weight: _core.Weight) -> _core.Weight:
    """Panels put back into the planes of bitsandbytes."""
    rows, cols = weight.shape
    plain = weight.format.removesuffix("_panels")
    return _core.weight_from_planes(plain, rows, cols, weight.block_size, weight.planes())


def inverse(order: Sequence[int]) -> list[int]:
    """The permutation that undoes ``order``."""
    return [int(i) for i in np.argsort(np.asarray(order, np.int64), kind="stable")]


def vector(checkpoint: _core.Checkpoint, tensor: Planned) -> NDArray[np.float32]:
    """A bias or norm, float32 [n], in the order of the source."""
    return checkpoint.weight(tensor.source).dequantize().reshape(-1)


def source_files(source: Path) -> Iterator[Path]:
    """The files of a checkpoint that decide what it computes, in a fixed order."""
    if source.is_file():
        yield source
        if source.suffix == ".safetensors" and (source.parent / "config.json").is_file():
            yield source.parent / "config.json"
        return
    yield from sorted(p for p in source.iterdir() if p.suffix in (".safetensors", ".json"))


def source_hash(source: Path) -> str:
    """SHA-256 over the names and contents of :func:`source_files`."""
    digest = hashlib.sha256()
    piece = memoryview(bytearray(1 << 20))  # one for all: fresh memory costs as much as the hashing
    for path in source_files(source):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(piece):
                digest.update(piece[:size])
    return digest.hexdigest()


def check_room(target: Path, needed: int) -> None:
    """Raise InputOutputError where the disk of ``target`` has less than ``needed`` bytes free."""
    folder = target.parent if target.parent != Path() else Path.cwd()
    if not folder.is_dir():
        raise InputOutputError(f"{target}: there is no folder {folder}")
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputOutputError(
            f"{target}: {needed / 1e6:.0f} MB are needed, and {folder} has {free / 1e6:.0f} MB free; "
            "nothing was written"
        )


def compare(checkpoint: _core.Checkpoint, plan: Sequence[Planned], target: Path, settings: Settings) -> list[Report]:
    """Every matrix of the output, read back, against that of the source; the worst first."""
    output = _core.Checkpoint(str(target))
    names = set(output.names())
    reports = []
    for tensor in plan:
        name = tensor.gguf if tensor.gguf in names else tensor.hf
        if tensor.role == "vector" or name not in names:
            continue
        exact = checkpoint.weight(tensor.source).dequantize()
        if tensor.transposed:
            exact = exact.T
        if tensor.order and checkpoint.has_reference_rows != output.has_reference_rows:
            order = list(tensor.order) if output.has_reference_rows else inverse(tensor.order)
            exact = exact[order]
        weight = output.weight(name)
        found = weight.dequantize()
        if found.shape != exact.shape:
            found = found.T
        size = exact.astype(np.float64)
        miss = found.astype(np.float64) - size
        norm, error = float(np.sqrt((size**2).sum())), float(np.sqrt((miss**2).sum()))
        product = float((found.astype(np.float64) * size).sum())
        length = float(np.sqrt((found.astype(np.float64) ** 2).sum())) * norm
        reports.append(
            Report(
                name,
                weight.format,
                float(np.abs(miss).max()),
                error / norm if norm > 0 else error,
                product / length if length > 0 else 1.0,
            )
        )
    return sorted(reports, key=lambda r: -r.relative)
