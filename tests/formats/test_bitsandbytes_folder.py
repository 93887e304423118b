"""Folders that transformers and bitsandbytes save, used as they are."""

# ruff: noqa: E501 (a row of a table is a line)
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes import functional as bnb
from files import entry, safetensors_bytes, write_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from halfbyte import _core
from oracle.bnb4 import dequantize_4bit


@pytest.fixture(scope="module")
def float_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama of odd sizes: blocks cross rows, last blocks are short."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=72,
        intermediate_size=110,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=22,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_quantized(float_folder: Path, folder: Path, shard: str = "5GB", **options: Any) -> Any:
    quantization = BitsAndBytesConfig(load_in_4bit=True, **options)
    model = AutoModelForCausalLM.from_pretrained(float_folder, quantization_config=quantization, dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def check_against(model: Any, folder: Path) -> None:
    """Every tensor of the folder equals what bitsandbytes decodes."""
    checkpoint = _core.Checkpoint(str(folder))
    assert checkpoint.format == "bitsandbytes"
    state = dict(model.named_parameters())
    assert checkpoint.names() == sorted(state)
    quantized = 0
    for name, parameter in state.items():
        weight = checkpoint.weight(name)
        if hasattr(parameter, "quant_state"):
            # bitsandbytes decodes to the dtype of the model, float32 here: no rounding.
            expected = dequantize_4bit(parameter.data, parameter.quant_state)
            assert weight.format == parameter.quant_state.quant_type
            assert weight.block_size == parameter.quant_state.blocksize
            quantized += 1
        else:
            expected = parameter.data
        assert checkpoint.shape(name) == list(expected.shape)
        np.testing.assert_array_equal(weight.dequantize(), np.atleast_2d(expected.numpy()), name)
    assert quantized == 14


@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "double"])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_saved_by_transformers(float_folder: Path, tmp_path: Path, kind: str, double_quant: bool) -> None:
    model = save_quantized(
        float_folder, tmp_path / "m", bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double_quant
    )
    assert (tmp_path / "m" / "model.safetensors").exists()
    check_against(model, tmp_path / "m")


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_every_storage_dtype(float_folder: Path, tmp_path: Path, storage: torch.dtype) -> None:
    """bnb_4bit_quant_storage: the same bytes under another dtype."""
    model = save_quantized(
        float_folder,
        tmp_path / "m",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_quant_storage=storage,
        bnb_4bit_use_double_quant=True,
    )
    stored = load_file(tmp_path / "m" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert stored.dtype == storage
    check_against(model, tmp_path / "m")


def test_sharded(float_folder: Path, tmp_path: Path) -> None:
    model = save_quantized(
        float_folder, tmp_path / "m", shard="40KB", bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    assert len(list((tmp_path / "m").glob("model-*.safetensors"))) > 2
    check_against(model, tmp_path / "m")


def test_other_block_sizes(tmp_path: Path) -> None:
    """transformers always takes 64; bitsandbytes itself does not."""
    for block_size in (32, 128, 4096):
        source = torch.randn(33, 70, generator=torch.Generator().manual_seed(block_size))
        packed, state = bnb.quantize_4bit(source, blocksize=block_size, quant_type="nf4", compress_statistics=True)
        folder = write_folder(tmp_path / str(block_size), b"")
        parts = {f"w.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        save_file({"w.weight": packed, **parts}, folder / "model.safetensors")
        weight = _core.Checkpoint(str(folder)).weight("w.weight")
        assert weight.block_size == block_size
        np.testing.assert_array_equal(weight.dequantize(), dequantize_4bit(packed, state).numpy())


# --- broken files ---------------------------------------------------------------------------------------------------

STATE: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [3, 40]}
NESTED: dict[str, Any] = {**STATE, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
PLAIN_PARTS: dict[str, Any] = {
    "w": np.full(60, 0x77, np.uint8),
    "w.absmax": np.ones(2, np.float32),
    "w.quant_map": np.linspace(-1, 1, 16, dtype=np.float32),
}
NESTED_PARTS: dict[str, Any] = {
    **PLAIN_PARTS,
    "w.absmax": np.zeros(2, np.uint8),
    "w.nested_absmax": np.ones(1, np.float32),
    "w.nested_quant_map": np.linspace(-1, 1, 256, dtype=np.float32),
}
KEY = "w.quant_state.bitsandbytes__nf4"
DTYPES = {"uint8": "U8", "float32": "F32", "float16": "F16", "int8": "I8"}


def model_bytes(parts: dict[str, Any], state: Any, key: str = KEY) -> bytes:
    text = state if isinstance(state, bytes) else json.dumps(state).encode()
    return tensor_bytes({**parts, key: np.frombuffer(text, np.uint8)})


def tensor_bytes(arrays: dict[str, Any]) -> bytes:
    header, data = {}, b""
    for name, array in arrays.items():
        header[name] = entry(DTYPES[str(array.dtype)], list(array.shape), len(data), len(data) + array.nbytes)
        data += array.tobytes()
    return safetensors_bytes(header, data)


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


def test_the_unbroken_ones(tmp_path: Path) -> None:
    for name, parts, state in (("plain", PLAIN_PARTS, STATE), ("nested", NESTED_PARTS, NESTED)):
        checkpoint = _core.Checkpoint(str(write_folder(tmp_path / name, model_bytes(parts, state))))
        assert checkpoint.names() == ["w"]
        assert checkpoint.weight("w").dequantize().shape == (3, 40)


C, U = _core.CorruptFileError, _core.UnsupportedError
BROKEN: list[tuple[str, dict[str, Any], Any, type[Exception], str]] = [
    ("no codes", without(PLAIN_PARTS, "w"), STATE, C, "the tensor itself is missing"),
    ("no absmax", without(PLAIN_PARTS, "w.absmax"), STATE, C, "the tensor w.absmax is missing"),
    ("no map", without(PLAIN_PARTS, "w.quant_map"), STATE, C, "the tensor w.quant_map is missing"),
    ("no nested map", without(NESTED_PARTS, "w.nested_quant_map"), NESTED, C, "w.nested_quant_map is missing"),
    ("shape", PLAIN_PARTS, {**STATE, "shape": [3, 41]}, C, r"says shape \[3, 41\], which needs 62 bytes; found uint8 \[60\]"),
    ("transposed storage", {**PLAIN_PARTS, "w": np.zeros(60, np.float32)}, STATE, C, r"found float32 \[60\], 240 bytes"),
    ("shape overflows", PLAIN_PARTS, {**STATE, "shape": [2**40, 2**40]}, C, "overflows"),
    ("shape null", PLAIN_PARTS, {**STATE, "shape": None}, C, '"shape" must be a list of sizes, found null'),
    ("shape empty", PLAIN_PARTS, {**STATE, "shape": []}, C, '"shape" must be a list of sizes'),
    ("shape negative", PLAIN_PARTS, {**STATE, "shape": [-3, -40]}, C, '"shape" must be a list of sizes'),
    ("few scales", {**PLAIN_PARTS, "w.absmax": np.ones(1, np.float32)}, STATE, C, "needs 8 bytes of absmax"),
    ("byte scales", {**PLAIN_PARTS, "w.absmax": np.ones(2, np.uint8)}, STATE, C, "w.absmax must be float32, found uint8"),
    ("float bytes", {**NESTED_PARTS, "w.absmax": np.ones(2, np.float32)}, NESTED, C, "w.absmax must be uint8, found float32"),
    ("map of 15", {**PLAIN_PARTS, "w.quant_map": np.zeros(15, np.float32)}, STATE, C, "needs 64 bytes of quant_map"),
    ("map of NaN", {**PLAIN_PARTS, "w.quant_map": np.full(16, np.nan, np.float32)}, STATE, C, "quant_map.0. is nan"),
    ("nested of 2", {**NESTED_PARTS, "w.nested_absmax": np.ones(2, np.float32)}, NESTED, C, "needs 4 bytes of nested_absmax"),
    ("nested map of 255", {**NESTED_PARTS, "w.nested_quant_map": np.ones(255, np.float32)}, NESTED, C, "1024 bytes of nested_quant"),
    ("block of 48", PLAIN_PARTS, {**STATE, "blocksize": 48}, C, "block size 48, expected a power of two"),
    ("block of 0", PLAIN_PARTS, {**STATE, "blocksize": 0}, C, "block size 0, expected a power of two"),
    ("block a text", PLAIN_PARTS, {**STATE, "blocksize": "64"}, C, '"blocksize" must be a size, found "64"'),
    ("block huge", PLAIN_PARTS, {**STATE, "blocksize": 2**40}, C, '"blocksize" must be a size'),
    ("block negative", PLAIN_PARTS, {**STATE, "blocksize": -64}, C, '"blocksize" must be a size'),
    ("nested block of 0", NESTED_PARTS, {**NESTED, "nested_blocksize": 0}, C, "nested_blocksize must not be 0"),
    ("nested block of 100", NESTED_PARTS, {**NESTED, "nested_blocksize": 100}, C, "nested block size 100"),
    ("nested dtype", NESTED_PARTS, {**NESTED, "nested_dtype": "float16"}, U, 'nested_dtype "float16"'),
    ("no offset", NESTED_PARTS, without(NESTED, "nested_offset"), C, '"nested_offset" is missing'),
    ("offset a text", NESTED_PARTS, {**NESTED, "nested_offset": "0"}, C, '"nested_offset" must be a number'),
    ("offset infinite", NESTED_PARTS, {**NESTED, "nested_offset": 1e300}, C, "nested_offset.*inf"),
    ("offset NaN", NESTED_PARTS, {**NESTED, "nested_offset": float("nan")}, C, "not valid JSON"),
    ("another type", PLAIN_PARTS, {**STATE, "quant_type": "fp4"}, C, 'quant_type is "fp4", the tensor.s name says nf4'),
    ("no type", PLAIN_PARTS, without(STATE, "quant_type"), C, '"quant_type" is missing'),
    ("dtype", PLAIN_PARTS, {**STATE, "dtype": "int8"}, C, 'dtype "int8"'),
    ("unknown field", PLAIN_PARTS, {**STATE, "act_order": True}, U, 'the field "act_order" is not known'),
    ("not JSON", PLAIN_PARTS, b"\x80\x04pickle", C, "not valid JSON"),
    ("a list", PLAIN_PARTS, [1], C, "not a JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "state", "error", "text"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_broken(tmp_path: Path, parts: dict[str, Any], state: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        _core.Checkpoint(str(write_folder(tmp_path / "m", model_bytes(parts, state))))


def test_two_states_and_unknown_kinds(tmp_path: Path) -> None:
    both = {**PLAIN_PARTS, "w.quant_state.bitsandbytes__fp4": np.frombuffer(json.dumps(STATE).encode(), np.uint8)}
    with pytest.raises(C):
        _core.Checkpoint(str(write_folder(tmp_path / "both", model_bytes(both, STATE))))
    with pytest.raises(U, match='quant_type "af4"; expected nf4 or fp4'):
        key = "w.quant_state.bitsandbytes__af4"
        _core.Checkpoint(str(write_folder(tmp_path / "af4", model_bytes(PLAIN_PARTS, STATE, key))))


def test_misaligned_scales(tmp_path: Path) -> None:
    """Scales and maps at odd addresses are copied to even ones."""
    parts = {"a": np.zeros(3, np.uint8), **PLAIN_PARTS}
    aligned = _core.Checkpoint(str(write_folder(tmp_path / "a", model_bytes(PLAIN_PARTS, STATE)))).weight("w")
    moved = _core.Checkpoint(str(write_folder(tmp_path / "b", model_bytes(parts, STATE)))).weight("w")
    np.testing.assert_array_equal(moved.dequantize(), aligned.dequantize())


# --- LLM.int8() -----------------------------------------------------------------------------------------------------


def test_int8_saved_by_transformers(float_folder: Path, tmp_path: Path) -> None:
    """Every weight is what bitsandbytes decodes, bit for bit."""
    quantization = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        float_folder, quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )
    model.save_pretrained(tmp_path / "m")
    stored = load_file(tmp_path / "m" / "model.safetensors")
    checkpoint = _core.Checkpoint(str(tmp_path / "m"))
    assert checkpoint.format == "bitsandbytes"
    assert checkpoint.names() == sorted(name for name in stored if not name.endswith((".SCB", ".weight_format")))
    rows = 0
    for name in checkpoint.names():
        weight, expected = checkpoint.weight(name), stored[name]
        if expected.dtype == torch.int8:
            scb = stored[name.removesuffix("weight") + "SCB"]
            assert (weight.format, weight.block_size) == ("int8_rows", expected.shape[1])
            expected = bnb.int8_vectorwise_dequant(expected, scb)
            rows += 1
        assert checkpoint.shape(name) == list(expected.shape)
        np.testing.assert_array_equal(weight.dequantize(), np.atleast_2d(expected.numpy()), name)
    assert rows == 14


def test_int8_decodes_every_level(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    levels = np.tile(np.arange(-128, 128, dtype=np.int8), (999, 1))
    scb = (rng.standard_normal(999) * np.exp(20 * rng.standard_normal(999))).astype(np.float32)
    weight = _core.weight_from_planes("int8_rows", 999, 256, 256, {"levels": levels.reshape(-1), "SCB": scb})
    expected = bnb.int8_vectorwise_dequant(torch.from_numpy(levels), torch.from_numpy(scb)).numpy()
    np.testing.assert_array_equal(weight.dequantize().view(np.uint32), expected.view(np.uint32))
    planes = weight.planes()
    assert planes["levels"].tobytes() == levels.tobytes() and planes["SCB"].tobytes() == scb.tobytes()


INT8: dict[str, Any] = {
    "v.weight": np.arange(12, dtype=np.int8).reshape(3, 4),
    "v.SCB": np.ones(3, np.float32),
    "v.weight_format": np.zeros((), np.uint8),
}
BROKEN_INT8: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    ("no weight", without(INT8, "v.weight"), C, "tensor v.weight: it has an SCB, but the tensor itself is missing"),
    ("no SCB", without(INT8, "v.SCB"), U, "tensor v.weight: a weight of dtype int8 is not supported"),
    ("float weight", {**INT8, "v.weight": np.ones((3, 4), np.float32)}, C, "v.weight must be int8, found float32"),
    ("half SCB", {**INT8, "v.SCB": np.ones(3, np.float16)}, C, "v.SCB must be float32, found float16"),
    ("few SCB", {**INT8, "v.SCB": np.ones(2, np.float32)}, C, "needs 12 bytes of SCB, found 8"),
    ("a vector", {**INT8, "v.weight": np.arange(12, dtype=np.int8)}, C, r"expected a matrix \[out, in\], found \[12\]"),
    ("no columns", {**INT8, "v.weight": np.zeros((3, 0), np.int8)}, C, r"expected a matrix \[out, in\], found \[3, 0\]"),
    ("col32", {**INT8, "v.weight_format": np.array(1, np.uint8)}, U, "weight_format must be 0"),
    ("format a float", {**INT8, "v.weight_format": np.zeros((), np.float32)}, C, "v.weight_format must be uint8"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("parts", "error", "text"), [case[1:] for case in BROKEN_INT8], ids=[c[0] for c in BROKEN_INT8]
)
def test_broken_int8(tmp_path: Path, parts: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        _core.Checkpoint(str(write_folder(tmp_path / "m", tensor_bytes(parts)))).weight("v.weight")


def test_int8_of_old_files(tmp_path: Path) -> None:
    """Without weight_format: rows."""
    for name, parts in (("new", INT8), ("old", without(INT8, "v.weight_format"))):
        checkpoint = _core.Checkpoint(str(write_folder(tmp_path / name, tensor_bytes(parts))))
        assert checkpoint.names() == ["v.weight"]
        assert checkpoint.weight("v.weight").format == "int8_rows"


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("nf4-dq", {"bnb_4bit_quant_type": "fp4"}, 'is nf4, and .*bnb_4bit_quant_type = "fp4"'),
        (
            "nf4-dq",
            {"bnb_4bit_use_double_quant": False},
            "has scales of 8 bits, and .*bnb_4bit_use_double_quant = false",
        ),
        ("nf4", {"bnb_4bit_use_double_quant": True}, "has plain scales, and .*bnb_4bit_use_double_quant = true"),
        ("nf4", {"bnb_4bit_quant_storage": "float16"}, 'is stored as uint8, and .*bnb_4bit_quant_storage = "float16"'),
        ("nf4", {"load_in_8bit": True, "load_in_4bit": False}, "has 4 bits, and .*load_in_8bit = true"),
        ("int8", {"load_in_8bit": False, "load_in_4bit": True}, "has 8 bits, and .*load_in_4bit = true"),
    ],
)
def test_a_config_that_contradicts_the_tensors(
    kind: str, fields: dict[str, Any], message: str, zoo: Any, tmp_path: Path
) -> None:
    source = zoo.path(f"llama/{kind}")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"].update(fields)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    with pytest.raises(_core.CorruptFileError, match=message):
        _core.Checkpoint(str(tmp_path))
    for field in fields:  # what it does not say, the tensors decide
        del config["quantization_config"][field]
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    _core.Checkpoint(str(tmp_path))
