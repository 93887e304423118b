"""A GGUF file's values as a float32 folder that transformers reads: the weights that references run with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gguf_models import decoded
from numpy.typing import NDArray
from safetensors.numpy import save_file

from halfbyte import _core, ops

_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROOT = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _name(gguf_name: str) -> str:
    name = gguf_name.removesuffix(".weight")
    if not name.startswith("blk."):
        return f"{_ROOT[name]}.weight"
    _, index, part = name.split(".")
    return f"model.layers.{index}.{_NAMES[part]}.weight"


def _halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of q or k from llama.cpp's rotary pairs (2i, 2i + 1) to transformers' (i, i + d/2), head by head."""
    shape = weight.shape
    return weight.reshape(heads, shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(shape)


def _through_nf4(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(ops.quantize(weight, "nf4").dequantize(), np.float32)


def write_llama(folder: Path, source: Path, *, nf4: bool) -> None:
    """config.json and model.safetensors. `nf4`: the linear layers and the output layer (not the table) through NF4."""
    file = _core.Checkpoint(str(source))

    def number(key: str) -> float:
        return float(file.metadata(f"llama.{key}"))

    heads, kv_heads = int(number("attention.head_count")), int(number("attention.head_count_kv"))
    tensors = {}
    for gguf_name, values in decoded(source).items():
        name = _name(gguf_name)
        if ".q_proj." in name or ".k_proj." in name:
            values = _halves(values, heads if ".q_proj." in name else kv_heads)  # noqa: PLW2901
        if nf4 and name.endswith("_proj.weight"):
            values = _through_nf4(np.ascontiguousarray(values))  # noqa: PLW2901
        tensors[name] = np.ascontiguousarray(values)
    table = tensors["model.embed_tokens.weight"]
    if nf4:
        tensors["lm_head.weight"] = _through_nf4(table)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": int(number("embedding_length")),
        "num_hidden_layers": int(number("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": int(number("feed_forward_length")),
        "vocab_size": len(table),
        "max_position_embeddings": int(number("context_length")),
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
        "rope_theta": number("rope.freq_base"),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
