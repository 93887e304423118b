"""What PEFT trains, of any kind: folders that peft saves, with random values in all that was trained, and peft itself
as the reference, on any form of the base (float, or the dequantised weights of a 4-bit one).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray

from oracle import reference
from oracle.builders import LABELS, Zoo
from oracle.cases import random_ids


@dataclass(frozen=True)
class Trained:
    """One adapter. `model`: the class of transformers that it was trained with, if that isn't the base's; its head then
    comes with the adapter. `run`: "logits", "hidden", "classify" or "classify_tokens"."""

    base: str  # a spec of builders
    config: Callable[[], Any]  # peft's, made anew: peft changes it
    run: str = "logits"
    model: str | None = None
    vocabulary: int | None = None  # of the resized embeddings
    save: dict[str, Any] = field(default_factory=dict)  # further arguments of save_pretrained
    lengths: tuple[int, ...] = (1, 2, 17, 34)  # of the sequences it is run on
    tokens: tuple[int, ...] = ()  # stand in the sequences: in all but the first, so that they have an effect
    converted: bool = False  # of the base weights changed by its initialisation, and converted when saved

    def sequences(self) -> list[list[int]]:
        out = []
        for seed, length in enumerate(self.lengths):
            ids = random_ids(length, 100 + seed)
            if seed and self.tokens:
                start = max(0, length // 2 - len(self.tokens))
                ids[start : start + len(self.tokens)] = self.tokens
            out.append(ids)
        return out


def base_model(zoo: Zoo, name: str, trained: Trained) -> Any:
    """The float32 model that peft is put on."""
    plain = reference.load(zoo.path(name), zoo.spec(name).build_config())
    torch.manual_seed(3)  # of new rows and of the head, which the adapter replaces
    if trained.model is not None:
        config = copy.deepcopy(plain.config)
        config.num_labels = LABELS
        model = getattr(transformers, trained.model)(config)
        inner = plain if plain.base_model is plain else plain.base_model
        lacking = getattr(model, model.base_model_prefix).load_state_dict(inner.state_dict(), strict=False)
        assert not lacking.missing_keys, lacking
        plain = model
    if trained.vocabulary is not None:
        plain.resize_token_embeddings(trained.vocabulary, mean_resizing=False)
    return plain.eval()


def _randomize(model: Any, seed: int) -> None:
    """Everything that was trained, so that each part changes what it touches by about a half."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        noise = torch.randn(parameter.shape, generator=generator)
        if ".lora_A." in name:
            value = noise / math.sqrt(parameter.shape[1])
        elif ".lora_embedding_A." in name:
            value = noise
        elif ".lora_B." in name or ".lora_embedding_B." in name:
            layer = model.get_submodule(name.split(".lora_")[0])
            value = noise * (0.5 / layer.scaling["default"] / math.sqrt(layer.r["default"]))
            value = noise * 0.3 if name.endswith(".bias") else value
        elif "lora_magnitude" in name:
            value = parameter * (1 + 0.3 * noise)
        elif "ia3_" in name:
            value = 1 + 0.5 * noise
        elif "prompt_encoder" in name:
            continue  # drawn by peft
        elif not parameter.requires_grad:
            continue
        elif parameter.ndim == 1:  # biases and norms
            value = parameter + 0.3 * noise
        else:
            value = parameter + 0.5 * parameter.std() * noise
        parameter.data.copy_(value)


def save(trained: Trained, zoo: Zoo, folder: Path, seed: int = 5) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft corrects fan_in_fan_out, and says what tied weights mean
        base = base_model(zoo, trained.base, trained)
        torch.manual_seed(seed)  # of what peft draws
        model = peft.get_peft_model(base, trained.config())
        more = dict(trained.save)
        if trained.converted:
            initial = folder.with_name(folder.name + "-initial")
            model.save_pretrained(initial)
            generator = torch.Generator().manual_seed(seed)
            for name, parameter in model.named_parameters():
                if "lora_" in name:  # a training that changed them by a part
                    parameter.data += 0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator)
            more["path_initial_model_for_weight_conversion"] = str(initial)
        else:
            _randomize(model, seed)
        model.eval().save_pretrained(folder, **more)


class Tokens:
    """Runs of a model of peft: float64 [tokens, columns] of one sequence, virtual tokens left out; [1, labels] of a
    classification."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    @torch.inference_mode()
    def __call__(self, model: Any, ids: Sequence[int]) -> NDArray[np.float64]:
        out = model(input_ids=torch.tensor([list(ids)]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        if self.kind == "hidden":
            values = out.last_hidden_state[0]
        elif self.kind == "classify":
            values = out.logits
        else:
            values = out.logits[0]
        return np.asarray(values.double().numpy()[-len(ids) :] if self.kind != "classify" else values.double().numpy())


def attach(trained: Trained, zoo: Zoo, name: str, folder: Path) -> Any:
    """peft with the folder, in float32, on the checkpoint `name` of the zoo."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(base_model(zoo, name, trained), folder).eval()


def run(model: Any, kind: str, sequences: Sequence[Sequence[int]], adapter: Any = None) -> list[NDArray[np.float32]]:
    """halfbyte's results of one call with all sequences, as Tokens gives them for each."""
    if kind == "classify":
        values = model.classify(sequences, adapter=adapter)
        return [row[None] for row in values]
    if kind == "classify_tokens":
        values = model.classify(sequences, per_token=True, adapter=adapter)
    else:
        values = (model.logits if kind == "logits" else model.hidden_states)(sequences, adapter=adapter)
    assert values.dtype == np.float32 and values.shape[:2] == (len(sequences), max(map(len, sequences)))
    return [values[i, : len(ids)] for i, ids in enumerate(sequences)]


class TrainedZoo:
    """Folders by name, made on demand; peft's runs of them, kept for the session."""

    def __init__(self, zoo: Zoo, specs: dict[str, Trained], root: Path) -> None:
        self.zoo, self.specs, self.root = zoo, specs, root
        self._references: dict[tuple[str, str], reference.Reference] = {}

    def path(self, key: str) -> Path:
        path = self.root / key
        if not path.exists():
            save(self.specs[key], self.zoo, path)
        return path

    def reference(self, key: str, variant: str = "") -> reference.Reference:
        """`variant`: of the base, "" or "/nf4-dq"."""
        if (key, variant) not in self._references:
            trained = self.specs[key]
            model = attach(trained, self.zoo, trained.base + variant, self.path(key))
            self._references[key, variant] = reference.Reference(model, trained.sequences(), Tokens(trained.run))
        return self._references[key, variant]
