"""Adapters as GGUF files, merged into weights, and looked into."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import halfbyte
from halfbyte.adapter_files import read_folder
from halfbyte.convert_adapter import read_gguf
from oracle import reference
from oracle.adapters import CONFIG, SPECS, TENSORS, AdapterSpec, save

IDS = [[1, 5, 9, 30, 2, 17], [3, 8]]
PLAIN = ("llama-qv", "llama-all", "gpt2-all", "llama-f16", "llama-bf16")  # one alpha: llama.cpp computes them alike
OWN = ("llama-patterns", "llama-rs-patterns")


def logits(model, **options):
    run = model.logits if model.info["has_logits"] else model.hidden_states
    return run(IDS, **options)


def in_gguf(path: Path, key: str):
    field = gguf.GGUFReader(path).get_field(key)
    return None if field is None else field.contents()


@pytest.mark.parametrize("name", PLAIN + OWN)
def test_a_file_is_the_folder(name, engines, adapters, tmp_path):
    """Bit for bit: the logits through the file, and the folder that is made of it again."""
    folder, base = adapters.path(name), SPECS[name].base
    result = halfbyte.convert_adapter(folder, tmp_path / "a.gguf", adapters.zoo.path(base))
    assert result.type == ("lora" if name in PLAIN else "peft"), result.reason
    assert in_gguf(result.path, "adapter.type") == result.type
    model = engines.get(base, "float32")
    model.load_adapter(folder, "folder")
    model.load_adapter(result.path, "file")
    one, other = logits(model, adapter="folder"), logits(model, adapter="file")
    if result.type == "peft":
        assert np.array_equal(one, other)
    else:  # alpha / r in one or two roundings
        assert np.abs(one - other).max() <= 4e-6 * np.abs(one).max()
    model.unload_adapter("folder")
    model.unload_adapter("file")

    halfbyte.convert_adapter(result.path, tmp_path / "back")
    assert (tmp_path / "back" / CONFIG).read_text() == (folder / CONFIG).read_text()
    before, after = load_file(folder / TENSORS), load_file(tmp_path / "back" / TENSORS)
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert tensor.dtype == after[key].dtype and torch.equal(tensor, after[key]), key


def test_rows_of_rotary_layers_are_llama_cpps(adapters, tmp_path):
    """B of q and k has its rows as llama.cpp's converter permutes them; that of v has not."""
    folder = adapters.path("llama-qv")
    halfbyte.convert_adapter(folder, tmp_path / "a.gguf", adapters.zoo.path("llama"))
    config = json.loads((adapters.zoo.path("llama") / "config.json").read_text())
    heads = config["num_attention_heads"]
    tensors = {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    saved = load_file(folder / TENSORS)
    q = saved["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].numpy()
    permuted = q.reshape(heads, 2, q.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(q.shape)
    assert np.array_equal(tensors["blk.0.attn_q.weight.lora_b"], permuted)
    v = saved["base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"].numpy()
    assert np.array_equal(tensors["blk.0.attn_v.weight.lora_b"], v)


def test_without_a_model_the_file_is_halfbytes_own(adapters, tmp_path):
    result = halfbyte.convert_adapter(adapters.path("llama-qv"), tmp_path / "a.gguf")
    assert result.type == "peft" and "no model" in result.reason
    assert read_gguf(result.path).config == read_folder(adapters.path("llama-qv")).config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.add_string("general.type", "model"), "general.type"),
        (lambda w: w.add_string("adapter.type", "control"), "adapter.type"),
        (lambda w: w.add_float32("adapter.lora.alpha", float("nan")), "adapter.lora.alpha"),
        (lambda w: w.add_tensor("blk.0.attn_q.weight.lora_c", np.zeros((2, 2), np.float32)), "lora_c"),
        (lambda w: w.add_tensor("blk.9.attn_q.weight.lora_a", np.zeros((2, 2), np.float32)), "blk.9"),
        (lambda w: w.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((2, 2), np.float32)), "lora_B"),
        (lambda w: w.add_tensor("blk.0.attn_q.weight.lora_b", np.zeros((3, 2), np.float32)), "rows"),
    ],
)
def test_files_of_others_that_lie(change, message, engines, tmp_path):
    path = tmp_path / "bad.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    change(writer)
    have = writer.kv_data[0]
    if "general.type" not in have:
        writer.add_type("adapter")
    if "adapter.type" not in have:
        writer.add_string("adapter.type", "lora")
    if "adapter.lora.alpha" not in have:
        writer.add_float32("adapter.lora.alpha", 8.0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises((halfbyte.UnsupportedError, halfbyte.CorruptFileError), match=message):
        engines.get("llama", "float32").load_adapter(path, "bad")


MERGED = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "rslora": {"r": 8, "use_rslora": True, "target_modules": "all-linear"},
    "dora": {"r": 4, "use_dora": True, "target_modules": ["k_proj", "up_proj"]},
    "embedding": {"r": 4, "target_modules": ["embed_tokens", "o_proj"]},
    "saved": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "input_layernorm"]},
    "tokens": {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
}


@pytest.mark.parametrize("name", MERGED)
def test_merged_into_floats(name, adapters, tmp_path):
    """As merge_and_unload() of peft does: float32 weights up to the order of a sum of r products."""
    base = adapters.zoo.path("llama")
    save(AdapterSpec("llama", MERGED[name]), adapters.zoo, tmp_path / "adapter")
    halfbyte.convert(base, tmp_path / "out.gguf", adapter=tmp_path / "adapter")
    truth = PeftModel.from_pretrained(reference.load(base), tmp_path / "adapter").merge_and_unload().eval()
    with halfbyte.load(tmp_path / "out.gguf", precision="float32") as model, torch.no_grad():
        for ids in IDS:
            expected = truth(input_ids=torch.tensor([ids])).logits[0].numpy()
            assert np.abs(model.logits([ids])[0] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_merged_into_4_bits_only_when_asked(adapters, tmp_path):
    base, folder = adapters.zoo.path("llama/nf4-dq"), adapters.path("llama-all")
    with pytest.raises(halfbyte.UnsupportedError, match="requantize"):
        halfbyte.convert(base, tmp_path / "out.gguf", adapter=folder)
    assert not list(tmp_path.iterdir())
    result = halfbyte.convert(base, tmp_path / "out.gguf", adapter=folder, requantize=True)
    assert result.merge is not None and 0 < result.merge.relative < 1 and result.merge.tokens > 32
    with halfbyte.load(result.path, precision="float32") as model, halfbyte.load(base, precision="float32") as plain:
        plain.load_adapter(folder)
        beside = plain.logits(IDS, adapter="default")
        off = np.linalg.norm(model.logits(IDS) - beside) / np.linalg.norm(beside)
        without = np.linalg.norm(plain.logits(IDS) - beside) / np.linalg.norm(beside)
        assert 0 < off < without / 2  # it is the adapter, and not what it was
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
    ],
)
def test_what_no_weights_can_hold(config, message, adapters, tmp_path):
    source = adapters.path("llama-qv")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / CONFIG).write_text(json.dumps(json.loads((source / CONFIG).read_text()) | config))
    (tmp_path / "a" / TENSORS).write_bytes((source / TENSORS).read_bytes())
    with pytest.raises(halfbyte.UnsupportedError, match=message):
        halfbyte.convert(adapters.zoo.path("llama"), tmp_path / "out.gguf", adapter=tmp_path / "a")


def run_cli(capsys, *arguments: object) -> tuple[int, str]:
    from halfbyte.cli import main

    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def test_inspect(adapters, capsys):
    code, text = run_cli(capsys, "adapters", "inspect", adapters.path("llama-patterns"))
    assert code == 0 and "LORA" in text and "rank 7" in text and "q_proj" in text
    path, base = adapters.path("llama-all"), adapters.zoo.path("llama")
    code, text = run_cli(capsys, "adapters", "inspect", path, base, "--json")
    facts = json.loads(text)
    assert code == 0 and facts["rslora"] and facts["kind"] == "LORA"
    assert len(facts["applied"]) == len(facts["modules"])
    assert all(entry["does"] == ["lora"] and entry["rank"] == 8 for entry in facts["applied"])
    code, text = run_cli(capsys, "adapters", "inspect", path, adapters.zoo.path("gpt2"))
    assert code == 1 and "does not fit" in text and "no such module" not in text


def test_convert_on_the_command_line(adapters, capsys, tmp_path):
    base, folder = adapters.zoo.path("llama"), adapters.path("llama-qv")
    code, text = run_cli(capsys, "convert", base, tmp_path / "a.gguf", "--adapter", folder)
    assert code == 0 and "llama.cpp reads it too" in text
    code, text = run_cli(capsys, "convert", tmp_path / "a.gguf", tmp_path / "back")
    assert code == 0 and (tmp_path / "back" / TENSORS).is_file()
    code, text = run_cli(capsys, "convert", base, tmp_path / "m.gguf", "--adapter", folder, "--merge")
    assert code == 0 and (tmp_path / "m.gguf").is_file()
    code, _ = run_cli(capsys, "convert", base, tmp_path / "x.gguf", "--merge")
    assert code == 1
