"""convert(auto=BITS): what is measured, chosen and written; and layers rounded each to its own on loading."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import halfbyte
from halfbyte import _core, calibration, cli, errors
from halfbyte.convert import Planned, convert
from halfbyte.convert_auto import Choice, Level, allocate
from oracle import reference
from oracle.cases import SEQUENCES

NF4 = 4 + 8 / 64 + 32 / (64 * 256)  # bits a weight, double-quantised


def logits(path: Path, quantize: Any = None) -> np.ndarray:
    with halfbyte.load(path, precision="float32", quantize=quantize) as model:
        call = model.logits if model.info["has_logits"] else model.hidden_states
        return np.concatenate([call([ids])[0] for ids in SEQUENCES])


def linear_bits(path: Path) -> float:
    checkpoint = _core.Checkpoint(str(path))
    weights = [checkpoint.weight(t[0]) for t in checkpoint.plan()[1] if t[3] == "linear"]
    return 8 * sum(w.nbytes for w in weights) / sum(w.shape[0] * w.shape[1] for w in weights)


# ---- layers rounded each to its own


def test_a_mapping_rounds_what_it_names(zoo: Any) -> None:
    """As transformers does with those layers rounded by bitsandbytes; the first pattern that fits counts."""
    path = zoo.path("llama_aligned")
    rules = {
        "model.layers.0.mlp.gate_proj": "int8",
        "model.layers.0.self_attn": "keep",
        "*.down_proj": "bf16",
        "*": "nf4",
    }
    with halfbyte.load(path, precision="float32", quantize=rules) as model:
        found = {w["name"].removesuffix(".weight"): w["storage"] for w in model.info["weights"]}
        values = [model.logits([ids])[0] for ids in SEQUENCES]
    expected = reference.load(path)
    for name, module in expected.named_modules():
        if not reference.is_linear(module) or name == "lm_head":
            continue
        kind = "nf4"
        if name == "model.layers.0.mlp.gate_proj":
            kind = "int8"
        elif name.startswith("model.layers.0.self_attn"):
            kind = "f32"
        elif name.endswith("down_proj"):
            kind = "bf16"
        assert found[name] == kind
        if kind != "f32":
            module.weight.data = reference._rounded(module.weight.data, kind)
    assert found["lm_head"] == "f32"
    reference.Reference(expected, SEQUENCES).check(values, "float32")


def test_the_output_layer_by_its_name(zoo: Any) -> None:
    for name in ("llama_aligned", "llama_blocks_tied"):
        with halfbyte.load(zoo.path(name), quantize={"lm_head": "int8"}) as model:
            assert [w["name"] for w in model.info["weights"] if w["storage"] == "int8"] == ["lm_head.weight"]


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ({"model.layers.9.*": "nf4"}, r"no linear layer of .* is named 'model\.layers\.9\.\*'"),
        ({"model.layers.9": "nf4"}, r"quantize names 'model\.layers\.9', and no linear layer"),
        ({"model.embed_tokens": "nf4"}, r"quantize names 'model\.embed_tokens'"),
        ({"*": "nf3"}, "nf3"),
    ],
)
def test_mappings_that_name_nothing(zoo: Any, rules: dict[str, str], error: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=error):
        halfbyte.load(zoo.path("llama_aligned"), quantize=rules)


def test_gguf_layers_have_the_names_of_hugging_face(zoo: Any) -> None:
    path = zoo.path("llama_blocks/F16.gguf")
    with halfbyte.load(path, quantize={"model.layers.1.mlp.up_proj": "nf4"}) as model:
        assert [w["name"] for w in model.info["weights"] if w["storage"] == "nf4"] == ["blk.1.ffn_up.weight"]


# ---- the choice


def choice(size: int, *levels: tuple[float, float]) -> Choice:
    tensor = Planned("t", "t.weight", "t.weight", "linear", 1, size, False, (), "f16", "nf4")
    return Choice(tensor, [Level(str(i), bits, moves) for i, (bits, moves) in enumerate(levels)])


def test_the_best_for_a_bit_comes_first() -> None:
    choices = [choice(10, (4, 1.0), (8, 0.1), (16, 0)), choice(10, (4, 5.0), (8, 0.2), (16, 0))]
    allocate(choices, 6)
    assert [c.at for c in choices] == [0, 1]
    allocate(choices := [copy.deepcopy(c) for c in choices], 8)
    assert [c.at for c in choices] == [1, 1]
    # a large layer that doesn't fit any more leaves the room to a small one
    choices = [choice(100, (4, 9.0), (8, 0)), choice(10, (4, 0.01), (8, 0))]
    allocate(choices, 4.4)
    assert [c.at for c in choices] == [0, 1]


def test_levels_that_others_beat_are_left_out() -> None:
    """A Q4_1 source has no error at 5 bits: int8 is never chosen. Nor is a level that saves nothing."""
    choices = [choice(10, (4.1, 1.0), (8.25, 0.01), (5, 0)), choice(10, (4, 0.0), (8, 0.0))]
    allocate(choices, 16)
    assert [c.at for c in choices] == [2, 0]


def test_no_choice_of_this_size_is_better() -> None:
    """Against all 2^10 choices of ten layers of one size, where the greedy one is the optimum."""
    rng = np.random.default_rng(3)
    gains = rng.lognormal(size=10)
    choices = [choice(64, (4, float(g)), (8, float(g) / 200)) for g in gains]
    allocate(choices, 5.2)
    found = sum(c.levels[c.at].moves for c in choices)
    best = min(
        sum(g / 200 if mask >> i & 1 else g for i, g in enumerate(gains))
        for mask in range(1 << 10)
        if mask.bit_count() * 4 <= 12
    )
    assert found == pytest.approx(best)


# ---- the measurement


def test_what_a_layer_moves_is_what_transformers_says(zoo: Any, tmp_path: Path) -> None:
    """KL of the source's predictions from those with one layer in nf4, of transformers in float64 on the same tokens.

    halfbyte runs in "high": the error of a layer is at most 3e-4 (README.md), of the fourteen here sqrt(14) times that,
    1.1e-3, where nf4 rounds a layer by 9e-2 of its values. The quotient is 1.2 %; a divergence is a square: twice that.
    """
    path = zoo.path("llama_aligned")
    result = convert(path, tmp_path / "m.gguf", auto=8.0).auto
    assert result is not None and result.words
    with halfbyte.load(path) as model:
        texts, _ = calibration.sequences(model, calibration.CALIBRATION)
    plain = reference.double(reference.load(path))
    exact = [torch.log_softmax(torch.from_numpy(reference.logits(plain, ids)), -1) for ids in texts]
    for kept in result.kept:
        changed = reference.load(path)
        layer = changed.get_submodule(kept.name)
        layer.weight.data = reference._rounded(layer.weight.data, "nf4")
        changed = reference.double(changed)
        found = [torch.log_softmax(torch.from_numpy(reference.logits(changed, ids)), -1) for ids in texts]
        total = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(exact, found, strict=True))
        assert kept.moves == pytest.approx(total / sum(map(len, texts)), rel=0.025), kept


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("llama_aligned", 5.0),
        ("llama_tied/bf16", 6.5),
        ("bert_blocks", 5.5),
        ("gpt2_blocks", 5.0),
        ("llama_blocks/F16.gguf", 4.5),
    ],
)
def test_within_the_budget_and_better(zoo: Any, tmp_path: Path, name: str, bits: float) -> None:
    source, target = zoo.path(name), tmp_path / "m.gguf"
    result = convert(source, target, auto=bits, panels=False)
    auto = result.auto
    assert auto is not None
    assert auto.narrow_bits == pytest.approx(NF4) and NF4 < auto.bits <= bits
    planned = _core.Checkpoint(str(source)).plan()[1]
    size = sum(rows * cols for _, _, _, role, rows, cols, *_ in planned if role == "linear")
    tables = 32 * (16 + 256 + 1) * auto.layers / size  # the levels of nf4: small, but not beside so small matrices
    assert linear_bits(target) == pytest.approx(auto.bits, abs=tables + 0.01)
    for text in ("calibration", "held out"):
        assert auto.tokens[text] > 100
        assert auto.auto[text].divergence < auto.narrow[text].divergence
        assert auto.auto[text].relative < auto.narrow[text].relative
    assert auto.kept == sorted(auto.kept, key=lambda k: -k.moves)
    assert {k.name: k.storage for k in auto.kept}.items() <= auto.storages.items()
    rules = {name: "keep" if storage not in ("nf4", "int8") else storage for name, storage in auto.storages.items()}
    np.testing.assert_array_equal(logits(target), logits(source, rules))


def test_same_input_same_choice(zoo: Any, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        convert(zoo.path("llama_aligned"), tmp_path / name, auto=5.0)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_folder_keeps_layers_as_they_are(zoo: Any, tmp_path: Path) -> None:
    """bitsandbytes has no int8 beside 4 bits: what stays wide has the source's 16."""
    result = convert(zoo.path("llama_aligned"), tmp_path / "folder", format="bitsandbytes", auto=9.0, weights="fp4")
    assert result.auto is not None and set(result.auto.storages.values()) == {"fp4", "f32"}
    assert linear_bits(tmp_path / "folder") < 9.2
    rules = {name: "keep" if storage == "f32" else storage for name, storage in result.auto.storages.items()}
    np.testing.assert_array_equal(logits(tmp_path / "folder"), logits(zoo.path("llama_aligned"), rules))


def test_modules_kept_by_name_count(zoo: Any, tmp_path: Path) -> None:
    keep = ["model.layers.1.mlp.down_proj"]
    result = convert(zoo.path("llama_aligned"), tmp_path / "m.gguf", auto=9.0, keep_float=keep)
    assert result.auto is not None and result.auto.storages[keep[0]] == "f32" and result.auto.bits <= 9
    assert result.auto.narrow_bits > NF4 + 1
    with pytest.raises(errors.InvalidArgumentError, match=r"there are \d+\.\d+ bits a weight; give at least"):
        convert(zoo.path("llama_aligned"), tmp_path / "m.gguf", auto=5.0, keep_float=keep)


def test_other_texts(zoo: Any, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words of the user's own.\n" * 20)
    source = tmp_path / "source"
    shutil.copytree(zoo.path("bert_blocks"), source)
    result = convert(source, tmp_path / "m.gguf", auto=5.0, calibration=text)
    assert result.auto is not None and not result.auto.words  # no tokenizer: random ids
    assert result.auto.tokens == {"calibration": 3 * 128, "held out": 3 * 128}
    result = convert(zoo.path("llama_aligned"), tmp_path / "m.gguf", auto=5.0, calibration=text)
    assert result.auto is not None and result.auto.words and result.auto.tokens["calibration"] > 100
    text.write_text("")
    with pytest.raises(errors.InvalidArgumentError, match="no words to measure on"):
        convert(zoo.path("llama_aligned"), tmp_path / "m.gguf", auto=5.0, calibration=text)
    with pytest.raises(errors.NotFoundError, match=r"none\.txt"):
        convert(zoo.path("llama_aligned"), tmp_path / "m.gguf", auto=5.0, calibration=tmp_path / "none.txt")
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(errors.CorruptFileError, match="not UTF-8"):
        convert(zoo.path("llama_aligned"), tmp_path / "m.gguf", auto=5.0, calibration=text)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"auto": 4.0}, r"auto=4: .* in nf4 there are 4\.127 bits a weight; give at least 4\.13"),
        ({"auto": float("nan")}, "auto=nan"),
        ({"auto": 5.0, "weights": "int8"}, "auto takes weights='nf4' or 'fp4', got 'int8'"),
        ({"calibration": "x.txt"}, "auto is not given"),
    ],
)
def test_what_can_not_be_asked_for(zoo: Any, tmp_path: Path, options: Any, error: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=error):
        convert(zoo.path("llama_aligned"), tmp_path / "m.gguf", **options)


def test_sources_that_are_rounded_already(zoo: Any, tmp_path: Path) -> None:
    with pytest.raises(errors.UnsupportedError, match=r"is q4_1 already.*--requantize"):
        convert(zoo.path("llama_blocks/Q4_1.gguf"), tmp_path / "m.gguf", auto=5.0)
    result = convert(zoo.path("llama_blocks/Q4_1.gguf"), tmp_path / "m.gguf", auto=4.5, requantize=True)
    assert result.auto is not None and set(result.auto.storages.values()) == {"nf4", "q4_1"}  # five bits, no error
    with pytest.raises(errors.InvalidArgumentError, match="no linear layer to choose for"):
        convert(zoo.path("llama_aligned/nf4-dq"), tmp_path / "n.gguf", auto=5.0)


def test_the_command(zoo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m.gguf"
    assert cli.main(["convert", str(zoo.path("llama_aligned")), str(target), "--auto", "5"]) == 0
    out = capsys.readouterr().out
    for part in ("of 5; ", "wider than nf4 (4.127)", "calibration, ", "held out, ", "divergence", "int8"):
        assert part in out, out
    assert cli.main(["convert", str(zoo.path("llama_aligned")), str(target), "--auto", "3"]) == 1
    assert "give at least" in capsys.readouterr().err
