"""``convert(auto=BITS)``: the layers whose rounding moves the model's output most are kept wider, within a budget.

Every linear layer is rounded alone, the rest left as it is, and the model is run on a small text. What moves is the
divergence of the predicted tokens (of encoders: the hidden states). It is close to a quadratic form of the errors of
the weights, so that the contributions of layers add up, and one of int8 is that of nf4 times the ratio of the squared
errors of the weights. The choice is then a knapsack: the step that saves most per bit first, while there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import _core, calibration
from .convert import Planned, Progress, Settings
from .errors import CorruptFileError, InvalidArgumentError, NotFoundError
from .model import Model
from .ops import thread_count
from .rounding import Rounding

Array = NDArray[np.float32]
NARROW = ("nf4", "fp4")
TEXTS = ("calibration", "held out")


@dataclass(frozen=True)
class Kept:
    """A layer that is wider than the narrow format."""

    name: str  # as in Hugging Face files, without ".weight"
    storage: str
    bits: float  # a weight
    moves: float  # the output, when this layer alone is narrow: see Movement.divergence


@dataclass(frozen=True)
class Movement:
    """How far an output is from the source's."""

    divergence: float  # decoders: KL, nats a token, of the source from this; encoders: mean square, relative
    relative: float  # root of the mean square of the difference of logits (hidden states) over that of the source


@dataclass
class Auto:
    """What was chosen, and what it gains. ``narrow``: every layer in the narrow format."""

    budget: float
    bits: float  # a weight, of the linear layers
    narrow_format: str
    narrow_bits: float
    layers: int
    storages: dict[str, str]  # of each linear layer
    kept: list[Kept]  # the one that moves the output most first
    words: bool  # False: there was no tokenizer, and the ids are random
    tokens: dict[str, int] = field(default_factory=dict)  # calibration, held out
    narrow: dict[str, Movement] = field(default_factory=dict)
    auto: dict[str, Movement] = field(default_factory=dict)


@dataclass
class Level:
    """One of the storages that a layer can have."""

    storage: str
    bits: float
    moves: float


@dataclass
class Choice:
    """A layer and its storages; ``levels[at]`` is the one chosen."""

    tensor: Planned
    levels: list[Level]
    at: int = 0

    @property
    def name(self) -> str:
        """The layer, as in Hugging Face files."""
        return self.tensor.hf.removesuffix(".weight")

    @property
    def size(self) -> int:
        """Weights."""
        return self.tensor.rows * self.tensor.cols


def choose(
    checkpoint: _core.Checkpoint,
    source: Path,
    plan: Sequence[Planned],
    settings: Settings,
    bits: float,
    int8: bool,
    text: Path | None,
    progress: Progress | None,
) -> Auto:
    """Measure and choose.

    Args:
        checkpoint: the open source.
        source: where it is.
        plan: with ``settings.weights`` "nf4" or "fp4" for every layer that may be rounded.
        settings: block size and double quantisation of the narrow format.
        bits: the budget: bits a weight, on average over the linear layers.
        int8: whether the output can hold int8.
        text: a file to measure on; None: the built-in text.
        progress: called before each measurement.

    """
    choices = [_choice(checkpoint, t, settings, int8) for t in plan if t.role == "linear"]
    least = _bits(choices)
    if not bits >= least:
        raise InvalidArgumentError(
            f"auto={bits:g}: with every layer that may be rounded in {settings.weights} there are {least:.3f} bits a "
            f"weight; give at least {np.ceil(least * 100) / 100:.2f}, or larger blocks, or fewer modules in keep_float"
        )
    if all(len(c.levels) == 1 for c in choices):
        raise InvalidArgumentError(f"auto: {source} has no linear layer to choose for: all are narrow or kept")
    bench = _Bench(source, settings, text)
    total = sum(c.size for c in choices)
    done = 0
    for choice in choices:
        if progress is not None:
            progress(f"measuring {choice.name}", done, total)
        done += choice.size
        if len(choice.levels) > 1:
            moved = bench.run({choice.name: bench.narrow}, ("calibration",))["calibration"]
            _set_moves(checkpoint, choice, settings, moved.divergence)
    narrow = bench.run({c.name: bench.narrow for c in choices if len(c.levels) > 1})
    allocate(choices, bits)
    kept = [Kept(c.name, c.levels[c.at].storage, c.levels[c.at].bits, c.levels[0].moves) for c in choices if c.at > 0]
    return Auto(
        bits,
        _bits(choices),
        settings.weights,
        least,
        len(choices),
        {c.name: c.levels[c.at].storage for c in choices},
        sorted(kept, key=lambda k: (-k.moves, k.name)),
        bench.words,
        {name: sum(map(len, ids)) for name, ids in bench.texts.items()},
        narrow,
        bench.run({c.name: bench.rounding(c.levels[c.at].storage) for c in choices if len(c.levels) > 1}),
    )


def allocate(choices: Sequence[Choice], bits: float) -> None:
    """Set ``at`` of every choice: first what saves most for a bit, while the average stays within ``bits``."""
    room = bits * sum(c.size for c in choices) - sum(c.size * c.levels[0].bits for c in choices)
    steps = []
    for number, choice in enumerate(choices):
        for rank, (low, high) in enumerate(_steps(choice.levels)):
            narrow, wide = choice.levels[low], choice.levels[high]
            cost = choice.size * (wide.bits - narrow.bits)
            steps.append(((wide.moves - narrow.moves) / cost, number, rank, low, high, cost))
    for _, number, _, low, high, cost in sorted(steps):
        if choices[number].at == low and cost <= room:
            choices[number].at = high
            room -= cost


def _steps(levels: Sequence[Level]) -> Iterator[tuple[int, int]]:
    """From the narrowest level to wider ones, leaving out those that a straight line between two others beats."""
    low = 0
    while True:
        wider = [i for i, v in enumerate(levels) if v.bits > levels[low].bits and v.moves < levels[low].moves]
        if not wider:
            return
        slopes = [(levels[low].moves - levels[i].moves) / (levels[i].bits - levels[low].bits) for i in wider]
        high = wider[int(np.argmax(slopes))]
        yield low, high
        low = high


def _bits(choices: Sequence[Choice]) -> float:
    return sum(c.size * c.levels[c.at].bits for c in choices) / max(sum(c.size for c in choices), 1)


def _choice(checkpoint: _core.Checkpoint, tensor: Planned, settings: Settings, int8: bool) -> Choice:
    found = checkpoint.weight(tensor.source)
    own = Level(tensor.found, found.bits_per_weight, 0.0)
    storage = tensor.storage.removesuffix("_panels")
    if storage == tensor.found.removesuffix("_panels") or storage not in NARROW:
        return Choice(tensor, [own])
    scale = 8 / settings.block + 32 / (256 * settings.block) if settings.double_quant else 32 / settings.block
    levels = [Level(settings.weights, 4 + scale, 0.0)]
    if own.bits <= levels[0].bits:
        return Choice(tensor, [own])
    if int8 and tensor.cols % 32 == 0:
        levels.append(Level("int8", 8 + 32 / _core.int8_block(tensor.cols), 0.0))
    return Choice(tensor, [*levels, own])


def _set_moves(checkpoint: _core.Checkpoint, choice: Choice, settings: Settings, moves: float) -> None:
    choice.levels[0].moves = moves
    for level in choice.levels[1:]:
        if level.storage != choice.tensor.found:
            weight = checkpoint.weight(choice.tensor.source)
            weight = weight.transposed() if choice.tensor.transposed else weight
            exact = weight.dequantize()
            narrow = _squared_error(weight, exact, settings.weights, settings)
            level.moves = moves * _squared_error(weight, exact, level.storage, settings) / narrow if narrow > 0 else 0.0


def _squared_error(weight: _core.Weight, exact: Array, storage: str, settings: Settings) -> float:
    miss = weight.encoded(storage, settings.block, settings.double_quant).dequantize()
    miss -= exact
    return float(np.einsum("ij,ij->", miss, miss, dtype=np.float64))


class _Bench:
    """Runs the source with some layers rounded, and compares with the source as it is."""

    def __init__(self, source: Path, settings: Settings, text: Path | None) -> None:
        self._source, self._settings = source, settings
        with self._load({}) as model:
            self.texts, self.words = _texts(model, text)
            self._causal: bool = model.info["has_logits"]
            self._exact = {name: _outputs(model, ids, self._causal) for name, ids in self.texts.items()}

    @property
    def narrow(self) -> Rounding:
        return self.rounding(self._settings.weights)

    def rounding(self, storage: str) -> Rounding:
        if storage in (*NARROW, "int8"):
            return storage, self._settings.block if storage in NARROW else 64, self._settings.double_quant
        return "", 64, True  # as it is in the source

    def run(self, layers: dict[str, Rounding], texts: Sequence[str] = TEXTS) -> dict[str, Movement]:
        """By the names of the texts."""
        with self._load(layers) as model:
            return {
                name: _movement(self._exact[name], _outputs(model, self.texts[name], self._causal), self._causal)
                for name in texts
            }

    def _load(self, layers: dict[str, Rounding]) -> Model:
        engine = _core.Engine.load(str(self._source), "cpu", thread_count(None), "high", "", None, layers=layers)
        return Model(engine, self._source)


def _texts(model: Model, text: Path | None) -> tuple[dict[str, list[list[int]]], bool]:
    passages: Sequence[str] = calibration.CALIBRATION
    if text is not None:
        try:
            passages = [text.read_text(encoding="utf-8")]
        except FileNotFoundError:
            raise NotFoundError(f"calibration: {text}: no such file") from None
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"calibration: {text}: not UTF-8: {error}") from None
    ids, words = calibration.sequences(model, passages)
    if not ids:
        raise InvalidArgumentError(f"calibration: {text}: no words to measure on")
    return {"calibration": ids, "held out": calibration.sequences(model, calibration.HELD_OUT)[0]}, words


def _outputs(model: Model, ids: Sequence[Sequence[int]], causal: bool) -> list[Array]:
    call: Callable[..., Array] = model.logits if causal else model.hidden_states
    return [call([sequence])[0] for sequence in ids]


def _movement(exact: Sequence[Array], found: Sequence[Array], causal: bool) -> Movement:
    """Sums over rows in float64, 32 at a time: a vocabulary is wide."""
    rows, divergence, square, size = 0, 0.0, 0.0, 0.0
    for a, b in zip(exact, found, strict=True):
        for first in range(0, len(a), 32):
            p, q = a[first : first + 32].astype(np.float64), b[first : first + 32].astype(np.float64)
            size += float((p * p).sum())
            square += float(((p - q) ** 2).sum())
            rows += len(p)
            if causal:
                p, q = _log_softmax(p), _log_softmax(q)
                divergence += float((np.exp(p) * (p - q)).sum())
    relative = square / size if size > 0 else 0.0
    return Movement(divergence / max(rows, 1) if causal else relative, float(np.sqrt(relative)))


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = x - x.max(axis=1, keepdims=True)
    below: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return below
