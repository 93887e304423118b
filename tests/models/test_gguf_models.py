"""Whole models in every block format of GGUF: logits against transformers in float64, what `info` says, split files.

Embeddings, layers and output layer are all of the one type. Tolerances and their derivation: oracle/reference.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import halfbyte
from halfbyte import _core
from halfbyte.cli_info import describe_checkpoint
from oracle import gguf_files
from oracle.builders import SPECS, make_model
from oracle.cases import PRECISIONS, SEQUENCES, run, run_together

if TYPE_CHECKING:
    from oracle.builders import Zoo
    from oracle.cases import Engines, References

# Those that models/test_models_logits.py has not.
KINDS = ("Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0")
KINDS += ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "F64")


@pytest.mark.parametrize("base", ["llama_k", "llama_k_tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits(kind: str, base: str, engines: Engines, references: References) -> None:
    """q and k are put back into Hugging Face's order; the output layer is its own, or the embedding's."""
    name = f"{base}/{kind}.gguf"
    reference = references.get(name)
    for precision in PRECISIONS:
        model = engines.get(name, precision)
        reference.check(run(model, SEQUENCES, causal=True), precision)
        reference.check(run_together(model, SEQUENCES, causal=True), precision)


@pytest.mark.parametrize("kind", KINDS)
def test_info(kind: str, zoo: Zoo) -> None:
    facts = describe_checkpoint(zoo.path(f"llama_k_tied/{kind}.gguf"))
    assert set(facts["storages"]) == {kind.lower(), "f32"}
    assert facts["storages"][kind.lower()]["tensors"] == 1 + 2 * 7
    assert facts["storages"]["f32"]["tensors"] == 2 * 2 + 1


MEASURED = [f"llama_k/{kind}.gguf" for kind in (*KINDS, "Q4_0", "Q8_0", "BF16")]


@pytest.mark.parametrize("name", [*MEASURED, "llama_aligned/nf4-dq", "llama/int8", "llama", "llama_aligned"])
def test_memory_of_info(name: str, zoo: Zoo) -> None:
    """What the device takes for the layers, and the tables as they are.

    Its own tables are up to 2 KiB a layer; a vocabulary of 517 is filled up to 528 rows, 2 % of the output layer.
    """
    checkpoint = _core.Checkpoint(str(zoo.path(name)))
    ops = _core.Ops("cpu", 1, "high")
    exact = 0
    for source, _, _, role, *_ in checkpoint.plan()[1]:
        weight = checkpoint.weight(source)
        exact += ops.uploaded_bytes(weight) if role in ("linear", "output") else weight.nbytes
    found = describe_checkpoint(zoo.path(name))["memory"]["weights"]
    assert -0.001 * exact <= exact - found <= 15 * 2048 + 0.02 * exact


@pytest.mark.parametrize("quantize", ["nf4", "int8", "bf16"])
@pytest.mark.parametrize("kind", ["Q4_K", "F64"])
def test_rounded_while_loading(kind: str, quantize: str, engines: Engines, references: References) -> None:
    name = f"llama_k/{kind}.gguf"
    reference = references.get(name, quantize=quantize)
    reference.check(run_together(engines.get(name, "high", quantize=quantize), SEQUENCES, causal=True), "high")


def test_a_split_model(tmp_path: Path, zoo: Zoo) -> None:
    """The same model in parts: the same logits, the same text (the tokenizer is in the first part)."""
    gguf_files.write(make_model(SPECS["llama_k"]), tmp_path / "m.gguf", "Q6_K", split_max_tensors=5)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 5
    with halfbyte.load(zoo.path("llama_k/Q6_K.gguf")) as whole, halfbyte.load(parts[3]) as split:
        np.testing.assert_array_equal(split.logits(SEQUENCES), whole.logits(SEQUENCES))
        assert split.generate("one two", max_tokens=5) == whole.generate("one two", max_tokens=5)
    facts = describe_checkpoint(parts[0])
    assert facts["parameters"] == describe_checkpoint(zoo.path("llama_k/Q6_K.gguf"))["parameters"]
    parts[4].unlink()
    with pytest.raises(halfbyte.NotFoundError, match="part 5 of 5 is missing"):
        halfbyte.load(parts[0])
