"""Text out of models: generate, chat, generate_tokens, streams, adapters, loading."""

from __future__ import annotations

import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import halfbyte
from halfbyte.errors import CorruptFileError, Error, InvalidArgumentError, NotFoundError, UnsupportedError

PARIS = "The capital of France is"


@pytest.fixture(scope="module")
def tiny(tiny_llama: Path) -> Iterator[halfbyte.Model]:
    with halfbyte.load(tiny_llama, threads=2, precision="float32") as model:
        yield model


# ---- real weights


def test_smollm2_knows_paris(smollm2: halfbyte.Model) -> None:
    text = smollm2.generate(PARIS, max_tokens=16)
    assert text.startswith(" Paris")
    assert PARIS not in text  # the continuation alone


def test_smollm2_streams_what_it_returns(smollm2: halfbyte.Model) -> None:
    options: dict[str, Any] = {"max_tokens": 24, "temperature": 0.8, "top_p": 0.95, "top_k": 40, "seed": 7}
    whole = smollm2.generate("Once upon a time", **options)
    stream = smollm2.generate("Once upon a time", stream=True, **options)
    pieces = list(stream)
    assert "".join(pieces) == whole
    assert len(pieces) > 12
    assert len(stream.tokens) == 24
    assert stream.finish_reason == "length"
    assert smollm2.tokenizer.decode(stream.tokens) == whole
    assert smollm2.generate("Once upon a time", **{**options, "seed": 8}) != whole


def test_smollm2_chat(smollm2: halfbyte.Model) -> None:
    messages = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    answer = smollm2.chat(messages, max_tokens=24)
    assert "Paris" in answer
    assert "<|im_end|>" not in answer
    assert "".join(smollm2.chat(messages, max_tokens=24, stream=True)) == answer
    prompt = smollm2.render_chat(messages)
    assert smollm2.generate(prompt, max_tokens=24) == answer  # this tokenizer adds no tokens of its own


def test_smollm2_stops_at_strings(smollm2: halfbyte.Model) -> None:
    whole = smollm2.generate(PARIS, max_tokens=24)
    assert " Paris" in whole
    stream = smollm2.generate(PARIS, max_tokens=24, stop=["zzz", "ari"], stream=True)
    assert "".join(stream) == whole[: whole.index("ari")]
    assert stream.finish_reason == "stop"
    assert smollm2.generate(PARIS, max_tokens=24, stop="ari") == whole[: whole.index("ari")]


def test_smollm2_info(smollm2: halfbyte.Model, smollm2_path: Path) -> None:
    info = smollm2.info
    assert (info["architecture"], info["format"], info["layers"], info["vocab_size"]) == ("llama", "gguf", 30, 49152)
    assert set(info["storages"]) >= {"q4_1", "q8_0"}
    assert 5 < info["bits_per_weight"] < 7
    assert str(smollm2_path) in repr(smollm2)


# ---- prompts


@pytest.mark.parametrize("kind", ["list", "tuple", "int64", "uint16"])
def test_prompts_of_ids(tiny: halfbyte.Model, kind: str) -> None:
    ids = tiny.tokenizer.encode("The quick")
    prompts: dict[str, Any] = {
        "list": ids,
        "tuple": tuple(ids),
        "int64": np.array(ids),
        "uint16": np.array(ids, dtype=np.uint16),
    }
    assert tiny.generate(prompts[kind], max_tokens=8) == tiny.generate("The quick", max_tokens=8)


def reference_tokens(folder: Path, ids: list[int], count: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    out = model.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)
    new: list[int] = out[0, len(ids) :].tolist()
    return new[: new.index(0)] if 0 in new else new


def test_greedy_is_transformers(tiny: halfbyte.Model, tiny_llama: Path) -> None:
    ids = tiny.tokenizer.encode("The quick brown fox")
    expected = reference_tokens(tiny_llama, ids, 30)
    assert tiny.generate_tokens(ids, max_tokens=30) == expected
    assert list(tiny.generate_tokens(ids, max_tokens=30, stream=True)) == expected
    stream = tiny.generate(ids, max_tokens=30, stream=True)
    text = "".join(stream)
    assert stream.tokens == expected
    known = [i for i in expected if i < tiny.tokenizer.vocab_size]  # ids beyond the tokenizer show nothing
    assert text == b"".join(tiny.tokenizer.vocabulary_pieces()[i] for i in known).decode(errors="replace")


def test_seeds(tiny: halfbyte.Model) -> None:
    def draw(seed: int | None) -> list[int]:
        return tiny.generate_tokens([5, 6, 7], max_tokens=12, temperature=1.5, seed=seed)

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(-1) == draw(2**64 - 1)  # any integer is a seed
    assert draw(None) != draw(None)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"stop": [""]}, "stop"),
        ({"stop": [3]}, "stop"),
    ],
)
def test_options_out_of_range(tiny: halfbyte.Model, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        tiny.generate("The", **options)
    with pytest.raises(InvalidArgumentError, match=text):  # at the call, not at the first piece
        tiny.generate("The", stream=True, **options)


def test_unknown_options(tiny: halfbyte.Model) -> None:
    for call in (tiny.generate, tiny.generate_tokens):
        with pytest.raises(TypeError, match="temprature"):
            call([1], temprature=1.0)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="temprature"):
        tiny.chat([{"role": "user", "content": "x"}], temprature=1.0)  # type: ignore[call-overload]


@pytest.mark.parametrize("prompt", ["", [], [-1], [2**31], [10**6], [1.5], [[1, 2]], np.array(3)])
def test_prompts_that_are_refused(tiny: halfbyte.Model, prompt: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        tiny.generate(prompt, max_tokens=2)


def test_prompts_longer_than_the_context(tiny: halfbyte.Model) -> None:
    with pytest.raises(InvalidArgumentError, match="128"):
        tiny.generate([5] * 129, max_tokens=1)
    stream = tiny.generate([5] * 120, max_tokens=100, stream=True)
    for _ in stream:
        pass
    assert stream.finish_reason in {"length", "stop"}
    assert len(stream.tokens) <= 9


# ---- streams


def test_a_stream_can_be_left(tiny: halfbyte.Model) -> None:
    stream = tiny.generate("The quick", max_tokens=100, stream=True)
    next(stream)
    stream.close()
    seen = stream.tokens
    assert 1 <= len(seen) < 100
    assert stream.finish_reason == ""
    assert list(stream) == []
    assert stream.tokens == seen
    with tiny.generate("The quick", max_tokens=100, stream=True) as second:
        next(second)
    assert list(second) == []


def test_a_dropped_stream_frees_its_work(tiny: halfbyte.Model) -> None:
    stream = tiny.generate("The quick", max_tokens=100, stream=True)
    next(stream)
    generation = stream._generation
    assert generation is not None
    dead = weakref.ref(generation)
    del generation, stream
    gc.collect()
    assert dead() is None


def test_an_interrupt_ends_the_work(smollm2: halfbyte.Model) -> None:
    def interrupt() -> None:
        time.sleep(0.3)
        signal.raise_signal(signal.SIGINT)

    # temperature > 0, so that the answer can't end at once
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        smollm2.generate("Count: 1 2 3 4 5 6 7 8 9 10", max_tokens=8000, temperature=1.0, seed=1)
        thread.join()  # the interrupt lands here at the latest
    assert smollm2.generate(PARIS, max_tokens=4).startswith(" Paris")


def test_threads_may_share_a_model(tiny: halfbyte.Model) -> None:
    expected = [tiny.generate([5 + i, 9], max_tokens=20) for i in range(6)]
    found: dict[int, str] = {}

    def work(i: int) -> None:
        found[i] = tiny.generate([5 + i, 9], max_tokens=20)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(6)] == expected


# ---- chat


def test_chat_writes_no_tokens_twice(tiny: halfbyte.Model) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    assert tiny.render_chat(messages) == "<|start|>user\nHello<|end|>\n<|start|>assistant\n"
    ids = tiny.tokenizer.encode(tiny.render_chat(messages), add_special_tokens=False)
    assert tiny.chat(messages, max_tokens=9) == tiny.generate(ids, max_tokens=9)


# ---- adapters


@pytest.fixture(scope="module")
def lora(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = LoraConfig(r=3, lora_alpha=60, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder)
    return folder


def test_adapters(tiny_llama: Path, lora: Path) -> None:
    with halfbyte.load(tiny_llama) as model:
        plain = model.logits([[5, 6, 7]])
        model.load_adapter(lora, name="sql")
        model.load_adapter(str(lora))
        assert sorted(model.adapters) == ["default", "sql"]
        adapted = model.logits([[5, 6, 7]], adapter="sql")
        assert np.abs(adapted - plain).max() > 0.01
        np.testing.assert_array_equal(model.logits([[5, 6, 7]]), plain)
        assert model.generate([5, 6], max_tokens=20, adapter="sql") != model.generate([5, 6], max_tokens=20)
        stream = model.generate([5, 6], max_tokens=20, adapter="sql", stream=True)
        model.unload_adapter("sql")
        assert "".join(stream) == model.generate([5, 6], max_tokens=20, adapter="default")
        with pytest.raises(NotFoundError, match=r"sql.*default"):
            model.logits([[1]], adapter="sql")
        with pytest.raises(NotFoundError, match="sql"):
            model.unload_adapter("sql")
        with pytest.raises(NotFoundError):
            model.load_adapter(lora / "nowhere")


# ---- loading


def test_loading_reports_progress(tiny_llama: Path) -> None:
    seen: list[float] = []
    halfbyte.load(tiny_llama, progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    class EnoughError(Exception):
        pass

    def stop(_: float) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        halfbyte.load(tiny_llama, progress=stop)


def test_quantize_while_loading(tiny_llama: Path) -> None:
    with halfbyte.load(tiny_llama, quantize="nf4") as model:
        assert "nf4" in model.info["storages"]
        assert isinstance(model.generate([5], max_tokens=3), str)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"device": "cuda:7"}, Error, "cuda"),
        ({"device": "abacus"}, Error, "abacus"),
        ({"precision": "lowest"}, InvalidArgumentError, "lowest"),
        ({"quantize": "nf5"}, InvalidArgumentError, "nf5"),
        ({"threads": 0}, InvalidArgumentError, "threads"),
        ({"threads": 1.5}, InvalidArgumentError, "threads"),
    ],
)
def test_loading_errors(tiny_llama: Path, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        halfbyte.load(tiny_llama, **options)


def test_paths_that_are_not_models(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file or folder"):
        halfbyte.load(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match="hf download org/name"):
        halfbyte.load("org/name")
    with pytest.raises(Error, match=str(tmp_path)):
        halfbyte.load(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(CorruptFileError, match=r"x\.gguf"):
        halfbyte.load(tmp_path / "x.gguf")


def test_a_closed_model(tiny_llama: Path) -> None:
    with halfbyte.load(tiny_llama) as model:
        stream = model.generate([5], max_tokens=5, stream=True)
    assert "closed" in repr(model)
    assert len("".join(stream)) > 0  # what runs goes on
    with pytest.raises(InvalidArgumentError, match="closed"):
        model.generate([5], max_tokens=1)
    model.close()


def test_without_a_tokenizer(tiny_llama: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / name).write_bytes((tiny_llama / name).read_bytes())
    with halfbyte.load(tmp_path) as model:
        assert len(model.generate_tokens([5, 6], max_tokens=4)) <= 4
        assert model.logits([[5, 6]]).shape[:2] == (1, 2)
        for call in (lambda: model.generate("text"), lambda: model.generate([5]), lambda: model.encode(["a"])):
            with pytest.raises(NotFoundError, match=r"tokenizer\.json"):
                call()


def test_a_gguf_with_an_unknown_tokenizer(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise UnsupportedError("martian")

    with halfbyte.load(smollm2_path) as model:
        ids = model.tokenizer.encode(model.render_chat([{"role": "user", "content": "Say hi."}]))
        expected = model.generate_tokens(ids, max_tokens=40)
        assert len(expected) < 40  # it ended by its end-of-sequence token
    monkeypatch.setattr("halfbyte.model.load_gguf_tokenizer", refuse)
    with halfbyte.load(smollm2_path) as model:
        assert model.generate_tokens(ids, max_tokens=40) == expected
        with pytest.raises(UnsupportedError, match="martian"):
            model.generate(ids)


def test_a_single_safetensors_file(tiny_llama: Path) -> None:
    with halfbyte.load(tiny_llama / "model.safetensors") as one, halfbyte.load(tiny_llama) as folder:
        assert one.generate("The", max_tokens=5) == folder.generate("The", max_tokens=5)


def test_an_encoder_writes_no_text(tiny_bert: Path) -> None:
    with halfbyte.load(tiny_bert) as model, pytest.raises(UnsupportedError, match="encoder"):
        model.generate_tokens([1, 2])
