"""PEFT LoRA folders with random factors, saved by peft, for weights of all formats; and folders that must be refused,
each for one reason. Everything else that PEFT trains: adapter_zoo.py."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from oracle import reference
from oracle.builders import Zoo

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterSpec:
    base: str  # a spec of builders
    config: dict[str, Any]  # of LoraConfig
    seed: int = 1
    dtype: torch.dtype = torch.float32  # of the saved factors


_LLAMA_ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

SPECS: dict[str, AdapterSpec] = {
    "llama-qv": AdapterSpec("llama", {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}),  # of REFUSED
    "llama-all": AdapterSpec(
        "llama", {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": "all-linear", "lora_dropout": 0.1}
    ),
    "llama-regex": AdapterSpec("llama", {"r": 1, "target_modules": r".*layers\.1\..*\.(q|o|up)_proj"}),
    "llama-patterns": AdapterSpec(
        "llama",
        {
            "r": 6,
            "lora_alpha": 12,
            "target_modules": _LLAMA_ALL,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*": 5, "up_proj": 7},
            "alpha_pattern": {"model.layers.0.self_attn.v_proj": 3, r"mlp\.(gate|up)_proj": 20},
        },
    ),
    "llama-rs-patterns": AdapterSpec(
        "llama",
        {
            "r": 16,
            "lora_alpha": 16,
            "use_rslora": True,
            "target_modules": _LLAMA_ALL,
            "rank_pattern": {"^model.layers.0.self_attn.k_proj": 9},
        },
    ),
    "llama-f16": AdapterSpec("llama", {"r": 4, "target_modules": ["k_proj", "gate_proj"]}, dtype=torch.float16),
    "llama-bf16": AdapterSpec("llama", {"r": 4, "target_modules": ["k_proj", "gate_proj"]}, dtype=torch.bfloat16),
    "blocks": AdapterSpec("llama_blocks", {"r": 4, "lora_alpha": 8, "target_modules": _LLAMA_ALL}),
    "mistral-qkv": AdapterSpec("mistral", {"r": 5, "target_modules": ["q_proj", "k_proj", "v_proj"]}),
    "gpt2-all": AdapterSpec("gpt2", {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj", "c_fc"]}),
    "bert-all": AdapterSpec("bert", {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}),  # the pooler among them
}


def _randomize(model: Any, seed: int) -> None:
    """A ~ N(0, 1 / in), B ~ N(0, 1) scaled so that an adapter changes its layer's output by about half."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        if ".lora_A." in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[1]))
        elif ".lora_B." in name:
            layer = model.get_submodule(name.split(".lora_B.")[0])
            scale = 0.5 / layer.scaling["default"] / math.sqrt(layer.r["default"])
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def save(spec: AdapterSpec, zoo: Zoo, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft corrects fan_in_fan_out of Conv1D layers by itself
        model = get_peft_model(reference.load(zoo.path(spec.base)), LoraConfig(**spec.config))
        _randomize(model, spec.seed)
        model.save_pretrained(folder)
    if spec.dtype != torch.float32:
        tensors = load_file(folder / TENSORS)
        save_file({key: value.to(spec.dtype) for key, value in tensors.items()}, folder / TENSORS)


class Adapters:
    """Makes each adapter folder when it is first asked for and keeps it for the session."""

    def __init__(self, zoo: Zoo, root: Path) -> None:
        self.zoo, self.root = zoo, root

    def path(self, name: str) -> Path:
        path = self.root / name
        if not path.exists():
            if name in SPECS:
                save(SPECS[name], self.zoo, path)
            else:
                REFUSED[name].make(self, path)
        return path

    def attach(self, model: Any, name: str) -> Any:
        """The transformers model (changed in place) with peft's unmerged LoRA layers in it, in float32."""
        return PeftModel.from_pretrained(model, self.path(name)).get_base_model().eval()


# ---- folders that must be refused -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refused:
    """`error`: names of halfbyte's classes, any of which will do; `words`: all must be in the message."""

    make: Callable[[Adapters, Path], None]
    error: tuple[str, ...]
    words: tuple[str, ...]


_BASE = {"r": 4, "target_modules": ["q_proj"]}
_Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def _saved(**config: Any) -> Callable[[Adapters, Path], None]:
    """Saved by peft itself from this config."""

    def make(adapters: Adapters, path: Path) -> None:
        save(AdapterSpec("llama", _BASE | config), adapters.zoo, path)

    return make


def _copy(adapters: Adapters, path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    good = adapters.path("llama-qv")
    path.mkdir(parents=True)
    return json.loads((good / CONFIG).read_text()), load_file(good / TENSORS)


def _write(path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    (path / CONFIG).write_text(json.dumps(config))
    save_file(tensors, path / TENSORS)


def _config(**fields: Any) -> Callable[[Adapters, Path], None]:
    """A good adapter with these fields changed in its adapter_config.json; `...` removes one."""

    def make(adapters: Adapters, path: Path) -> None:
        config, tensors = _copy(adapters, path)
        _write(path, {key: value for key, value in (config | fields).items() if value is not ...}, tensors)

    return make


def _tensors(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Adapters, Path], None]:
    def make(adapters: Adapters, path: Path) -> None:
        config, tensors = _copy(adapters, path)
        edit(tensors)
        _write(path, config, tensors)

    return make


def _pickle_only(adapters: Adapters, path: Path) -> None:
    config, tensors = _copy(adapters, path)
    (path / CONFIG).write_text(json.dumps(config))
    torch.save(tensors, path / "adapter_model.bin")


def _without_tensors(adapters: Adapters, path: Path) -> None:
    config, _ = _copy(adapters, path)
    (path / CONFIG).write_text(json.dumps(config))


def _without_config(adapters: Adapters, path: Path) -> None:
    _, tensors = _copy(adapters, path)
    save_file(tensors, path / TENSORS)


def _broken_json(adapters: Adapters, path: Path) -> None:
    config, tensors = _copy(adapters, path)
    _write(path, config, tensors)
    (path / CONFIG).write_text(json.dumps(config)[:-2])


def _rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


def _set(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = value(tensors[name]).contiguous()

    return edit


_UNSUPPORTED, _CORRUPT, _NOT_FOUND = ("UnsupportedError",), ("CorruptFileError",), ("NotFoundError",)

REFUSED: dict[str, Refused] = {
    "pissa": Refused(_saved(init_lora_weights="pissa"), _UNSUPPORTED, ("init_lora_weights", "pissa")),
    "olora": Refused(_saved(init_lora_weights="olora"), _UNSUPPORTED, ("init_lora_weights", "olora")),
    "loftq": Refused(_config(init_lora_weights="loftq"), _UNSUPPORTED, ("init_lora_weights", "loftq")),
    "unknown-init": Refused(_config(init_lora_weights="frobnicate"), _UNSUPPORTED, ("init_lora_weights",)),
    "unknown-field": Refused(_config(frobnicate=True), _UNSUPPORTED, ("frobnicate",)),
    "unknown-type": Refused(_config(peft_type="LOHA"), _UNSUPPORTED, ("LOHA",)),
    "no-type": Refused(_config(peft_type=...), _UNSUPPORTED + _CORRUPT, ("peft_type",)),
    "layer-replication": Refused(_config(layer_replication=[[0, 9]]), _CORRUPT, ("layer_replication",)),
    "norms-of-repeated-layers": Refused(
        _saved(layer_replication=[[0, 2], [1, 2]], modules_to_save=["input_layernorm"]),
        _UNSUPPORTED,
        ("input_layernorm", "layer_replication"),
    ),
    "target-parameters": Refused(_config(target_parameters=["a.b"]), _UNSUPPORTED, ("target_parameters",)),
    "token-indices": Refused(_config(trainable_token_indices=[1]), _CORRUPT, ("trainable_token_indices",)),
    "qalora": Refused(_config(use_qalora=True), _UNSUPPORTED, ("use_qalora",)),
    "no-r": Refused(_config(r=...), _CORRUPT, ("r",)),
    "r-is-text": Refused(_config(r="four"), _CORRUPT, ("r",)),
    "other-r": Refused(_config(r=8), _CORRUPT, ("q_proj", "8", "4")),
    "r-zero": Refused(_config(r=0), _CORRUPT, ("r",)),
    "bad-pattern": Refused(_config(rank_pattern={"(q_proj": 4}), _UNSUPPORTED + _CORRUPT, ("(q_proj",)),
    "pickle-only": Refused(_pickle_only, _UNSUPPORTED, ("adapter_model.bin", "safetensors")),
    "no-tensors": Refused(_without_tensors, _NOT_FOUND, (TENSORS,)),
    "no-config": Refused(_without_config, _NOT_FOUND, (CONFIG,)),
    "broken-json": Refused(_broken_json, _CORRUPT, (CONFIG,)),
    "no-b": Refused(
        _tensors(lambda tensors: tensors.pop(f"{_Q0}.lora_B.weight")), _CORRUPT + _NOT_FOUND, ("q_proj", "lora_B")
    ),
    "no-a": Refused(
        _tensors(lambda tensors: tensors.pop(f"{_Q0}.lora_A.weight")), _CORRUPT + _NOT_FOUND, ("q_proj", "lora_A")
    ),
    "wrong-in": Refused(_tensors(_set(f"{_Q0}.lora_A.weight", lambda a: a[:, 1:])), _CORRUPT, ("q_proj", "lora_A")),
    "wrong-out": Refused(_tensors(_set(f"{_Q0}.lora_B.weight", lambda b: b[1:])), _CORRUPT, ("q_proj", "lora_B")),
    "wrong-rank": Refused(_tensors(_set(f"{_Q0}.lora_B.weight", lambda b: b[:, 1:])), _CORRUPT, ("q_proj", "lora_B")),
    "one-dimension": Refused(_tensors(_set(f"{_Q0}.lora_A.weight", lambda a: a[0])), _CORRUPT, ("q_proj", "lora_A")),
    "integers": Refused(
        _tensors(_set(f"{_Q0}.lora_A.weight", lambda a: a.to(torch.int32))), _UNSUPPORTED + _CORRUPT, ("q_proj",)
    ),
    "no-such-layer": Refused(
        _tensors(lambda tensors: _rename(tensors, "layers.1.", "layers.7.")), _UNSUPPORTED + _NOT_FOUND, ("layers.7.",)
    ),
    "no-such-module": Refused(
        _tensors(lambda tensors: _rename(tensors, "v_proj", "w_proj")), _UNSUPPORTED + _NOT_FOUND, ("w_proj",)
    ),
    "norm": Refused(
        _tensors(lambda tensors: _rename(tensors, "self_attn.v_proj", "input_layernorm")),
        _UNSUPPORTED + _NOT_FOUND,
        ("input_layernorm",),
    ),
    "stray-tensor": Refused(
        _tensors(lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2, 2)})),
        _CORRUPT,
        ("lm_head",),
    ),
    "no-prefix": Refused(
        _tensors(lambda tensors: _rename(tensors, "base_model.model.model.layers.0", "elsewhere")),
        _UNSUPPORTED,
        ("elsewhere",),
    ),
    "empty": Refused(_tensors(lambda tensors: tensors.clear()), _CORRUPT + _UNSUPPORTED, (TENSORS,)),
}
