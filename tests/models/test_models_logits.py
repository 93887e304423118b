"""Logits of every architecture, storage and precision against transformers in float64.

Tolerances and their derivation: oracle/reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import halfbyte
from oracle.cases import PRECISIONS, SEQUENCES, random_ids, run, run_together

if TYPE_CHECKING:
    from oracle.cases import Engines, References

FLOAT = [
    "llama",
    "llama_tied",
    "llama_bias",
    "llama_theta",
    "llama_rope3",
    "llama_linear",
    "llama_old",
    "mistral",
    "mistral_full",
    "gpt2",
    "gpt2_scaled",
    "gpt2_unscaled",
    "gpt2_untied",
    "bert",
    "bert_types3",
    "bert_mlm",
]
ACTIVATIONS = [
    "gpt2_gelu",
    "gpt2_gelu_tanh",
    "gpt2_relu",
    "gpt2_silu",
    "gpt2_tanh",
    "bert_relu",
    "bert_gelu_new",
]
SIXTEEN_BITS = ["llama/bf16", "llama/f16", "gpt2/bf16", "bert/f16"]
SHARDED = ["llama/sharded", "gpt2/nf4-dq-sharded"]
BITSANDBYTES = [
    f"{base}/{kind}"
    for base in ("llama", "llama_aligned", "mistral", "gpt2", "bert")
    for kind in ("nf4-dq", "nf4", "fp4", "fp4-dq", "int8")
]
GGUF = [
    f"{base}/{kind}.gguf"
    for base in ("llama_blocks", "gpt2_blocks", "bert_blocks")
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")
]
GGUF_VARIANTS = [
    "llama_blocks_tied/Q4_1.gguf",
    "llama_blocks_rope3/Q4_0.gguf",
    "llama_blocks_linear/F16.gguf",
]
QUANTIZED_ON_LOADING = [
    ("llama", "nf4"),
    ("llama", "fp4"),
    ("llama", "bf16"),
    ("llama", "f16"),
    ("llama_blocks", "int8"),
    ("llama_blocks/Q4_1.gguf", "nf4"),
    ("gpt2", "nf4"),
    ("gpt2_blocks", "int8"),
    ("bert", "nf4"),
    ("bert", "bf16"),
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FLOAT + BITSANDBYTES + GGUF)
def test_logits(name: str, precision: str, engines: Engines, references: References) -> None:
    reference = references.get(name)
    model = engines.get(name, precision)
    causal = references.zoo.spec(name).causal
    reference.check(run(model, SEQUENCES, causal), precision)
    reference.check(run_together(model, SEQUENCES, causal), precision)


@pytest.mark.parametrize("precision", ("float32", "high"))
@pytest.mark.parametrize("name", ACTIVATIONS + SIXTEEN_BITS + SHARDED + GGUF_VARIANTS)
def test_logits_of_variants(name: str, precision: str, engines: Engines, references: References) -> None:
    reference = references.get(name)
    reference.check(run_together(engines.get(name, precision), SEQUENCES, references.zoo.spec(name).causal), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "quantize"), QUANTIZED_ON_LOADING)
def test_logits_quantized_on_loading(
    name: str, quantize: str, precision: str, engines: Engines, references: References
) -> None:
    """Linear layers rounded as bitsandbytes (double-quantised scales) or gguf do; not embeddings and output layers."""
    reference = references.get(name, quantize=quantize)
    model = engines.get(name, precision, quantize=quantize)
    reference.check(run_together(model, SEQUENCES, references.zoo.spec(name).causal), precision)


@pytest.mark.parametrize("precision", ("float32", "high"))
@pytest.mark.parametrize("name", ("llama", "mistral/nf4", "gpt2", "llama_blocks/Q8_0.gguf"))
def test_hidden_states_of_decoders(name: str, precision: str, engines: Engines, references: References) -> None:
    """Behind the last norm."""
    reference = references.get(name, run="hidden")
    model = engines.get(name, precision)
    reference.check(run(model, SEQUENCES, causal=False), precision)
    reference.check(run_together(model, SEQUENCES, causal=False), precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ("llama/nf4-dq", "gpt2", "bert/nf4"))
def test_threads(name: str, precision: str, engines: Engines, references: References) -> None:
    reference = references.get(name)
    for threads in (1, 2, 3):
        model = engines.get(name, precision, threads=threads)
        reference.check(run_together(model, SEQUENCES, references.zoo.spec(name).causal), precision)


@pytest.mark.parametrize("name", ("llama/nf4-dq", "gpt2", "mistral"))
def test_a_batch_does_not_mix_its_sequences(name: str, engines: Engines) -> None:
    """Another neighbour changes nothing beyond the rounding of another batch size; the same one nothing at all."""
    model = engines.get(name, "float32")
    a, b, c = random_ids(9, 11), random_ids(17, 12), random_ids(17, 13)
    with_b, with_c = model.logits([a, b])[0, :9], model.logits([a, c])[0, :9]
    np.testing.assert_array_equal(with_b, with_c)


@pytest.mark.parametrize("name", ("llama", "gpt2"))
def test_causality(name: str, engines: Engines) -> None:
    """Logits of a prefix do not know what follows."""
    model = engines.get(name, "float32")
    ids = random_ids(33, 5)
    other = ids[:20] + random_ids(13, 6)
    np.testing.assert_array_equal(model.logits([ids])[0, :20], model.logits([other])[0, :20])


def test_encoders_have_no_logits(engines: Engines) -> None:
    with pytest.raises(halfbyte.InvalidArgumentError, match=r"output layer|logits"):
        engines.get("bert").logits([[1, 2, 3]])


@pytest.mark.parametrize("name", ("llama", "gpt2"))
def test_token_ids_are_checked(name: str, engines: Engines) -> None:
    model = engines.get(name)
    for ids in ([1, 517], [-1, 3]):
        with pytest.raises(halfbyte.InvalidArgumentError, match=str(ids[1] if ids[0] == 1 else ids[0])):
            model.logits([ids])
    with pytest.raises(halfbyte.InvalidArgumentError, match="256"):
        model.logits([random_ids(257, 0)])
    assert model.logits([random_ids(256, 0)]).shape == (1, 256, 517)
