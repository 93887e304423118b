"""Whole models on the CUDA device, emulated: against transformers in float64, and token for token against the CPU.

The bounds are those of every device (oracle/reference.py): precision "float32" at most twice the error of transformers
in float32, "high" at most that of transformers in bfloat16.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import halfbyte
from oracle import packages
from oracle.cases import SEQUENCES, random_ids, run, run_together

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oracle.adapters import Adapters
    from oracle.builders import Zoo
    from oracle.cases import Engines, References

pytestmark = pytest.mark.usefixtures("emulated")

# Emulation is some thousand times slower than a GPU: each architecture in the storages that have kernels of their own.
NAMES = [
    "llama/nf4-dq",
    "llama_aligned/nf4-dq",
    "llama_aligned/fp4",
    "llama_aligned/int8",
    "llama_tied",
    "llama/bf16",
    "mistral/nf4",
    "gpt2/nf4-dq",
    "gpt2/f16",
    "bert",
    "bert/nf4-dq",
    "llama_blocks/Q4_1.gguf",
    "llama_blocks/Q8_0.gguf",
    "gpt2_blocks/Q4_0.gguf",
]
SHORT = [ids for ids in SEQUENCES if len(ids) <= 40]


@pytest.fixture(scope="module")
def on_cuda(zoo: Zoo) -> Iterator[Engines]:
    from oracle.cases import Engines

    engines = Engines(zoo)
    yield engines
    engines.close()


@pytest.mark.parametrize("precision", ["float32", "high"])
@pytest.mark.parametrize("name", NAMES)
def test_numbers(name: str, precision: str, on_cuda: Engines, references: References) -> None:
    reference = references.get(name)
    model = on_cuda.get(name, precision, device="cuda")
    assert model.info["device"].startswith("cuda ")
    causal = references.zoo.spec(name).causal
    reference.check(run_together(model, SEQUENCES, causal), precision)


@pytest.mark.parametrize("name", ["llama/nf4-dq", "gpt2/nf4-dq", "mistral/nf4", "llama_blocks/Q4_1.gguf"])
def test_generation(name: str, engines: Engines, on_cuda: Engines) -> None:
    """Token for token what the CPU writes, greedily and drawn; most steps run as a graph."""
    prompt = random_ids(19, 7)
    cpu, cuda = engines.get(name, "float32"), on_cuda.get(name, "float32", device="cuda")
    for options in (
        {},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 3},
        {"temperature": 1.1, "min_p": 0.02, "seed": 4},
    ):
        assert cuda.generate_tokens(prompt, max_tokens=14, **options) == cpu.generate_tokens(
            prompt, max_tokens=14, **options
        )


def test_generation_with_penalties(engines: Engines, on_cuda: Engines) -> None:
    """Penalties are the host's: logits come back for them."""
    options = {"temperature": 0.8, "repetition_penalty": 1.2, "presence_penalty": 0.3, "seed": 5, "max_tokens": 12}
    prompt = random_ids(11, 8)
    cpu, cuda = engines.get("llama/nf4-dq", "float32"), on_cuda.get("llama/nf4-dq", "float32", device="cuda")
    assert cuda.generate_tokens(prompt, **options) == cpu.generate_tokens(prompt, **options)


@pytest.mark.parametrize("cache", ["f16", "bf16", "f32", "int8"])
def test_caches(cache: str, zoo: Zoo) -> None:
    """A cache of 16 or 8 bits rounds alike on both devices: the same tokens from the same rounding."""
    path, prompt = zoo.path("llama/nf4-dq"), random_ids(21, 9)
    written = []
    for device in ("cpu", "cuda"):
        model = halfbyte.load(path, device=device, precision="float32", kv_cache=cache)
        written.append(model.generate_tokens(prompt, max_tokens=10))
        model.close()
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        ("llama/nf4-dq", "llama-all"),
        ("llama/nf4", "llama-patterns"),
        ("gpt2/fp4-dq", "gpt2-all"),
        ("bert/nf4-dq", "bert-all"),
    ],
)
@pytest.mark.parametrize("precision", ["float32", "high"])
def test_adapters(
    name: str, adapter: str, precision: str, on_cuda: Engines, references: References, adapters: Adapters
) -> None:
    model, causal = on_cuda.get(name, precision, device="cuda"), references.zoo.spec(name).causal
    adapted = references.get_adapted(name, adapters, adapter)
    before = run_together(model, SHORT, causal)
    model.load_adapter(adapters.path(adapter), "x")
    try:
        adapted.check(run_together(model, SEQUENCES, causal, adapter="x"), precision)
        for value, same in zip(run_together(model, SHORT, causal), before, strict=True):
            np.testing.assert_array_equal(value, same)  # loaded, but not named
    finally:
        model.unload_adapter("x")


def test_a_batch_of_adapters(on_cuda: Engines, adapters: Adapters) -> None:
    """Rows with one adapter, another, a weighted sum and none, against each alone; the same kernels in other tiles."""
    model = on_cuda.get("llama/nf4-dq", "float32", device="cuda")
    names: list[Any] = ["a", "b", {"a": 0.7, "b": 0.3}, None]
    model.load_adapter(adapters.path("llama-all"), "a")
    model.load_adapter(adapters.path("llama-regex"), "b")
    try:
        ids = random_ids(9, 10)
        together = model.logits([ids] * len(names), adapter=names)
        for row, name in zip(together, names, strict=True):
            alone = model.logits([ids], adapter=name)[0]
            np.testing.assert_allclose(row, alone, atol=1e-5 * float(np.abs(alone).max()), rtol=0)
        assert np.abs(together[0] - together[3]).max() > 0.01 * np.abs(together[3]).max()
    finally:
        model.unload_adapter("a")
        model.unload_adapter("b")


def test_many_threads(on_cuda: Engines) -> None:
    """Threads that write different texts on one device take turns in its queue: each gets what it gets alone."""
    model = on_cuda.get("llama/nf4-dq", "float32", device="cuda")
    prompts = [random_ids(5 + i, 20 + i) for i in range(3)]
    alone = [model.generate_tokens(prompt, max_tokens=4) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = list(pool.map(lambda prompt: model.generate_tokens(prompt, max_tokens=4), prompts))
    assert together == alone


def test_weights_in_host_memory(zoo: Zoo, on_cuda: Engines) -> None:
    """A model of which half does not fit runs with the same numbers: codes pass through the device for each use."""
    whole = on_cuda.get("llama_tied", "float32", device="cuda")
    half = sum(weight["bytes"] for weight in whole.info["weights"]) // 2
    model = halfbyte.load(zoo.path("llama_tied"), device="cuda", precision="float32", device_memory=half)
    for value, same in zip(run(model, SHORT, True), run(whole, SHORT, True), strict=True):
        np.testing.assert_array_equal(value, same)
    assert model.generate_tokens(SHORT[-1], max_tokens=6) == whole.generate_tokens(SHORT[-1], max_tokens=6)
    model.close()


def test_embeddings_of_sentences() -> None:
    """Pooling and normalising are the device's."""
    sentences = ["A cat sat.", "What is the capital of France?"]
    path = packages.minilm()
    cpu, cuda = (halfbyte.load(path, device=device, precision="float32") for device in ("cpu", "cuda"))
    # unit vectors; two float32 networks of 6 layers
    np.testing.assert_allclose(cuda.encode(sentences), cpu.encode(sentences), atol=2e-6, rtol=0)
    cpu.close()
    cuda.close()
