"""GPTQ, AWQ and 8-bit float folders: values bit for bit, and one error for each lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import halfbyte
from halfbyte import _core, errors
from oracle import packed

LAYER = "model.layers.0.mlp.up_proj"
FORMATS = {"gptq": "gptq", "gptq-v2": "gptq_v2", "gptq-whole": "gptq", "awq": "awq"}


# Sizes of "llama" are odd: eight codes could not be packed.
@pytest.mark.parametrize(
    ("base", "kind"),
    [("llama_aligned", kind) for kind in packed.KINDS] + [("llama", kind) for kind in packed.KINDS if "fp8" in kind],
)
def test_every_value(base: str, kind: str, zoo: Any) -> None:
    folder = zoo.path(f"{base}/{kind}")
    config = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    expected = packed.unpack(load_file(folder / "model.safetensors"), config)
    checkpoint = _core.Checkpoint(str(folder))
    assert checkpoint.format == kind.partition("-")[0]
    assert checkpoint.names() == sorted(expected)
    for name, tensor in expected.items():
        weight = checkpoint.weight(name)
        if name.endswith("_proj.weight"):
            assert weight.format == FORMATS.get(kind, "fp8_e4m3")
        assert checkpoint.shape(name) == list(tensor.shape)
        np.testing.assert_array_equal(weight.dequantize(), np.atleast_2d(tensor.float().numpy()), name)


def test_every_byte_of_fp8(zoo: Any, tmp_path: Path) -> None:
    """All 256 of them, the two NaN apart."""
    (tmp_path / "config.json").write_text((zoo.path("llama") / "config.json").read_text())
    values = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(2, 128)
    save_file({"x": values}, tmp_path / "model.safetensors", {"format": "pt"})
    found, expected = _core.Checkpoint(str(tmp_path)).weight("x").dequantize(), values.float().numpy()
    numbers = ~np.isnan(expected)
    assert numbers.sum() == 254
    np.testing.assert_array_equal(found[numbers], expected[numbers])


def change_config(**fields: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    return lambda config, tensors: config["quantization_config"].update(fields)


def change(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., None]:
    def edit(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{LAYER}.{name}"] = value(tensors[f"{LAYER}.{name}"]).contiguous()

    return edit


def nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.reshape(-1)[3] = float("nan")
    return tensor


LIES: dict[str, tuple[str, Callable[..., None], str]] = {
    "bits": ("gptq", change_config(bits=3), "bits is 3"),
    "group": ("gptq", change_config(group_size=0), "group_size is 0"),
    "other-group": ("gptq", change_config(group_size=32), "qzeros"),
    "format": ("gptq", change_config(checkpoint_format="marlin"), "checkpoint_format"),
    "marlin": ("gptq", change_config(is_marlin_format=True), "is_marlin_format"),
    "dynamic": ("gptq", change_config(dynamic={"+:.*": {"bits": 8}}), "dynamic"),
    "pack": ("gptq", change_config(pack_dtype="int16"), "pack_dtype"),
    "order": ("gptq", change("g_idx", lambda t: t.flip(0)), "desc_act"),
    "order-size": ("gptq", change("g_idx", lambda t: t[1:]), "g_idx"),
    "codes": ("gptq", change("qweight", lambda t: t[:, :-8]), "qzeros"),
    "floats": ("gptq", change("qweight", lambda t: t.float()), "qweight"),
    "odd": ("gptq", change("qweight", lambda t: t[:, :-1]), "multiple of 8"),
    "no-zeros": ("gptq", lambda c, t: t.pop(f"{LAYER}.qzeros"), "qzeros is missing"),
    "no-scales": ("gptq", lambda c, t: t.pop(f"{LAYER}.scales"), "scales is missing"),
    "scales": ("gptq", change("scales", lambda t: t[:, 1:]), "scales"),
    "zero-less-one": ("gptq", change("qzeros", lambda t: t | 15), "stored as 15"),
    "rotation": ("gptq", change_config(rotation="hadamard"), "rotation"),
    "other-format": ("gptq", change_config(format="gptq_p"), "format is"),
    "backend": ("awq", change_config(backend="llm-awq"), "backend"),
    "nan": ("gptq", change("scales", nan), "finite"),
    "twice": ("gptq", lambda c, t: t.update({f"{LAYER}.weight": torch.ones(8, 8)}), "a weight and a qweight"),
    "none": ("gptq", lambda c, t: [t.pop(n) for n in list(t) if ".qweight" in n], "qweight"),
    "version": ("awq", change_config(version="gemv"), "version"),
    "no-zero-point": ("awq", change_config(zero_point=False), "zero_point"),
    "awq-zeros": ("awq", change("qzeros", lambda t: t[:, 1:]), "qzeros"),
    "method": ("gptq", change_config(quant_method="hqq"), "quant_method"),
    "compressed": ("fp8-row", change_config(format="pack-quantized"), "pack-quantized"),
    "block": ("fp8-block", change_config(weight_block_size=[48]), "weight_block_size"),
    "other-block": ("fp8-block", change_config(weight_block_size=[32, 32]), "weight_scale_inv"),
    "fp8-scale": ("fp8-row", change("weight_scale", lambda t: t[1:]), "weight_scale"),
    "fp8-no-scale": ("fp8-row", lambda c, t: t.pop(f"{LAYER}.weight_scale"), "no scale"),
    "fp8-nan": ("fp8-block", change("weight_scale_inv", nan), "finite"),
    "fp8-nan-value": ("fp8-row", change("weight", lambda t: nan(t.float()).to(torch.float8_e4m3fn)), "NaN"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies(name: str, zoo: Any, tmp_path: Path) -> None:
    kind, edit, message = LIES[name]
    source = zoo.path(f"llama_aligned/{kind}")
    config, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    edit(config, tensors)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises((errors.CorruptFileError, errors.UnsupportedError), match=message):
        halfbyte.load(tmp_path)


@pytest.mark.parametrize("kind", ["gptq", "awq", "fp8-block"])
def test_convert(kind: str, zoo: Any, tmp_path: Path) -> None:
    """No file holds them as they are; rounded again or as floats they go anywhere."""
    source = zoo.path(f"llama_aligned/{kind}")
    with pytest.raises(errors.UnsupportedError, match="weights"):
        halfbyte.convert(source, tmp_path / "a.gguf")
    halfbyte.convert(source, tmp_path / "b.gguf", weights="bf16", requantize=True)
    halfbyte.convert(source, tmp_path / "c.gguf", weights="nf4", requantize=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.gguf", "c.gguf"]
    ids = [[1, 5, 9, 30]]
    with halfbyte.load(source) as model, halfbyte.load(tmp_path / "b.gguf") as other:
        truth, found = model.logits(ids), other.logits(ids)
        assert np.linalg.norm(truth - found) < 0.03 * np.linalg.norm(truth)
