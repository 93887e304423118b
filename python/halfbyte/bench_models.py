"""Models for ``halfbyte bench --shape``: the sizes of well-known networks with seeded random weights.

What a network says does not matter for its speed, so that anyone can measure it with nothing downloaded. A folder is
written as transformers and bitsandbytes write theirs, piece by piece: an 8B model is made in little memory.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from . import _core
from .errors import InvalidArgumentError

Array = NDArray[Any]

WEIGHTS = ("nf4", "bf16", "f32")
_REVISION = 1  # of what is written for a name; a model of another revision is not reused


@dataclass(frozen=True)
class Shape:
    """The sizes of a network. Llama where ``kv_heads`` is set, BERT where it is 0."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    positions: int
    tied: bool = False  # the output layer is the table of embeddings

    @property
    def decoder(self) -> bool:
        """A Llama, not a BERT."""
        return self.kv_heads > 0

    @property
    def head_dim(self) -> int:
        """Of queries, keys and values alike."""
        return self.hidden // self.heads


SHAPES = {
    "llama-1b": Shape(2048, 16, 32, 8, 8192, 128256, 131072, tied=True),  # Llama-3.2-1B
    "llama-8b": Shape(4096, 32, 32, 8, 14336, 128256, 8192),  # Meta-Llama-3-8B
    "smollm2": Shape(576, 30, 9, 3, 1536, 49152, 8192, tied=True),  # SmolLM2-135M
    "bert-base": Shape(768, 12, 12, 0, 3072, 30522, 512),
    "minilm": Shape(384, 6, 12, 0, 1536, 30522, 512),  # all-MiniLM-L6-v2
}


def cache_folder() -> Path:
    """Where made models are kept: ``$XDG_CACHE_HOME/halfbyte/bench``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "halfbyte" / "bench"


def shape_named(name: str) -> Shape:
    """Raise InvalidArgumentError, naming those there are, for any other."""
    if name not in SHAPES:
        raise InvalidArgumentError(f"bench: there is no shape {name!r}; there are {', '.join(SHAPES)}")
    return SHAPES[name]


def made_model(
    name: str, *, weights: str = "nf4", output_layer: str = "nf4", seed: int = 1, cache: Path | None = None
) -> Path:
    """The folder of a made model, written if it isn't there yet.

    ``weights``: of the linear layers, "nf4" (double-quantised), "bf16" or "f32". ``output_layer``: the same words, for
    the layer over the vocabulary and the table of embeddings. Raises InvalidArgumentError for other words, OSError.
    """
    shape = shape_named(name)
    folder = (cache or cache_folder()) / f"{name}-{weights}-output-{output_layer}-seed{seed}-r{_REVISION}"
    return _made(
        folder, lambda making: write_model(making, shape, weights=weights, output_layer=output_layer, seed=seed)
    )


def made_adapter(engine: _core.Engine, rank: int, *, seed: int = 1, cache: Path | None = None) -> Path:
    """A PEFT folder with random factors of every linear layer but the output layer, written if it isn't there yet."""
    vocab = engine.info()["vocab_size"]
    modules = [(name, inputs, outputs) for name, inputs, outputs in engine.modules() if outputs != vocab]
    digest = hashlib.sha256(repr(modules).encode()).hexdigest()[:12]
    folder = (cache or cache_folder()) / f"adapter-{digest}-rank{rank}-seed{seed}-r{_REVISION}"
    return _made(folder, lambda making: write_adapter(making, modules, rank=rank, seed=seed))


def _made(folder: Path, write: Callable[[Path], None]) -> Path:
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Made beside its place and moved there whole: an interrupted run leaves nothing that looks like a model.
        making = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            write(making)
            making.chmod(0o755)
            making.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, and what it made is the same
                raise
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return folder


def write_adapter(folder: Path, modules: Sequence[tuple[str, int, int]], *, rank: int, seed: int) -> None:
    """adapter_config.json and adapter_model.safetensors. ``modules``: (name, in_features, out_features)."""
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.rpartition(".")[2] for name, _, _ in modules}),
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    plan = []
    for name, inputs, outputs in modules:
        plan.append(Tensor(f"base_model.model.{name}.lora_A.weight", (rank, inputs), "bf16", inputs**-0.5))
        plan.append(Tensor(f"base_model.model.{name}.lora_B.weight", (outputs, rank), "bf16", 0.1 * rank**-0.5))
    with (folder / "adapter_model.safetensors").open("wb") as file:
        _write_safetensors(file, plan, seed)


def write_model(folder: Path, shape: Shape, *, weights: str, output_layer: str, seed: int) -> None:
    """config.json and model.safetensors. The same arguments give the same bytes on every machine."""
    for word in (weights, output_layer):
        if word not in WEIGHTS:
            raise InvalidArgumentError(f"bench: weights are made as {', '.join(WEIGHTS)}, not as {word!r}")
    plan = list(tensors(shape, weights, output_layer))
    config = _llama_config(shape) if shape.decoder else _bert_config(shape)
    if "nf4" in (weights, output_layer):
        config["quantization_config"] = _QUANTIZATION
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        _write_safetensors(file, plan, seed)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the network: its name, shape, how it is stored and how its values are spread."""

    name: str
    shape: tuple[int, ...]
    kind: str  # nf4, bf16, f32
    std: float
    mean: float = 0.0


def tensors(shape: Shape, weights: str, output_layer: str) -> Iterator[Tensor]:
    """All tensors, in the order of the file."""
    yield from _llama_tensors(shape, weights, output_layer) if shape.decoder else _bert_tensors(shape, weights)


def _matrix(name: str, rows: int, cols: int, kind: str) -> Tensor:
    return Tensor(name + ".weight", (rows, cols), kind, cols**-0.5)  # activations stay near unit scale


def _norm(name: str, size: int, weights: str) -> Tensor:
    return Tensor(name + ".weight", (size,), _plain(weights), 0.1, 1.0)


def _plain(weights: str) -> str:
    """How what bitsandbytes leaves alone is stored beside such weights."""
    return "bf16" if weights == "nf4" else weights


def _llama_tensors(shape: Shape, weights: str, output_layer: str) -> Iterator[Tensor]:
    wide, narrow = shape.hidden, shape.kv_heads * shape.head_dim
    # Of the size that gives logits a spread of a few units, where the table is the output layer too.
    yield replace(_matrix("model.embed_tokens", shape.vocab, wide, output_layer), std=4 * wide**-0.5)
    for index in range(shape.layers):
        layer = f"model.layers.{index}"
        yield _norm(f"{layer}.input_layernorm", wide, weights)
        yield _matrix(f"{layer}.self_attn.q_proj", wide, wide, weights)
        yield _matrix(f"{layer}.self_attn.k_proj", narrow, wide, weights)
        yield _matrix(f"{layer}.self_attn.v_proj", narrow, wide, weights)
        yield _matrix(f"{layer}.self_attn.o_proj", wide, wide, weights)
        yield _norm(f"{layer}.post_attention_layernorm", wide, weights)
        yield _matrix(f"{layer}.mlp.gate_proj", shape.intermediate, wide, weights)
        yield _matrix(f"{layer}.mlp.up_proj", shape.intermediate, wide, weights)
        yield _matrix(f"{layer}.mlp.down_proj", wide, shape.intermediate, weights)
    yield _norm("model.norm", wide, weights)
    if not shape.tied:
        yield replace(_matrix("lm_head", shape.vocab, wide, output_layer), std=4 * wide**-0.5)


def _bert_tensors(shape: Shape, weights: str) -> Iterator[Tensor]:
    plain, wide = _plain(weights), shape.hidden

    def linear(name: str, rows: int, cols: int) -> Iterator[Tensor]:
        yield _matrix(name, rows, cols, weights)
        yield Tensor(f"{name}.bias", (rows,), plain, 0.1)

    def norm(name: str) -> Iterator[Tensor]:
        yield _norm(name, wide, weights)
        yield Tensor(f"{name}.bias", (wide,), plain, 0.1)

    for name, count in (("word", shape.vocab), ("position", shape.positions), ("token_type", 2)):
        yield Tensor(f"embeddings.{name}_embeddings.weight", (count, wide), plain, 1.0)
    yield from norm("embeddings.LayerNorm")
    for index in range(shape.layers):
        layer = f"encoder.layer.{index}"
        for name in ("query", "key", "value"):
            yield from linear(f"{layer}.attention.self.{name}", wide, wide)
        yield from linear(f"{layer}.attention.output.dense", wide, wide)
        yield from norm(f"{layer}.attention.output.LayerNorm")
        yield from linear(f"{layer}.intermediate.dense", shape.intermediate, wide)
        yield from linear(f"{layer}.output.dense", wide, shape.intermediate)
        yield from norm(f"{layer}.output.LayerNorm")


# --- configs, as transformers writes them ---

_QUANTIZATION = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
}


def _llama_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
    }


def _bert_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
    }


# --- the file ---

_BLOCK, _NESTED_BLOCK = 64, 256  # of bitsandbytes' NF4, and of its scales
_PIECE = 1 << 22  # values drawn and written at once
_BYTES = {"U8": 1, "BF16": 2, "F32": 4}
Part = tuple[str, str, tuple[int, ...], Callable[[np.random.SFC64], Iterable[Array]]]  # name, dtype, shape, its values


def _write_safetensors(file: BinaryIO, plan: list[Tensor], seed: int) -> None:
    stored = [part for tensor in plan for part in _parts(tensor)]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape, _ in stored:
        size = math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for number, (_, _, _, values) in enumerate(stored):
        for piece in values(np.random.SFC64(np.random.SeedSequence([seed, number]))):
            file.write(np.ascontiguousarray(piece).data)


def _parts(tensor: Tensor) -> Iterator[Part]:
    """What a tensor is in the file: itself, or the planes of bitsandbytes."""
    if tensor.kind == "f32":
        yield tensor.name, "F32", tensor.shape, lambda bits: _spread(bits, tensor)
    elif tensor.kind == "bf16":
        # Cut, not rounded: random values need no better.
        yield (
            tensor.name,
            "BF16",
            tensor.shape,
            lambda bits: ((values.view(np.uint32) >> 16).astype(np.uint16) for values in _spread(bits, tensor)),
        )
    else:
        yield from _nf4_parts(tensor)


def _random_bytes(bits: np.random.SFC64, count: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, count, 8 * _PIECE):
        size = min(8 * _PIECE, count - start)
        raw: NDArray[np.uint64] = bits.random_raw((size + 7) // 8)
        yield raw.astype("<u8", copy=False).view(np.uint8)[:size]


def _spread(bits: np.random.SFC64, tensor: Tensor) -> Iterator[NDArray[np.float32]]:
    """Sums of four even draws: near a normal distribution, and the same with every release of numpy."""
    count = math.prod(tensor.shape)
    for start in range(0, count, _PIECE):
        draws = bits.random_raw(min(_PIECE, count - start)).astype("<u8", copy=False).view("<u2").reshape(-1, 4)
        values = draws.sum(axis=1, dtype=np.int64) - 2 * 65535
        yield (values * (tensor.std / (65536 / 3**0.5)) + tensor.mean).astype(np.float32)


def _nf4_parts(tensor: Tensor) -> Iterator[Part]:
    size = math.prod(tensor.shape)
    blocks = -(-size // _BLOCK)
    groups = -(-blocks // _NESTED_BLOCK)
    planes = _core.quantize(np.ones((1, _BLOCK), np.float32), "nf4", _BLOCK, True).planes()
    levels, nested_levels = planes["quant_map"], planes["nested_quant_map"]
    # Levels drawn evenly have this spread in units of the block's scale, which lies within 30 % of one value.
    scale = tensor.std / float(np.sqrt(np.mean(np.square(levels, dtype=np.float64))))
    state = {
        "quant_type": "nf4",
        "blocksize": _BLOCK,
        "dtype": "bfloat16",
        "shape": list(tensor.shape),
        "nested_blocksize": _NESTED_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": scale,
    }
    text = np.frombuffer(json.dumps(state).encode(), np.uint8)
    name = tensor.name
    yield name, "U8", ((size + 1) // 2, 1), lambda bits: _random_bytes(bits, (size + 1) // 2)
    yield f"{name}.absmax", "U8", (blocks,), lambda bits: _random_bytes(bits, blocks)
    yield f"{name}.quant_map", "F32", (16,), lambda _: [levels]
    yield f"{name}.nested_absmax", "F32", (groups,), lambda _: [np.full(groups, 0.3 * scale, np.float32)]
    yield f"{name}.nested_quant_map", "F32", (256,), lambda _: [nested_levels]
    yield f"{name}.quant_state.bitsandbytes__nf4", "U8", (len(text),), lambda _: [text]
