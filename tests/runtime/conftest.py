"""Tiny models of transformers, and engines on them."""

from pathlib import Path

import pytest
import torch
import transformers
from engines import POSITIONS, VOCAB, load

from halfbyte import _core


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.LlamaForCausalLM]:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    return path, model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, transformers.BertModel]:
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        initializer_range=0.3,
    )
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    path = tmp_path_factory.mktemp("bert")
    model.save_pretrained(path)
    return path, model


@pytest.fixture(scope="module")
def engine(llama: tuple[Path, transformers.LlamaForCausalLM]) -> _core.Engine:
    return load(llama[0])


@pytest.fixture(scope="module")
def encoder(bert: tuple[Path, transformers.BertModel]) -> _core.Engine:
    return load(bert[0])
