"""GGUF files as llama.cpp's convert_hf_to_gguf.py writes them, made from transformers models; and the way back."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from oracle import ggml_types
from oracle.rope import rope_frequencies
from oracle.vocabulary import bpe_tokenizer

Array = NDArray[np.float32]

_LLAMA = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{}.input_layernorm": "blk.{}.attn_norm",
    "model.layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "model.layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "model.layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "model.layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "model.layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "model.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "model.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "model.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}
_GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
    "transformer.h.{}.ln_1": "blk.{}.attn_norm",
    "transformer.h.{}.ln_2": "blk.{}.ffn_norm",
    "transformer.h.{}.attn.c_attn": "blk.{}.attn_qkv",
    "transformer.h.{}.attn.c_proj": "blk.{}.attn_output",
    "transformer.h.{}.mlp.c_fc": "blk.{}.ffn_up",
    "transformer.h.{}.mlp.c_proj": "blk.{}.ffn_down",
}
_BERT = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "encoder.layer.{}.attention.self.query": "blk.{}.attn_q",
    "encoder.layer.{}.attention.self.key": "blk.{}.attn_k",
    "encoder.layer.{}.attention.self.value": "blk.{}.attn_v",
    "encoder.layer.{}.attention.output.dense": "blk.{}.attn_output",
    "encoder.layer.{}.attention.output.LayerNorm": "blk.{}.attn_output_norm",
    "encoder.layer.{}.intermediate.dense": "blk.{}.ffn_up",
    "encoder.layer.{}.output.dense": "blk.{}.ffn_down",
    "encoder.layer.{}.output.LayerNorm": "blk.{}.layer_output_norm",
}
ROUNDED = ("Q8_0", "Q4_0", "Q4_1")
NAMES = {"llama": _LLAMA, "mistral": _LLAMA, "gpt2": _GPT2, "bert": _BERT}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "gpt2": "gpt2", "bert": "bert"}


def gguf_name(model_type: str, hf: str) -> str | None:
    """ "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"; None for tensors that the converter drops."""
    module, _, suffix = hf.rpartition(".")
    index = re.search(r"\.(\d+)\.", module)
    key = re.sub(r"\.\d+\.", ".{}.", module, count=1)
    if key not in NAMES[model_type]:
        assert module == "pooler.dense", hf
        return None
    return f"{NAMES[model_type][key].format(index[1] if index else '')}.{suffix}"


def permute(weight: Array, heads: int) -> Array:
    """Rows of q or k: from rotary pairs (i, i + d/2) to pairs (2i, 2i + 1), head by head."""
    shape = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, 2, shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(shape))


def unpermute(weight: Array, heads: int) -> Array:
    shape = weight.shape
    return np.ascontiguousarray(weight.reshape(heads, shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(shape))


def is_conv1d(model_type: str, hf: str) -> bool:
    return model_type == "gpt2" and re.search(r"\.c_(attn|proj|fc)\.weight$", hf) is not None


def _rotary_heads(config: Any, hf: str) -> int | None:
    if config.model_type not in ("llama", "mistral"):
        return None
    if ".q_proj." in hf:
        return int(config.num_attention_heads)
    if ".k_proj." in hf:
        return int(config.num_key_value_heads)
    return None


def write(model: Any, path: Path, tensor_type: str, **options: Any) -> None:
    """Matrices in `tensor_type`, vectors and learned positions in F32. "Q8_0", "Q4_0", "Q4_1" are rounded by gguf, with
    embeddings and output in Q8_0, as in SmolLM2's file. Any other quantised type: random blocks of the size that the
    matrix has, embeddings and output too. options: of GGUFWriter."""
    config = model.config
    kind = config.model_type
    writer = gguf.GGUFWriter(path, ARCHITECTURES[kind], **options)
    writer.add_name("tiny")
    _add_parameters(writer, config)
    for hf, parameter in model.state_dict().items():
        if hf == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name = gguf_name(kind, hf)
        if name is None:
            continue
        data = parameter.float().numpy()
        if is_conv1d(kind, hf):
            data = np.ascontiguousarray(data.T)
        if heads := _rotary_heads(config, hf):
            data = permute(data, heads)
        if data.ndim == 1 or name.startswith(("position_embd", "token_types")):
            qtype = gguf.GGMLQuantizationType.F32
        elif tensor_type in ROUNDED and name.startswith(("token_embd.", "output.")):
            qtype = gguf.GGMLQuantizationType.Q8_0
        else:
            qtype = gguf.GGMLQuantizationType[tensor_type]
        writer.add_tensor(name, _packed(data, qtype, name), raw_dtype=qtype)
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _packed(data: Array, qtype: gguf.GGMLQuantizationType, name: str) -> NDArray[Any]:
    if qtype == gguf.GGMLQuantizationType.F64:
        # Values that float32 rounds.
        return data.astype(np.float64) * (1 + 2.0**-30)
    if qtype.name in ROUNDED or qtype not in ggml_types.LAYOUTS:
        return gguf.quants.quantize(data, qtype)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return ggml_types.random_matrix(qtype, *data.shape, float(np.sqrt(np.mean(data**2))), rng)


def _rope_factors(config: Any) -> Array | None:
    """llama3 scaling travels as a tensor of divisors of the frequencies."""
    rope = getattr(config, "rope_parameters", None)
    if not rope or rope["rope_type"] != "llama3":
        return None
    plain = rope_frequencies(config.head_dim, {"rope_type": "default", "rope_theta": rope["rope_theta"]})
    return (plain / rope_frequencies(config.head_dim, rope)).numpy().astype(np.float32)


def _add_parameters(writer: gguf.GGUFWriter, config: Any) -> None:
    if config.model_type == "gpt2":
        writer.add_context_length(config.n_positions)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_block_count(config.n_layer)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        _add_bpe(writer)
        return
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "bert":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        _add_wordpiece(writer, config)
        return
    rope = config.rope_parameters
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_vocab_size(config.vocab_size)
    _add_bpe(writer)


def _add_bpe(writer: gguf.GGUFWriter) -> None:
    document = json.loads(bpe_tokenizer().to_str())
    tokens = [token for token, _ in sorted(document["model"]["vocab"].items(), key=lambda item: item[1])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges([" ".join(merge) for merge in document["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _add_wordpiece(writer: gguf.GGUFWriter, config: Any) -> None:
    """A vocabulary with the marks of llama.cpp's WordPiece: U+2581 before a piece that begins a word."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(ord("a") + i) for i in range(26)]
    words = ["▁" + letter for letter in letters] + letters
    tokens = special + words
    tokens += [f"▁w{i}" for i in range(config.vocab_size - len(tokens))]
    writer.add_token_type_count(config.type_vocab_size)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    for add, name in (
        (writer.add_pad_token_id, "[PAD]"),
        (writer.add_unk_token_id, "[UNK]"),
        (writer.add_bos_token_id, "[CLS]"),
        (writer.add_sep_token_id, "[SEP]"),
        (writer.add_mask_token_id, "[MASK]"),
    ):
        add(tokens.index(name))


def read_weights(reader: gguf.GGUFReader, config: Any) -> dict[str, torch.Tensor]:
    """The state dict for transformers: dequantised by the gguf package, in transformers' orientation and order."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    tensors.pop("rope_freqs.weight", None)
    with torch.device("meta"):
        model = (
            transformers.AutoModelForCausalLM.from_config(config)
            if config.model_type != "bert"
            else transformers.BertModel(config)
        )
    weights = {}
    for hf in model.state_dict():
        name = gguf_name(config.model_type, hf)
        if name is None or (hf == "lm_head.weight" and config.tie_word_embeddings):
            continue
        tensor = tensors.pop(name)
        data = tensor.data
        if tensor.tensor_type != gguf.GGMLQuantizationType.F64:
            data = gguf.quants.dequantize(data, tensor.tensor_type)
        data = data.astype(np.float32)
        data = data.reshape([int(n) for n in tensor.shape[::-1]])
        if heads := _rotary_heads(config, hf):
            data = unpermute(data, heads)
        if is_conv1d(config.model_type, hf):
            data = data.T
        weights[hf] = torch.from_numpy(np.array(data))
    assert not tensors, f"not mapped: {sorted(tensors)}"
    return weights


def read_llama_config(reader: gguf.GGUFReader) -> Any:
    """LlamaConfig from the metadata of a llama GGUF file."""
    fields = reader.fields

    def value(key: str) -> Any:
        return fields[f"llama.{key}"].contents()

    hidden, heads = value("embedding_length"), value("attention.head_count")
    return transformers.LlamaConfig(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=hidden // heads,
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        vocab_size=value("vocab_size"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings=not any(tensor.name == "output.weight" for tensor in reader.tensors),
    )
