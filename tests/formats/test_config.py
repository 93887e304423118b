"""config.json and GGUF hyperparameters: a field is applied, known to be harmless, or an error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from files import ARRAY, BOOL, F32, STRING, U32, gguf_bytes, gguf_pair, gguf_tensor
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from halfbyte import _core

DECODER: dict[str, Any] = {
    "vocab_size": 9,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
ENCODER = {key: value for key, value in DECODER.items() if key != "num_key_value_heads"}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**DECODER)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=16, n_layer=1, n_head=2)),
    "bert": lambda: BertModel(BertConfig(**ENCODER)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    result = {}
    torch.manual_seed(0)
    for name, make in MODELS.items():
        result[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(result[name])
    return result


def load(path: Path) -> Any:
    return _core.Engine.load(str(path), "cpu", 1, "float32", "", None)


def with_config(folder: Path, target: Path, change: dict[str, Any], drop: tuple[str, ...] = ()) -> Path:
    """The same model with fields of config.json changed."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = {key: value for key, value in {**config, **change}.items() if key not in drop}
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    return target


@pytest.mark.parametrize("name", list(MODELS))
def test_saved_by_transformers(folders: dict[str, Path], name: str) -> None:
    """Every field that this version of transformers writes is understood."""
    assert load(folders[name]).info()["layers"] == 1


# What older versions wrote, and what is found in the wild.
HARMLESS: dict[str, Any] = {
    "_name_or_path": "somewhere",
    "_attn_implementation_autoset": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0",
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "sep_token_id": 5,
    "gradient_checkpointing": False,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "problem_type": None,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "return_dict": True,
    "output_attentions": False,
    "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "temperature": 1.0,
    "unsloth_version": "2024.9",
    "classifier_dropout": 0.1,
    "something_of_the_future": None,
}


@pytest.mark.parametrize("name", list(MODELS))
def test_harmless_fields(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    load(with_config(folders[name], tmp_path / "m", HARMLESS))


def test_llama_of_old_versions(folders: dict[str, Path], tmp_path: Path) -> None:
    change = {"rope_theta": 10000.0, "rope_scaling": None, "pretraining_tp": 1, "rope_interleaved": False}
    load(with_config(folders["llama"], tmp_path / "m", change, drop=("rope_parameters", "head_dim", "dtype")))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"attention_multiplier": 0.5}, '"attention_multiplier" .0.5. is not known'),
        ({"is_encoder_decoder": True}, '"is_encoder_decoder" .true. is not known'),
        ({"pruned_heads": {"0": [1]}}, '"pruned_heads"'),
        ({"rope_interleaved": True}, '"rope_interleaved"'),
        ({"long_value": "x" * 1000}, r'"long_value" \("x{70,76}\.\.\.\)'),
    ],
)
@pytest.mark.parametrize("name", list(MODELS))
def test_unknown_fields(folders: dict[str, Path], tmp_path: Path, name: str, change: dict[str, Any], text: str) -> None:
    with pytest.raises(_core.UnsupportedError, match=f"config.json: the field {text}"):
        load(with_config(folders[name], tmp_path / "m", change))


def test_unknown_fields_of_an_object(folders: dict[str, Path], tmp_path: Path) -> None:
    parameters = {"rope_type": "default", "rope_theta": 10000.0, "future": 2}
    with pytest.raises(_core.UnsupportedError, match=r'rope_parameters: the field "future" .2. is not known'):
        load(with_config(folders["llama"], tmp_path / "m", {"rope_parameters": parameters}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hidden_size": "16"}, '"hidden_size" must be an integer, found "16"'),
        ({"hidden_size": 16.0}, '"hidden_size" must be an integer, found 16.0'),
        ({"hidden_size": True}, '"hidden_size" must be an integer, found true'),
        ({"hidden_size": 2**63}, '"hidden_size" must be an integer of at most 63 bits, found 9223372036854775808'),
        ({"rms_norm_eps": "1e-6"}, '"rms_norm_eps" must be a number, found "1e-6"'),
        ({"tie_word_embeddings": 0}, '"tie_word_embeddings" must be true or false, found 0'),
        ({"hidden_act": 1}, '"hidden_act" must be a text, found 1'),
        ({"rope_parameters": []}, r'"rope_parameters" must be an object, found \[\]'),
    ],
)
def test_wrong_types(folders: dict[str, Path], tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(_core.CorruptFileError, match=text):
        load(with_config(folders["llama"], tmp_path / "m", change))


def test_missing_fields(folders: dict[str, Path], tmp_path: Path) -> None:
    for i, change in enumerate(({}, {"hidden_size": None})):
        with pytest.raises(_core.NotFoundError, match=r'config\.json: the field "hidden_size" is missing'):
            load(with_config(folders["llama"], tmp_path / str(i), change, drop=() if change else ("hidden_size",)))


# --- GGUF -----------------------------------------------------------------------------------------------------------

PAIRS = {
    "general.architecture": (STRING, "llama"),
    "llama.block_count": (U32, 1),
    "llama.embedding_length": (U32, 16),
    "llama.feed_forward_length": (U32, 24),
    "llama.attention.head_count": (U32, 2),
    "llama.attention.head_count_kv": (U32, 1),
    "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
    "llama.context_length": (U32, 64),
    "llama.rope.freq_base": (F32, 10000.0),
    "llama.vocab_size": (U32, 9),
}
TENSORS = {
    "token_embd.weight": [16, 9],
    "output_norm.weight": [16],
    "blk.0.attn_norm.weight": [16],
    "blk.0.ffn_norm.weight": [16],
    "blk.0.attn_q.weight": [16, 16],
    "blk.0.attn_k.weight": [16, 8],
    "blk.0.attn_v.weight": [16, 8],
    "blk.0.attn_output.weight": [16, 16],
    "blk.0.ffn_gate.weight": [16, 24],
    "blk.0.ffn_up.weight": [16, 24],
    "blk.0.ffn_down.weight": [24, 16],
}


def gguf_model(folder: Path, change: dict[str, tuple[int, Any]]) -> Path:
    """A llama of zeros."""
    tensors, offset = [], 0
    for name, dims in TENSORS.items():
        tensors.append(gguf_tensor(name, dims, 0, offset))
        size = 4
        for dim in dims:
            size *= dim
        offset += -(-size // 32) * 32
    pairs = [gguf_pair(key, *value) for key, value in {**PAIRS, **change}.items()]
    path = folder / "model.gguf"
    path.write_bytes(gguf_bytes(pairs, tensors, b"\0" * offset))
    return path


def test_gguf_fields_outside_the_architecture(tmp_path: Path) -> None:
    change = {
        "general.quantization_version": (U32, 2),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, ["a"])),
        "quantize.imatrix.file": (STRING, "x"),
        "bert.pooling_type": (U32, 1),
        "llama.rope.scaling.finetuned": (BOOL, False),
    }
    info = load(gguf_model(tmp_path, change)).info()
    assert (info["layers"], info["hidden_size"], info["max_positions"]) == (1, 16, 64)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"llama.expert_count": (U32, 8)}, _core.UnsupportedError, 'the field "llama.expert_count" .8. is not known'),
        ({"llama.logit_scale": (F32, 2.0)}, _core.UnsupportedError, 'the field "llama.logit_scale" .2.0. is not known'),
        (
            {"llama.block_count": (F32, 1.0)},
            _core.CorruptFileError,
            '"llama.block_count" must be an integer, found 1.0',
        ),
        (
            {"llama.attention.head_count": (ARRAY, (U32, [2]))},
            _core.CorruptFileError,
            r'"llama.attention.head_count" must be an integer, found \[2\]',
        ),
    ],
)
def test_gguf_fields(tmp_path: Path, change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        load(gguf_model(tmp_path, change))
