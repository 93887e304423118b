"""LoRA on weights of all formats in all precisions, against peft in float64; and the folders that must be refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

import halfbyte
from oracle.adapters import CONFIG, REFUSED
from oracle.cases import PRECISIONS, SEQUENCES, run, run_together
from oracle.reference import Error

if TYPE_CHECKING:
    from pathlib import Path

    from oracle.adapters import Adapters
    from oracle.cases import Engines, References

# Adapters are made on the float base of their spec and used on weights of many formats.
CASES = [
    ("llama", "llama-regex"),
    ("llama", "llama-f16"),
    ("llama", "llama-bf16"),
    ("llama/nf4-dq", "llama-all"),
    ("llama/nf4", "llama-patterns"),
    ("llama/fp4", "llama-rs-patterns"),
    ("llama/int8", "llama-all"),
    ("llama/nf4-dq", "llama-bf16"),
    ("mistral/nf4-dq", "mistral-qkv"),
    ("gpt2/fp4-dq", "gpt2-all"),
    ("bert", "bert-all"),
    ("bert/nf4-dq", "bert-all"),
    ("llama_blocks/Q4_1.gguf", "blocks"),
    ("llama_blocks/Q8_0.gguf", "blocks"),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("base", "adapter"), CASES)
def test_adapter(
    base: str, adapter: str, precision: str, engines: Engines, references: References, adapters: Adapters
) -> None:
    model, causal = engines.get(base, precision), references.zoo.spec(base).causal
    plain = references.get(base)
    adapted = references.get_adapted(base, adapters, adapter)
    # The adapter changes far more than any tolerance: it can't be ignored unnoticed.
    assert Error.of(adapted.truth, plain.truth).rms > 4 * max(plain.reference_error(p).rms for p in PRECISIONS)

    before = run_together(model, SEQUENCES, causal)
    model.load_adapter(adapters.path(adapter), "x")
    assert model.adapters == ["x"]
    adapted.check(run(model, SEQUENCES, causal, adapter="x"), precision)
    adapted.check(run_together(model, SEQUENCES, causal, adapter="x"), precision)
    for value, same in zip(run_together(model, SEQUENCES, causal), before, strict=True):
        np.testing.assert_array_equal(value, same)  # loaded, but not named

    model.unload_adapter("x")
    assert model.adapters == []
    for value, same in zip(run_together(model, SEQUENCES, causal), before, strict=True):
        np.testing.assert_array_equal(value, same)


def test_an_old_config(engines: Engines, references: References, adapters: Adapters, tmp_path: Path) -> None:
    """adapter_config.json as peft 0.4 wrote it: few fields, the rest at their defaults."""
    source = adapters.path("llama-qv")
    fields = json.loads((source / CONFIG).read_text())
    old = (
        "auto_mapping base_model_name_or_path bias fan_in_fan_out inference_mode init_lora_weights layers_pattern "
        "layers_to_transform lora_alpha lora_dropout modules_to_save peft_type r revision target_modules task_type"
    )
    (tmp_path / CONFIG).write_text(json.dumps({key: fields[key] for key in old.split()}))
    for file in source.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = engines.get("llama/nf4-dq", "float32")
    model.load_adapter(tmp_path, "old")
    truth = references.get_adapted("llama/nf4-dq", adapters, "llama-qv")
    truth.check(run_together(model, SEQUENCES, True, adapter="old"), "float32")
    model.unload_adapter("old")


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, engines: Engines, adapters: Adapters) -> None:
    """One reason each, named in the message; the model is as it was."""
    refused = REFUSED[name]
    model = engines.get("llama", "high")
    with pytest.raises(tuple(getattr(halfbyte, error) for error in refused.error)) as caught:
        model.load_adapter(adapters.path(name), "bad")
    message = str(caught.value)
    assert all(word in message for word in refused.words), message
    assert str(adapters.path(name)) in message, message
    assert model.adapters == []


def test_an_adapter_of_another_size(engines: Engines, adapters: Adapters) -> None:
    with pytest.raises(halfbyte.CorruptFileError, match="q_proj"):
        engines.get("llama_aligned").load_adapter(adapters.path("llama-qv"))
    with pytest.raises((halfbyte.UnsupportedError, halfbyte.NotFoundError), match="c_attn"):
        engines.get("llama").load_adapter(adapters.path("gpt2-all"))
    with pytest.raises(halfbyte.NotFoundError, match="nowhere"):
        engines.get("llama").load_adapter("/nowhere")
