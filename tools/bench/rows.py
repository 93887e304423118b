"""The rows of the comparison: which sides run, on which models, and what halfbyte must reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peer_models as models

Options = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Entrant:
    """One side of a row. `options` makes its model where it isn't there, and returns what the side is started with."""

    label: str  # as the table calls it
    side: str  # as side.py calls it
    options: Options
    quality: str = ""  # a key of quality.py: what its numbers are held against; "": not looked at


@dataclass(frozen=True)
class Target:
    """`ours` must run at `ratio` times the speed of `theirs` (a label; "best": the quickest peer; "base": our own)."""

    ours: str
    theirs: str
    ratio: float


@dataclass(frozen=True)
class Limit:
    """What `ours` must reach by itself: at most so many "seconds" or "peak MB", at least that share "of readable"."""

    ours: str
    what: str
    value: float


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a task that all its sides do in turn."""

    key: str
    title: str
    task: str  # decode, prefill, encode, open
    unit: str  # tokens/s, ms or s
    threads: int
    request: Callable[[], dict[str, Any]]
    work: int  # tokens that the seconds of one request are for
    entrants: tuple[Entrant, ...]
    targets: tuple[Target, ...] = ()
    limits: tuple[Limit, ...] = ()
    together: bool = True  # all sides stay loaded; else each is loaded anew in every round
    warm: int = 1  # requests before those that count


def _ours(label: str, precision: str, path: Options | Callable[[], str], quality: str = "", **more: Any) -> Entrant:
    def options() -> dict[str, Any]:
        given = {key: value() if callable(value) else value for key, value in more.items()}
        return {"path": path(), "precision": precision, **given}

    return Entrant(label, "halfbyte", options, quality)


def _peer(label: str, side: str, path: Callable[[], str], quality: str = "", **more: Any) -> Entrant:
    def options() -> dict[str, Any]:
        return {"path": path(), **{key: value() if callable(value) else value for key, value in more.items()}}

    return Entrant(label, side, options, quality)


HIGH, FAST = "halfbyte high", "halfbyte fast"
LLAMA, BNB, TORCH = "llama.cpp Q4_0", "bitsandbytes NF4", "torch bf16"
STEPS, BATCH_STEPS = 32, 16


def _decode(shape: str, sequences: int = 1, steps: int = STEPS) -> Callable[[], dict[str, Any]]:
    return lambda: {"task": "decode", "prompts": models.spread(shape, sequences, 16).tolist(), "steps": steps}


def _prefill(shape: str) -> Callable[[], dict[str, Any]]:
    return lambda: {"task": "prefill", "tokens": models.spread(shape, 1, 512)[0].tolist()}


def _encode(shape: str, sentences: int, tokens: int, repeats: int = 1) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "task": "encode",
        "tokens": models.sentence_tokens(shape, sentences, tokens).tolist(),
        "repeats": repeats,
    }


def _made(shape: str, output: str) -> Callable[[], str]:
    return lambda: models.made(shape, output)


def _gguf(shape: str) -> Callable[[], str]:
    return lambda: models.random_gguf(shape)


def _bitsandbytes(quality: str = "") -> Entrant:
    # transformers saves the output layer in 16 bits beside the 4-bit layers.
    return _peer(BNB, "torch", _made("llama-1b", "bf16"), quality)


def _torch_1b() -> Entrant:
    return _peer(TORCH, "torch", lambda: models.float_folder_bf16("llama-1b"))


def _decode_1b(threads: int) -> Row:
    int8 = "halfbyte high, int8 output layer"
    return Row(
        f"decode-1b-{threads}t",
        f"decode, Llama-3.2-1B shape, {threads} thread{'s' if threads > 1 else ''}",
        "decode",
        "tokens/s",
        threads,
        _decode("llama-1b"),
        STEPS,
        (
            _ours(HIGH, "high", _made("llama-1b", "nf4")),
            _ours(FAST, "fast", _made("llama-1b", "nf4")),
            _ours(int8, "high", _made("llama-1b", "bf16"), output_layer="int8"),
            _peer(LLAMA, "llama.cpp", _gguf("llama-1b")),
            *((_bitsandbytes(),) if threads > 1 else ()),
        ),
        (Target(HIGH, LLAMA, 1.25), Target(int8, LLAMA, 1.1)),
        (Limit(HIGH, "of readable", 0.88),),
    )


_SMOLLM2_NF4 = {"quantize": "nf4", "output_layer": "nf4"}
_Q4_1 = "llama.cpp Q4_1"
_HIGH_Q4_1, _FAST_Q4_1 = "halfbyte high, Q4_1 file", "halfbyte fast, Q4_1 file"


def _smollm2(key: str, title: str, task: str, request: Callable[[], dict[str, Any]], work: int, target: Any) -> Row:
    return Row(
        f"{key}-smollm2",
        f"{title}, SmolLM2-135M",
        task,
        "tokens/s",
        2,
        request,
        work,
        (
            _ours(HIGH, "high", models.smollm2, "nf4", **_SMOLLM2_NF4),
            _ours(FAST, "fast", models.smollm2, "nf4", **_SMOLLM2_NF4),
            _ours(_HIGH_Q4_1, "high", models.smollm2, "q4_1"),
            _ours(_FAST_Q4_1, "fast", models.smollm2, "q4_1"),
            _peer(LLAMA, "llama.cpp", models.smollm2_q4_0, "q4_0"),
            _peer(_Q4_1, "llama.cpp", models.smollm2, "q4_1"),
            _peer(TORCH, "torch", lambda: models.smollm2_folder("q4_1"), "q4_1", dtype="bfloat16"),
        ),
        target,
    )


def _encoder(key: str, title: str, shape: str, sentences: int, tokens: int, repeats: int, targets: Any) -> Row:
    def exported(kind: str) -> Callable[[], str]:
        return lambda: models.onnx_encoder(shape, kind, tokens)

    def float_path() -> str:
        return models.encoder(shape)

    return Row(
        key,
        title,
        "encode",
        "ms",
        2,
        _encode(shape, sentences, tokens, repeats),
        sentences * tokens,
        (
            _ours("halfbyte high, float32 weights", "high", float_path, shape),
            _ours("halfbyte high, int8 weights", "high", float_path, shape, quantize="int8"),
            _ours("halfbyte fast, int8 weights", "fast", float_path, shape, quantize="int8"),
            _ours("halfbyte high, NF4 weights", "high", float_path, shape, quantize="nf4"),
            _peer("OpenVINO int8", "openvino", exported("nncf"), shape, sentences=sentences),
            _peer("OpenVINO bf16", "openvino", exported("float32"), shape, sentences=sentences),
            _peer("ONNX Runtime int8", "onnxruntime", exported("int8"), shape),
            _peer("ONNX Runtime float32", "onnxruntime", exported("float32"), shape),
            _peer("CTranslate2 int8", "ctranslate2", lambda: models.ctranslate2_encoder(shape), shape),
            _peer(TORCH, "torch", float_path, shape, encoder=True),
        ),
        targets,
    )


def _encoder_targets(high: float, fast: float) -> tuple[Target, ...]:
    return (
        Target("halfbyte high, float32 weights", "OpenVINO bf16", high),
        Target("halfbyte high, int8 weights", "OpenVINO bf16", high),
        Target("halfbyte fast, int8 weights", "OpenVINO int8", fast),
    )


_BASE, _ADAPTED, _IDLE, _MIXED = (f"halfbyte high, {words}" for words in ("no adapter", "r=16", "64 idle", "8 x r=16"))


def _lora(task: str, request: Callable[[], dict[str, Any]], work: int) -> Row:
    """One adapter; where tokens are decoded one by one, also 64 that are loaded and that nobody names."""
    path = _made("llama-1b", "nf4")
    gguf_adapter = {"adapter": lambda: models.gguf_adapter("llama-1b")}
    idle = (_ours(_IDLE, "high", path, idle=lambda: 8 * models.peft_adapters(path(), 8)),) if task == "decode" else ()
    return Row(
        f"lora-{task}",
        f"LoRA r=16 on all linear layers, {task}, Llama-3.2-1B shape",
        task,
        "tokens/s",
        2,
        request,
        work,
        (
            _ours(_ADAPTED, "high", path, adapters=lambda: models.peft_adapters(path())),
            *idle,
            _ours(_BASE, "high", path),
            _peer("llama.cpp Q4_0, r=16", "llama.cpp", _gguf("llama-1b"), **gguf_adapter),
            _peer(LLAMA, "llama.cpp", _gguf("llama-1b")),
            _peer("bitsandbytes NF4 + PEFT, r=16", "torch", _made("llama-1b", "bf16"), rank=16),
            _bitsandbytes(),
        ),
        # Nothing at all is what idle ones should cost; two measurements of the same are a hundredth apart.
        (Target(_ADAPTED, _BASE, 0.92), *((Target(_IDLE, _BASE, 0.99),) if idle else ())),
    )


def _lora_batch() -> Row:
    """Eight sequences with an adapter each. llama.cpp has one for all of a context."""
    path = _made("llama-1b", "nf4")
    return Row(
        "lora-batch",
        "8 sequences decoding, each with its own LoRA r=16, Llama-3.2-1B shape",
        "decode",
        "tokens/s",
        2,
        _decode("llama-1b", 8, BATCH_STEPS),
        8 * BATCH_STEPS,
        (
            _ours(_MIXED, "high", path, adapters=lambda: models.peft_adapters(path(), 8)),
            _ours(_BASE, "high", path),
            _peer(
                "llama.cpp Q4_0, one r=16",
                "llama.cpp",
                _gguf("llama-1b"),
                adapter=lambda: models.gguf_adapter("llama-1b"),
            ),
            _peer(LLAMA, "llama.cpp", _gguf("llama-1b")),
            _peer("bitsandbytes NF4 + PEFT, 8 x r=16", "torch", _made("llama-1b", "bf16"), rank=16, adapters=8),
            _bitsandbytes(),
        ),
        (Target(_MIXED, _BASE, 0.8),),
    )


def all_rows() -> list[Row]:
    """In the order of the table."""
    open_sides = (
        _ours(HIGH, "high", lambda: models.converted("llama-1b", "nf4")),
        _peer(LLAMA, "llama.cpp", _gguf("llama-1b")),
        _bitsandbytes(),
    )
    return [
        _decode_1b(2),
        _decode_1b(1),
        Row(
            "decode-8b",
            "decode, Llama-3-8B shape, 2 threads",
            "decode",
            "tokens/s",
            2,
            _decode("llama-8b", steps=8),
            8,
            (
                _ours(HIGH, "high", _made("llama-8b", "nf4")),
                _peer(LLAMA, "llama.cpp", _gguf("llama-8b")),
            ),
            (Target(HIGH, LLAMA, 1.05),),
        ),
        _smollm2(
            "decode",
            "decode",
            "decode",
            _decode("smollm2", steps=64),
            64,
            (Target(HIGH, LLAMA, 2.0), Target(_HIGH_Q4_1, _Q4_1, 2.0)),
        ),
        Row(
            "prefill-1b",
            "prefill 512, Llama-3.2-1B shape",
            "prefill",
            "tokens/s",
            2,
            _prefill("llama-1b"),
            512,
            (
                _ours(HIGH, "high", _made("llama-1b", "nf4")),
                _ours(FAST, "fast", _made("llama-1b", "nf4")),
                _peer(LLAMA, "llama.cpp", _gguf("llama-1b")),
                _bitsandbytes(),
                _torch_1b(),
            ),
            (Target(HIGH, "best", 1.3), Target(FAST, "best", 2.2)),
        ),
        _smollm2(
            "prefill",
            "prefill 512",
            "prefill",
            _prefill("smollm2"),
            512,
            (Target(HIGH, LLAMA, 1.5), Target(_HIGH_Q4_1, _Q4_1, 4.0)),
        ),
        Row(
            "batch-1b",
            "16 sequences decoding, Llama-3.2-1B shape",
            "decode",
            "tokens/s",
            2,
            _decode("llama-1b", 16, BATCH_STEPS),
            16 * BATCH_STEPS,
            (
                _ours(HIGH, "high", _made("llama-1b", "nf4")),
                _ours(FAST, "fast", _made("llama-1b", "nf4")),
                _peer(LLAMA, "llama.cpp", _gguf("llama-1b")),
            ),
            (Target(HIGH, LLAMA, 1.4), Target(FAST, LLAMA, 2.0)),
        ),
        Row(
            "open-1b",
            "open the model and read one token, Llama-3.2-1B shape",
            "open",
            "s",
            2,
            lambda: {"task": "decode", "prompts": [[1]], "steps": 1},
            1,
            open_sides,
            # The cache of one sequence of a few tokens is well below a megabyte.
            limits=(Limit(HIGH, "seconds", 0.3), Limit(HIGH, "peak MB", 800.0)),
            together=False,
        ),
        _encoder(
            "minilm-32x128", "MiniLM-L6, 32 sentences x 128 tokens", "minilm", 32, 128, 1, _encoder_targets(1.05, 1.05)
        ),
        _encoder("bert-32x128", "BERT-base shape, 32 x 128", "bert-base", 32, 128, 1, _encoder_targets(1.1, 1.0)),
        _encoder("minilm-1x32", "MiniLM-L6, 1 sentence x 32 tokens", "minilm", 1, 32, 100, _encoder_targets(1.2, 1.1)),
        _lora("decode", _decode("llama-1b"), STEPS),
        _lora("prefill", _prefill("llama-1b"), 512),
        _lora_batch(),
    ]
