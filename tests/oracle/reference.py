"""The reference runs: transformers in float64 (the truth), float32, bfloat16, and float64 with int8 activations.

The truth and the tolerances
----------------------------
The truth is the network in float64 on the dequantised weights. transformers rounds to float32 inside RMSNorm and the
rotary embedding whatever the dtype of the model, so those two are replaced here by their definitions in float64.

Every precision of halfbyte is held against that truth, its error pooled over all values of all sequences of a case:

- "float32" runs the same operations on the same float32 weights as transformers in float32 does; only the order of sums
  and the last bit of exp, tanh and the like may differ. The rounding errors of two such runs are draws from one
  distribution: their RMS agree closely, their maxima (of more than 10,000 values) within a factor well below 2. Hence:
  RMS and maximum at most TWICE those of transformers in float32.
- "high" promises at least the accuracy of 16-bit floating point everywhere. Hence: RMS and maximum at most those of
  transformers in bfloat16 (weights, activations and results of every layer rounded to bfloat16).
- "fast" rounds the input of every linear layer to int8 with a scale per token: a step of absmax / 127. transformers in
  float64 with exactly that rounding in front of every linear layer (`int8_activations`) has the error that this causes
  and no other. Finer scales (per block) only lessen it. Hence: RMS at most TWICE, maximum at most three times that,
  the rest being the noise between two draws.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from oracle import gguf_files, packed
from oracle.bnb4 import dequantize_4bit
from oracle.rope import rope_frequencies

Array = NDArray[np.float64]


# ---- weights --------------------------------------------------------------------------------------------------------


def folder_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder; 4-bit and 8-bit ones dequantised by bitsandbytes to float32 with no other rounding,
    [out, in]."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    config = json.loads((folder / "config.json").read_text()).get("quantization_config") or {}
    tensors = packed.unpack(tensors, config)
    out = {}
    for name in [name for name in tensors if ".quant_state." in name]:
        weight = name.split(".quant_state.")[0]
        parts = {key: tensors.pop(key) for key in list(tensors) if key.startswith(weight + ".")}
        state = bnb.QuantState.from_dict(
            {key.removeprefix(weight + "."): part for key, part in parts.items()}, torch.device("cpu")
        )
        state.dtype = torch.float32
        out[weight] = dequantize_4bit(tensors.pop(weight), state)
    for name in [name for name in tensors if name.endswith(".SCB")]:
        layer = name.removesuffix(".SCB")
        del tensors[layer + ".weight_format"]
        out[layer + ".weight"] = bnb.int8_vectorwise_dequant(tensors.pop(layer + ".weight"), tensors.pop(name))
    return out | tensors


def is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear | Conv1D)


def load(path: Path, config: Any = None) -> Any:
    """The plain float32 transformers model that a checkpoint means. A GGUF file lacks parts of a config: bring it."""
    if path.suffix == ".gguf":
        assert config is not None
        weights = gguf_files.read_weights(gguf.GGUFReader(path), config)
        name = {"bert": "BertModel", "gpt2": "GPT2LMHeadModel"}.get(config.model_type, "LlamaForCausalLM")
    else:
        document = json.loads((path / "config.json").read_text())
        quantized = document.pop("quantization_config", None) is not None
        name = document["architectures"][0]
        config = getattr(transformers, name).config_class.from_dict(document)
        config.dtype = torch.float32
        weights = folder_weights(path)
        if quantized:  # Conv1D layers become Linear4bit, [out, in]
            weights = {
                key: value.T if gguf_files.is_conv1d(config.model_type, key) else value
                for key, value in weights.items()
            }
    return build(name, config, {key: value.float() for key, value in weights.items()})


def build(name: str, config: Any, weights: dict[str, torch.Tensor]) -> Any:
    """A model of transformers with these weights and no others (poolers of encoders and tied output layers apart)."""
    with no_init_weights():
        model = getattr(transformers, name)(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    model.tie_weights()
    allowed = {"lm_head.weight"} if config.tie_word_embeddings else set()
    allowed |= {key for key in missing if key.startswith(("pooler.", "cls.predictions.decoder"))}
    unexpected = [key for key in unexpected if key != "embeddings.position_ids"]  # a buffer that old files hold
    assert set(missing) <= allowed and not unexpected, (missing, unexpected)
    return model.eval()


def _rounded(weight: torch.Tensor, format: str) -> torch.Tensor:
    """[out, in] in a 4-bit format (bitsandbytes, double-quantised scales), in 16 bits or in int8, and back."""
    if format in ("nf4", "fp4"):
        codes, state = bnb.quantize_4bit(weight.contiguous(), blocksize=64, compress_statistics=True, quant_type=format)
        return dequantize_4bit(codes, state)
    if format == "int8":  # halfbyte's own: a scale for a row, or for the largest of 512, 256, ... that divides it
        cols = weight.shape[1]
        block = cols if cols <= 512 else next(size for size in (512, 256, 128, 64, 32) if cols % size == 0)
        blocks = weight.float().reshape(weight.shape[0], -1, block)
        scales = blocks.abs().amax(-1, keepdim=True) / 127
        levels = torch.where(scales == 0, 0.0, blocks.double() / scales.double()).round()
        return (levels.float() * scales).reshape(weight.shape)
    return weight.to({"bf16": torch.bfloat16, "f16": torch.float16}[format]).float()


def round_linears(model: Any, format: str) -> Any:
    """A copy whose linear layers, the output layer apart, have values of that format."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if is_linear(module) and not name.startswith(("lm_head", "cls.")):
            conv1d = isinstance(module, Conv1D)  # [in, out]
            back = _rounded(module.weight.data.T if conv1d else module.weight.data, format)
            module.weight.data = back.T.contiguous() if conv1d else back
    return model


# ---- float64 --------------------------------------------------------------------------------------------------------


class _Rope(torch.nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.frequencies = rope_frequencies(config.head_dim, config.rope_parameters)

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


class _RmsNorm(torch.nn.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps)


def double(model: Any) -> Any:
    """A copy that computes in float64 everywhere."""
    model = copy.deepcopy(model).double()
    for name, module in list(model.named_modules()):
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            model.set_submodule(name, _RmsNorm(module))
        elif kind.endswith("RotaryEmbedding"):
            model.set_submodule(name, _Rope(model.config))
    assert not any(parameter.dtype != torch.float64 for parameter in model.parameters())
    return model


@contextmanager
def int8_activations(model: Any) -> Any:
    """The input of every linear layer rounded to int8, one scale a token: round(x / s) s, s = max |x| / 127."""

    def hook(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        scale = args[0].abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return ((args[0] / scale).round() * scale, *args[1:])

    handles = [
        module.register_forward_pre_hook(hook)
        for name, module in model.named_modules()
        if is_linear(module) and ".lora_" not in name  # adapters stay in floating point
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


# ---- runs -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def logits(model: Any, ids: Sequence[int]) -> Array:
    """float64 [tokens, vocab] of one sequence."""
    return model(input_ids=torch.tensor([list(ids)])).logits[0].double().numpy()


@torch.inference_mode()
def hidden(model: Any, ids: Sequence[int], **inputs: Sequence[int]) -> Array:
    """The last hidden state of one sequence, after the final norm, float64 [tokens, hidden]."""
    tensors = {key: torch.tensor([list(value)]) for key, value in inputs.items()}
    base = model.base_model if hasattr(model, "base_model") else model
    return base(input_ids=torch.tensor([list(ids)]), **tensors).last_hidden_state[0].double().numpy()


@dataclass(frozen=True)
class Error:
    """Of a run against the truth, over all values of all sequences."""

    rms: float
    max: float

    @staticmethod
    def of(values: Sequence[NDArray[Any]], truth: Sequence[Array]) -> Error:
        for value, true in zip(values, truth, strict=True):
            assert value.shape == true.shape, f"shape {value.shape}, expected {true.shape}"
            assert np.isfinite(value).all(), "not finite"
        difference = np.concatenate(
            [(value.astype(np.float64) - true).ravel() for value, true in zip(values, truth, strict=True)]
        )
        return Error(float(np.sqrt(np.mean(difference**2))), float(np.abs(difference).max()))

    def at_most(self, other: Error, rms: float, maximum: float) -> bool:
        return self.rms <= rms * other.rms and self.max <= maximum * other.max


class Reference:
    """All reference runs of one model over some sequences; `run` is `logits` or `hidden`."""

    def __init__(self, model: Any, sequences: Sequence[Sequence[int]], run: Any = logits) -> None:
        self.model, self.sequences, self.run = model, sequences, run
        self.model64 = double(model)
        self.truth = [run(self.model64, ids) for ids in sequences]
        self._bounds: dict[str, Error] = {}

    def reference_error(self, precision: str) -> Error:
        """The error of the run of transformers that bounds this precision."""
        if precision not in self._bounds:
            if precision == "float32":
                values = [self.run(self.model, ids) for ids in self.sequences]
            elif precision == "high":
                model16 = copy.deepcopy(self.model).bfloat16()
                values = [self.run(model16, ids) for ids in self.sequences]
            else:
                with int8_activations(self.model64) as model8:
                    values = [self.run(model8, ids) for ids in self.sequences]
            self._bounds[precision] = Error.of(values, self.truth)
        return self._bounds[precision]

    def check(self, values: Sequence[NDArray[Any]], precision: str) -> None:
        """Asserts the rule of the module's docstring."""
        error, reference = Error.of(values, self.truth), self.reference_error(precision)
        rms, maximum = {"float32": (2, 2), "high": (1, 1), "fast": (2, 3)}[precision]
        assert error.at_most(reference, rms, maximum), (
            f"precision {precision}: error {error}, allowed {rms} x rms and {maximum} x max of {reference}"
        )


def top_gap(values: Array) -> NDArray[np.float64]:
    """How far the greatest logit is above the second, per row."""
    best = np.partition(values, -2, axis=-1)[..., -2:]
    return best[..., 1] - best[..., 0]
