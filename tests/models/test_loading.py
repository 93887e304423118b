"""Checkpoints that contradict themselves: each is one error that names what is wrong, and none is a crash."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import halfbyte

if TYPE_CHECKING:
    from oracle.builders import Zoo

Tensors = dict[str, torch.Tensor]
Change = Callable[[dict[str, Any], Tensors], None]


def _drop(name: str) -> Change:
    def drop(_: dict[str, Any], tensors: Tensors) -> None:
        del tensors[name]

    return drop


def _put(name: str, make: Callable[[Tensors], torch.Tensor]) -> Change:
    return lambda _, tensors: tensors.update({name: make(tensors)})


def _config(**fields: Any) -> Change:
    return lambda config, _: config.update(fields)


def _untied_twin(config: dict[str, Any], tensors: Tensors) -> None:
    config["tie_word_embeddings"] = True
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1


Q = "model.layers.0.self_attn.q_proj.weight"
CASES: dict[str, tuple[Change, type[Exception], str]] = {
    "missing tensor": (_drop(Q), halfbyte.NotFoundError, Q),
    "missing norm": (_drop("model.norm.weight"), halfbyte.NotFoundError, "model.norm.weight"),
    "missing head": (_drop("lm_head.weight"), halfbyte.NotFoundError, "lm_head.weight"),
    "wrong shape": (_put(Q, lambda t: t[Q][:-1].clone()), halfbyte.CorruptFileError, Q),
    "scalar table": (
        _put("model.embed_tokens.weight", lambda _: torch.tensor(1.0)),
        halfbyte.CorruptFileError,
        "model.embed_tokens.weight",
    ),
    "wrong norm": (_put("model.norm.weight", lambda _: torch.ones(3)), halfbyte.CorruptFileError, "model.norm.weight"),
    "unused tensor": (
        _put("model.layers.0.self_attn.q_norm.weight", lambda _: torch.ones(80)),
        halfbyte.UnsupportedError,
        "q_norm",
    ),
    "promised bias": (_config(attention_bias=True), halfbyte.NotFoundError, "q_proj.bias"),
    "tied to another table": (_untied_twin, halfbyte.UnsupportedError, "lm_head.weight"),
    "too many layers": (_config(num_hidden_layers=2**31 - 1), halfbyte.NotFoundError, "layers."),
    "absurd layers": (_config(num_hidden_layers=2**62), halfbyte.CorruptFileError, "num_hidden_layers"),
    "no heads": (_config(num_attention_heads=0), halfbyte.CorruptFileError, "num_attention_heads"),
    "huge heads": (_config(head_dim=2**30), halfbyte.CorruptFileError, Q),
    "heads that do not divide": (_config(num_key_value_heads=4), halfbyte.CorruptFileError, "heads"),
    "odd heads": (_config(head_dim=81), halfbyte.UnsupportedError, "81"),
    "unknown field": (_config(attention_sink=True), halfbyte.UnsupportedError, "attention_sink"),
    "unknown rope": (
        _config(rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 10000.0}),
        halfbyte.UnsupportedError,
        "yarn",
    ),
    "unknown field of rope": (
        _config(rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "twist": 1}),
        halfbyte.UnsupportedError,
        "twist",
    ),
    "negative theta": (
        _config(rope_parameters={"rope_type": "default", "rope_theta": -1.0}),
        halfbyte.CorruptFileError,
        "theta",
    ),
    "unknown activation": (_config(hidden_act="snake"), halfbyte.UnsupportedError, "snake"),
    "unknown architecture": (
        _config(architectures=["SnakeForCausalLM"]),
        halfbyte.UnsupportedError,
        "SnakeForCausalLM",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contradictions(zoo: Zoo, tmp_path: Path, name: str) -> None:
    change, error, text = CASES[name]
    folder = tmp_path / "model"
    shutil.copytree(zoo.path("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(error, match=text.replace(".", r"\.")):
        halfbyte.load(folder)


NAN = 0x7E00  # a float16
# The byte of a block that is spoilt, what is written there, and what the error says of it.
BAD_SCALES = {
    "Q8_0": (0, NAN, "scale"),
    "Q4_1": (2, NAN, "offset"),
    "Q4_K": (2, 0x7C00, "offset"),
    "Q6_K": (208, NAN, "scale"),
    "IQ2_XXS": (0, 0xFC00, "scale"),
    "MXFP4": (0, 0xFFFF, "scale"),
}


@pytest.mark.parametrize("kind", BAD_SCALES)
@pytest.mark.parametrize("tensor", ["token_embd.weight", "blk.1.attn_q.weight", "output.weight"])
def test_a_scale_of_a_gguf_weight_that_is_no_number(zoo: Zoo, tmp_path: Path, kind: str, tensor: str) -> None:
    """llama_k and llama_blocks: rows of one and more blocks; the last block of row 5."""
    content = bytearray(zoo.path(f"llama_k/{kind}.gguf").read_bytes())
    at, bits, what = BAD_SCALES[kind]
    reader = gguf.GGUFReader(zoo.path(f"llama_k/{kind}.gguf"))
    found = next(item for item in reader.tensors if item.name == tensor)
    elements, size = gguf.GGML_QUANT_SIZES[found.tensor_type]
    if found.tensor_type.name != kind:  # embeddings and output of Q4_1 are in Q8_0
        at, what = 0, "scale"
    row_bytes = int(found.shape[0]) // elements * size
    start = int(found.data_offset) + 6 * row_bytes - size + at
    content[start : start + 2] = bits.to_bytes(2, "little")
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    column = int(found.shape[0]) - elements
    text = rf"bad\.gguf: tensor '{tensor}': the {what} of row 5 from column {column} on is .*expected a finite number"
    with pytest.raises(halfbyte.CorruptFileError, match=text):
        halfbyte.load(path)


@pytest.mark.parametrize("variant", ["nf4", "fp4-dq", "int8"])
def test_a_scale_of_a_bitsandbytes_weight_that_is_no_number(zoo: Zoo, tmp_path: Path, variant: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(zoo.path(f"llama/{variant}"), folder)
    tensors = load_file(folder / "model.safetensors")
    name = {"nf4": Q + ".absmax", "fp4-dq": Q + ".nested_absmax", "int8": Q.removesuffix("weight") + "SCB"}[variant]
    tensors[name][1] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        halfbyte.CorruptFileError, match=rf"{Q}.*the scale \((absmax|SCB)\) of row \d+ from column \d+ on is nan"
    ):
        halfbyte.load(folder)


def test_a_gguf_table_without_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "scalar.gguf"
    writer = gguf.GGUFWriter(path, "bert")
    for name, value in (
        ("embedding_length", 4),
        ("attention.head_count", 1),
        ("feed_forward_length", 4),
        ("block_count", 1),
    ):
        writer.add_uint32(f"bert.{name}", value)
    writer.add_tensor("token_embd.weight", np.zeros((), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(halfbyte.CorruptFileError, match=r"token_embd\.weight"):
        halfbyte.load(path)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"rope_type": "linear", "factor": 0.0}, "rotary frequency 0 comes to inf"),
        ({"rope_type": "default", "partial_rotary_factor": 1e300}, r"partial_rotary_factor is 1e\+300"),
        ({"rope_type": "default", "partial_rotary_factor": -0.5}, r"partial_rotary_factor is -0\.5"),
        ({"rope_type": "default", "rope_theta": 1e-320}, "rotary frequency 5 comes to inf"),
        (
            {
                "rope_type": "llama3",
                "factor": 0.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
            r"rotary frequency \d+ comes to inf",
        ),
    ],
)
def test_rotary_embeddings_out_of_range(zoo: Zoo, tmp_path: Path, parameters: dict[str, Any], text: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(zoo.path("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 10000.0} | parameters
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(halfbyte.CorruptFileError, match=text):
        halfbyte.load(folder)
