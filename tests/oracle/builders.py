"""Tiny random checkpoints, made from a config and a seed by transformers and bitsandbytes, saved as those save them.

Sizes are odd on purpose: hidden sizes that are not a multiple of 64 (so that 64-element blocks cross rows), an odd
vocabulary, heads of 80, three KV heads. Weights are drawn so that activations stay near unit scale and logits spread
over several units: an error anywhere shows in them. No bias or norm is left at its default of 0 or 1.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import transformers

from oracle import gguf_files, packed
from oracle.vocabulary import VOCAB, bpe_tokenizer

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # everything here is tiny


LABELS = 61
"""Classes of the heads: many, so that errors are pooled over many values."""


@dataclass(frozen=True)
class Spec:
    """One checkpoint: the class that transformers runs it with, its config, and how the weights are drawn."""

    model: str  # a class of transformers
    config: dict[str, Any]
    seed: int = 1
    gain: float = 1.0  # scales every matrix
    edit: Callable[[dict[str, Any]], None] | None = field(default=None, compare=False)  # applied to config.json

    @property
    def causal(self) -> bool:
        return not self.model.startswith("Bert")

    @property
    def config_class(self) -> type:
        return type(self.build_config())

    def build_config(self) -> Any:
        return getattr(transformers, self.model).config_class(**self.config)


def _llama(**changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 210,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 80,
        "intermediate_size": 331,
        "vocab_size": VOCAB,
        "num_hidden_layers": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    } | changes


def _gpt2(**changes: Any) -> dict[str, Any]:
    return {
        "n_embd": 150,
        "n_head": 3,
        "n_inner": 331,
        "n_layer": 2,
        "vocab_size": VOCAB,
        "n_positions": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
    } | changes


def _bert(**changes: Any) -> dict[str, Any]:
    return {
        "hidden_size": 105,  # heads of 35; 105 x 331 weights are an odd number: half of the last byte is padding
        "num_attention_heads": 3,
        "intermediate_size": 331,
        "vocab_size": VOCAB,
        "num_hidden_layers": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
    } | changes


def _old_style(config: dict[str, Any]) -> None:
    """As transformers 4 wrote it: theta and scaling at the top level, torch_dtype."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.44.2"


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 12345.0, "factor": 4.0}

_K = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 512,
}

SPECS: dict[str, Spec] = {
    "llama": Spec("LlamaForCausalLM", _llama()),
    "llama_tied": Spec("LlamaForCausalLM", _llama(tie_word_embeddings=True, rms_norm_eps=1e-3)),
    # layers and tables exactly as wide as the vocabulary
    "llama_tied_wide": Spec("LlamaForCausalLM", _llama(tie_word_embeddings=True, intermediate_size=VOCAB)),
    "bert_long": Spec("BertModel", _bert(max_position_embeddings=VOCAB)),
    "llama_bias": Spec("LlamaForCausalLM", _llama(attention_bias=True, mlp_bias=True)),
    "llama_theta": Spec("LlamaForCausalLM", _llama(rope_parameters={"rope_type": "default", "rope_theta": 5e5})),
    "llama_rope3": Spec("LlamaForCausalLM", _llama(rope_parameters=_LLAMA3)),
    "llama_linear": Spec("LlamaForCausalLM", _llama(rope_parameters=_LINEAR)),
    "llama_old": Spec("LlamaForCausalLM", _llama(rope_parameters=_LINEAR), edit=_old_style),
    # rows that are whole blocks of 64, for bitsandbytes
    "llama_aligned": Spec("LlamaForCausalLM", _llama(hidden_size=192, intermediate_size=320)),
    # rows that are whole blocks of 32, for GGUF, but not of 64
    "llama_blocks": Spec("LlamaForCausalLM", _llama(hidden_size=288, intermediate_size=352)),
    "llama_blocks_tied": Spec(
        "LlamaForCausalLM", _llama(hidden_size=288, intermediate_size=352, tie_word_embeddings=True)
    ),
    "llama_blocks_rope3": Spec(
        "LlamaForCausalLM",
        _llama(hidden_size=288, intermediate_size=352, attention_bias=True, rope_parameters=_LLAMA3),
    ),
    "llama_blocks_linear": Spec(
        "LlamaForCausalLM", _llama(hidden_size=288, intermediate_size=352, rope_parameters=_LINEAR)
    ),
    # rows that are whole blocks of 256
    "llama_k": Spec("LlamaForCausalLM", _llama(**_K)),
    "llama_k_tied": Spec("LlamaForCausalLM", _llama(**_K, tie_word_embeddings=True)),
    "mistral": Spec("MistralForCausalLM", _llama(sliding_window=16)),
    "mistral_full": Spec("MistralForCausalLM", _llama(sliding_window=None)),
    "gpt2": Spec("GPT2LMHeadModel", _gpt2()),
    "gpt2_scaled": Spec(
        "GPT2LMHeadModel", _gpt2(scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True, n_inner=None)
    ),
    "gpt2_unscaled": Spec("GPT2LMHeadModel", _gpt2(scale_attn_weights=False), gain=0.5),
    "gpt2_gelu": Spec("GPT2LMHeadModel", _gpt2(activation_function="gelu")),
    "gpt2_gelu_tanh": Spec("GPT2LMHeadModel", _gpt2(activation_function="gelu_pytorch_tanh")),
    "gpt2_relu": Spec("GPT2LMHeadModel", _gpt2(activation_function="relu")),
    "gpt2_silu": Spec("GPT2LMHeadModel", _gpt2(activation_function="silu")),
    "gpt2_tanh": Spec("GPT2LMHeadModel", _gpt2(activation_function="tanh")),
    "gpt2_untied": Spec("GPT2LMHeadModel", _gpt2(tie_word_embeddings=False)),
    "gpt2_blocks": Spec("GPT2LMHeadModel", _gpt2(n_embd=160, n_head=2, n_inner=352)),
    "bert": Spec("BertModel", _bert()),
    "bert_types3": Spec("BertModel", _bert(type_vocab_size=3)),
    "bert_relu": Spec("BertModel", _bert(hidden_act="relu")),
    "bert_gelu_new": Spec("BertModel", _bert(hidden_act="gelu_new")),
    "bert_mlm": Spec("BertForMaskedLM", _bert()),
    "llama_classes": Spec("LlamaForSequenceClassification", _llama(num_labels=LABELS)),
    "gpt2_classes": Spec("GPT2ForSequenceClassification", _gpt2(num_labels=LABELS)),
    "bert_classes": Spec("BertForSequenceClassification", _bert(num_labels=LABELS)),
    "bert_token_classes": Spec("BertForTokenClassification", _bert(num_labels=LABELS)),
    "bert_blocks": Spec("BertModel", _bert(hidden_size=160, num_attention_heads=2, intermediate_size=352)),
}


def randomize(model: Any, seed: int, gain: float) -> None:
    """Matrices ~ N(0, gain^2 / fan_in), embeddings ~ N(0, 1) (tied ones less, so that logits have a spread of about 4),
    norm gains ~ 1 +- 0.3, every bias ~ N(0, 0.3^2)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, std: float, mean: float = 0.0) -> None:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)

    tied = getattr(model.config, "tie_word_embeddings", False)
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        owner = model.get_submodule(name.rpartition(".")[0])
        kind = type(owner).__name__
        if tied and name in ("model.norm.weight", "transformer.ln_f.weight"):
            normal(parameter, 1.0)  # of both signs, or a token's likeliest successor would be itself
        elif parameter.ndim == 1:
            normal(parameter, 0.3, 1.0 if "Norm" in kind and name.endswith("weight") else 0.0)
        elif isinstance(owner, torch.nn.Embedding):
            normal(parameter, 4.0 / parameter.shape[1] ** 0.5 if tied and not name.startswith("embed") else 1.0)
        elif name.startswith("lm_head"):
            normal(parameter, 4.0 / parameter.shape[1] ** 0.5)
        else:
            fan_in = parameter.shape[0] if kind == "Conv1D" else parameter.shape[1]
            normal(parameter, gain / fan_in**0.5)


def save_tokenizer(folder: Path) -> None:
    bpe_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"})
    )


def make_model(spec: Spec) -> Any:
    model = getattr(transformers, spec.model)(spec.build_config()).eval()
    randomize(model, spec.seed, spec.gain)
    return model


def save_float(spec: Spec, folder: Path, shard_size: str = "5GB", dtype: torch.dtype = torch.float32) -> None:
    model = make_model(spec).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard_size)
    if spec.edit is not None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        spec.edit(config)
        path.write_text(json.dumps(config))
    if spec.causal:
        save_tokenizer(folder)


def save_bnb(
    spec: Spec, source: Path, folder: Path, quant_type: str, double_quant: bool, shard_size: str = "5GB"
) -> None:
    """A 4-bit folder, or one of LLM.int8() ("int8"): transformers quantises `source`, the float folder of the spec, by
    bitsandbytes and saves it."""
    kind = bnb.nn.Linear8bitLt if quant_type == "int8" else bnb.nn.Linear4bit
    config = transformers.BitsAndBytesConfig(
        load_in_8bit=quant_type == "int8",
        load_in_4bit=quant_type != "int8",
        bnb_4bit_quant_type="nf4" if quant_type == "int8" else quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = getattr(transformers, spec.model).from_pretrained(source, quantization_config=config, device_map="cpu")
    assert any(isinstance(module, kind) for module in model.modules())
    model.save_pretrained(folder, max_shard_size=shard_size)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)


class Zoo:
    """Makes each checkpoint when it is first asked for and keeps it for the session.

    Names: "llama" (float folder), "llama/nf4", "llama/nf4-dq", "llama/fp4", "llama/fp4-dq", "llama/int8" (all of them
    bitsandbytes),
    "llama/bf16", "llama/sharded", "llama/nf4-dq-sharded", "llama_blocks/Q4_0.gguf" (GGUF; see gguf_files).
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def spec(self, name: str) -> Spec:
        return SPECS[name.split("/", maxsplit=1)[0]]

    def path(self, name: str) -> Path:
        base, _, variant = name.partition("/")
        path = self.root / base / (variant or "float")
        if path.exists():
            return path
        spec = SPECS[base]
        path.parent.mkdir(parents=True, exist_ok=True)
        if variant.endswith(".gguf"):
            gguf_files.write(make_model(spec), path, variant.removesuffix(".gguf"))
        elif match := re.fullmatch(r"(nf4|fp4|int8)(-dq)?(-sharded)?", variant):
            shards = "60KB" if match[3] else "5GB"
            save_bnb(spec, self.path(base), path, match[1], bool(match[2]), shards)
        elif variant in packed.KINDS:
            packed.save(self.path(base), path, variant)
        else:
            save = {
                "": {},
                "bf16": {"dtype": torch.bfloat16},
                "f16": {"dtype": torch.float16},
                "sharded": {"shard_size": "200KB"},
            }
            save_float(spec, path, **save[variant])
        return path
