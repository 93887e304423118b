"""Folders in the layouts of GPTQ, AWQ and 8-bit floats, and what their packages decode them to, in float32.

Written from the packages' own unpacking: AutoGPTQ nn_modules/qlinear/qlinear_cuda_old.py (zeros less one, masked after
the one is added), GPTQModel's checkpoint_format "gptq_v2" (zeros as they are), AutoAWQ utils/packing_utils.py (order
of outputs in a word), transformers integrations/finegrained_fp8.py (weight_scale_inv multiplies). They decode to
float16 or bfloat16; the product here is float32's.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

KINDS = ("gptq", "gptq-v2", "gptq-whole", "awq", "fp8-block", "fp8-row", "fp8-tensor", "fp8-plain")
GROUP = 64
BLOCK = (48, 64)  # rows and columns of a block of fp8: neither divides all shapes
_SHIFTS = torch.arange(0, 32, 4, dtype=torch.int32)
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # bits 4 i of a word hold output AWQ_ORDER[i]


def _words(codes: torch.Tensor) -> torch.Tensor:
    """[..., 8] of 0..15 to int32 [...], the first in the lowest bits."""
    shifted = codes.to(torch.int64) << _SHIFTS.to(torch.int64)
    words = shifted.sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _codes(words: torch.Tensor) -> torch.Tensor:
    return (words.unsqueeze(-1) >> _SHIFTS) & 15


def _grouped(weight: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [in, out], zeros and float16 scales [groups, out] of a weight [out, in]; the last group may be short."""
    codes, zeros, scales = [], [], []
    for group in weight.T.split(size):
        low, high = group.amin(0).clamp(max=0), group.amax(0).clamp(min=0)
        scale = ((high - low) / 15).clamp(min=1e-5).half()
        # From 1 on: what GPTQ stores for 0 is read in different ways.
        zero = (-low / scale.float()).round().clamp(1, 15)
        codes.append((group / scale.float() + zero).round().clamp(0, 15).to(torch.int32))
        zeros.append(zero.to(torch.int32))
        scales.append(scale)
    return torch.cat(codes), torch.stack(zeros), torch.stack(scales)


def _pack_gptq(weight: torch.Tensor, size: int, v2: bool) -> dict[str, torch.Tensor]:
    codes, zeros, scales = _grouped(weight, size)
    stored = zeros if v2 else (zeros - 1) & 15
    return {
        "qweight": _words(codes.reshape(-1, 8, codes.shape[1]).permute(0, 2, 1)),
        "qzeros": _words(stored.reshape(stored.shape[0], -1, 8)),
        "scales": scales,
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // size,
    }


def _pack_awq(weight: torch.Tensor, size: int) -> dict[str, torch.Tensor]:
    codes, zeros, scales = _grouped(weight, size)

    def pack(values: torch.Tensor) -> torch.Tensor:
        return _words(values.reshape(values.shape[0], -1, 8)[..., _AWQ_ORDER])

    return {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales}


def _pack_fp8(weight: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    if kind == "fp8-plain":
        return {"weight": weight.to(torch.float8_e4m3fn)}
    if kind == "fp8-block":
        rows, cols = (-(-n // b) for n, b in zip(weight.shape, BLOCK, strict=True))
        scales = torch.empty(rows, cols)
        for r in range(rows):
            for c in range(cols):
                block = weight[r * BLOCK[0] : (r + 1) * BLOCK[0], c * BLOCK[1] : (c + 1) * BLOCK[1]]
                scales[r, c] = block.abs().max() / 448
        return {"weight": (weight / _spread(scales, weight.shape)).to(torch.float8_e4m3fn), "weight_scale_inv": scales}
    most = weight.abs().amax(1, keepdim=True) if kind == "fp8-row" else weight.abs().max()
    scale = (most / 448).to(torch.bfloat16 if kind == "fp8-row" else torch.float32)
    return {
        "weight": (weight / scale.float()).to(torch.float8_e4m3fn),
        "weight_scale": scale,
        "input_scale": torch.ones(1),
    }


def _spread(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return scales.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)[: shape[0], : shape[1]]


def _config(kind: str) -> dict[str, Any]:
    size = -1 if kind == "gptq-whole" else GROUP
    if kind.startswith("gptq"):
        extra = {"checkpoint_format": "gptq_v2"} if kind == "gptq-v2" else {}
        return {"quant_method": "gptq", "bits": 4, "group_size": size, "desc_act": False, "sym": False, **extra}
    if kind == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm", "zero_point": True}
    if kind == "fp8-block":
        return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK)}
    return {"quant_method": "compressed-tensors", "format": "float-quantized"}


def pack(layer: str, weight: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    """The tensors of one linear layer, weight [out, in]."""
    size = weight.shape[1] if kind == "gptq-whole" else GROUP
    if kind.startswith("gptq"):
        parts = _pack_gptq(weight, size, kind == "gptq-v2")
    else:
        parts = _pack_awq(weight, size) if kind == "awq" else _pack_fp8(weight, kind)
    return {f"{layer}.{name}": tensor.contiguous() for name, tensor in parts.items()}


def save(source: Path, folder: Path, kind: str) -> None:
    """The float folder ``source`` with its linear layers packed, all but the output layer."""
    tensors = load_file(source / "model.safetensors")
    layers = [name for name in tensors if name.endswith("_proj.weight")]
    for name in layers:
        tensors |= pack(name.removesuffix(".weight"), tensors.pop(name), kind)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    if kind != "fp8-plain":
        config["quantization_config"] = _config(kind)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists():
            shutil.copy(source / name, folder / name)


def unpack(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of a folder, packed layers as float32 [out, in]."""
    method = config.get("quant_method")
    out = dict(tensors)
    for name in [name for name in tensors if name.endswith(".qweight")]:
        layer = name.removesuffix(".qweight")
        words, zeros, scales = (out.pop(f"{layer}.{part}") for part in ("qweight", "qzeros", "scales"))
        out.pop(f"{layer}.g_idx", None)
        if method == "awq":
            back = torch.argsort(torch.tensor(_AWQ_ORDER))
            codes = _codes(words)[..., back].reshape(words.shape[0], -1)
            zero = _codes(zeros)[..., back].reshape(zeros.shape[0], -1)
        else:
            codes = _codes(words).permute(0, 2, 1).reshape(-1, words.shape[1])
            zero = _codes(zeros).reshape(zeros.shape[0], -1)
            if config.get("checkpoint_format") != "gptq_v2":
                zero = (zero + 1) & 15
        size = codes.shape[0] if config["group_size"] == -1 else config["group_size"]
        group = torch.arange(codes.shape[0]) // size
        out[f"{layer}.weight"] = ((codes - zero[group]).float() * scales.float()[group]).T.contiguous()
    for name in [name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn]:
        layer = name.removesuffix(".weight")
        values = tensors[name].float()
        out.pop(f"{layer}.input_scale", None)
        if (scale := out.pop(f"{layer}.weight_scale_inv", None)) is not None:
            values = values * _spread(scale, values.shape)
        elif (scale := out.pop(f"{layer}.weight_scale", None)) is not None:
            values = values * scale.float()
        out[name] = values
    return out
