"""GGUF models for llama.cpp: the shapes of ``halfbyte bench --shape`` with random blocks, and SmolLM2 in Q4_0."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from halfbyte.bench_models import Shape

Blocks = NDArray[np.uint8]
Kind = gguf.GGMLQuantizationType

_LAYER = (
    ("attn_norm", "norm"),
    ("attn_q", "wide", "wide"),
    ("attn_k", "narrow", "wide"),
    ("attn_v", "narrow", "wide"),
    ("attn_output", "wide", "wide"),
    ("ffn_norm", "norm"),
    ("ffn_gate", "intermediate", "wide"),
    ("ffn_up", "intermediate", "wide"),
    ("ffn_down", "wide", "intermediate"),
)


def add_parameters(writer: gguf.GGUFWriter, shape: Shape, theta: float, eps: float) -> None:
    """What llama.cpp needs to know; no vocabulary, since the yardsticks speak in token ids."""
    writer.add_context_length(shape.positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(eps)
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("no_vocab")


def random_q4_0(generator: np.random.Generator, rows: int, cols: int, std: float) -> Blocks:
    """[rows, bytes of a row]: blocks of 32 values, a float16 scale and 16 bytes of codes 0..15 that mean -8..7."""
    blocks = generator.integers(0, 256, (rows * cols // 32, 18), np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(std / 4.61).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def random_q6_k(generator: np.random.Generator, rows: int, cols: int, std: float) -> Blocks:
    """Blocks of 256: 128 + 64 bytes of codes 0..63 that mean -32..31, 16 int8 scales, a float16 scale of those."""
    blocks = generator.integers(0, 256, (rows * cols // 256, 210), np.uint8)
    blocks[:, 192:208] = generator.integers(48, 80, (len(blocks), 16), np.uint8)
    blocks[:, 208:] = np.frombuffer(np.float16(std / (64 * 18.5)).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


_Make = Callable[[np.random.Generator, int, int, float], Blocks]
_Planned = tuple[str, tuple[int, ...], Kind, _Make | None]


def _plan(shape: Shape) -> Iterator[_Planned]:
    """As `llama-quantize ... Q4_0` decides: all in Q4_0 but the output layer, tied or not, which is Q6_K."""
    sizes = {
        "wide": shape.hidden,
        "narrow": shape.kv_heads * shape.head_dim,
        "intermediate": shape.intermediate,
    }
    q4, q6 = (Kind.Q4_0, random_q4_0), (Kind.Q6_K, random_q6_k)
    yield "token_embd", (shape.vocab, shape.hidden), *(q6 if shape.tied else q4)
    for index in range(shape.layers):
        for name, *dims in _LAYER:
            if dims == ["norm"]:
                yield f"blk.{index}.{name}", (shape.hidden,), Kind.F32, None
            else:
                yield f"blk.{index}.{name}", (sizes[dims[0]], sizes[dims[1]]), *q4
    yield "output_norm", (shape.hidden,), Kind.F32, None
    if not shape.tied:
        yield "output", (shape.vocab, shape.hidden), *q6


def write_random(path: Path, shape: Shape, seed: int) -> None:
    """One tensor in memory at a time."""
    writer = gguf.GGUFWriter(path, "llama")
    add_parameters(writer, shape, 500000.0, 1e-5)
    plan = list(_plan(shape))
    for name, dims, kind, _ in plan:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        bytes_ = int(np.prod(dims)) // block * size
        if kind == Kind.F32:
            writer.add_tensor_info(f"{name}.weight", dims, np.dtype(np.float32), bytes_)
        else:
            stored = (dims[0], dims[1] // block * size)
            writer.add_tensor_info(f"{name}.weight", stored, np.dtype(np.uint8), bytes_, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for index, (_, dims, _, make) in enumerate(plan):
        generator = np.random.Generator(np.random.SFC64([seed, index]))
        if make is None:
            writer.write_tensor_data(np.ones(dims, np.float32))
        else:
            writer.write_tensor_data(make(generator, dims[0], dims[1], dims[1] ** -0.5))
    writer.close()


def decoded(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every tensor of a GGUF file as float32, [rows, cols] or [size], under its own name."""
    return {
        tensor.name: np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        for tensor in gguf.GGUFReader(path).tensors
    }


def requantize(source: Path, path: Path, shape: Shape) -> None:
    """The linear layers of a GGUF file rounded to Q4_0; the table of embeddings and the norms stay as they are.

    `llama-quantize` does the same with SmolLM2: rows of 576 are no whole blocks of Q6_K, and it falls back to Q8_0.
    """
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "llama")
    add_parameters(writer, shape, _number(reader, "llama.rope.freq_base"), _number(reader, _EPS))
    for tensor in reader.tensors:
        data, kind = tensor.data, tensor.tensor_type
        if len(tensor.shape) == 2 and tensor.name.startswith("blk."):
            data, kind = gguf.quants.quantize(gguf.quants.dequantize(data, kind), Kind.Q4_0), Kind.Q4_0
        writer.add_tensor(tensor.name, np.array(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_EPS = "llama.attention.layer_norm_rms_epsilon"


def _number(reader: gguf.GGUFReader, key: str) -> float:
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"the GGUF file has no {key}")
    return float(field.contents())


def write_lora(path: Path, shape: Shape, rank: int, seed: int) -> None:
    """A random adapter of every linear layer, as llama.cpp's convert_lora_to_gguf.py writes it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    generator = np.random.Generator(np.random.SFC64([seed, rank]))
    for name, dims, kind, _ in _plan(shape):
        if kind == Kind.F32 or not name.startswith("blk."):
            continue
        for suffix, size in (("lora_a", (rank, dims[1])), ("lora_b", (dims[0], rank))):
            values = generator.standard_normal(size, np.float32) * np.float32(0.02)
            writer.add_tensor(f"{name}.weight.{suffix}", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
