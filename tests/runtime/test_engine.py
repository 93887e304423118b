"""Engine: batches, errors, threads. The oracle is transformers."""

import json
import signal
import sys
import threading

import numpy as np
import pytest
import torch
import transformers
from engines import POSITIONS, VOCAB, finish, lengths, load, random_tokens, start

from halfbyte import _core

# --- batches -------------------------------------------------------------------------------------------------------


def test_logits_of_packed_sequences_equal_those_alone(engine, llama):
    sizes = [3, 0, 17, 1, 0, 40]
    tokens = random_tokens(sum(sizes))
    found = engine.logits(tokens, lengths(*sizes), None)
    assert found.shape == (sum(sizes), VOCAB)
    assert found.dtype == np.float32
    begin = 0
    for size in sizes:
        if size:
            part = tokens[begin : begin + size]
            with torch.inference_mode():
                in_float64 = llama[1].double()(torch.from_numpy(part.astype(np.int64))[None]).logits[0].numpy()
                in_float32 = llama[1].float()(torch.from_numpy(part.astype(np.int64))[None]).logits[0].numpy()
            # No worse than twice the error of the reference in the same precision.
            error = np.abs(in_float32 - in_float64).max()
            assert np.abs(found[begin : begin + size] - in_float64).max() <= 2 * error
        begin += size


def test_more_logits_than_leave_the_device_at_once(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300_000,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    tokens = random_tokens(60, vocab=300_000)
    with torch.inference_mode():
        expected = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    found = load(tmp_path).logits(tokens, lengths(60), None)
    # Sums of 16 products of float32 numbers, in two orders.
    np.testing.assert_allclose(found, expected, rtol=0, atol=64 * 2**-24 * float(np.abs(expected).max()))


def test_many_sequences_run_in_several_chunks(encoder):
    sizes = np.random.default_rng(0).integers(1, 41, 300)  # about 6000 tokens
    tokens = random_tokens(int(sizes.sum()), vocab=61)
    hidden = encoder.hidden_states(tokens, sizes.astype(np.int64), None, None, None)
    pooled = encoder.embed(tokens, sizes.astype(np.int64), None, "mean", False, None)
    begin = np.concatenate([[0], np.cumsum(sizes)])
    for s in (0, 1, 99, 100, 101, 299):
        part = tokens[begin[s] : begin[s + 1]]
        alone = encoder.hidden_states(part, lengths(len(part)), None, None, None)
        # The same float32 arithmetic but for the order of sums, on values near 1.
        np.testing.assert_allclose(hidden[begin[s] : begin[s + 1]], alone, atol=1e-5)
    for s in range(300):
        expected = hidden[begin[s] : begin[s + 1]].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(pooled[s], expected, atol=40 * 2**-24 * 4)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "last"])
def test_pooling(encoder, pooling, normalize):
    sizes = [5, 1, 9]
    tokens = random_tokens(15, vocab=61)
    hidden = encoder.hidden_states(tokens, lengths(*sizes), None, None, None).astype(np.float64)
    found = encoder.embed(tokens, lengths(*sizes), None, pooling, normalize, None)
    parts = np.split(hidden, np.cumsum(sizes)[:-1])
    pool = {"mean": lambda x: x.mean(0), "cls": lambda x: x[0], "max": lambda x: x.max(0), "last": lambda x: x[-1]}
    expected = np.stack([pool[pooling](part) for part in parts])
    if normalize:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=16 * 2**-24 * float(np.abs(expected).max()))


def test_positions_and_token_types_reach_the_network(encoder, bert):
    tokens = random_tokens(12, vocab=61)
    positions = np.arange(20, 32, dtype=np.int32)
    types = np.array([0] * 5 + [1] * 7, np.int32)
    found = encoder.hidden_states(tokens, lengths(12), positions, types, None)
    ids, places, kinds = (torch.from_numpy(a.astype(np.int64))[None] for a in (tokens, positions, types))
    with torch.inference_mode():
        expected = bert[1](ids, position_ids=places, token_type_ids=kinds).last_hidden_state[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain = encoder.hidden_states(tokens, lengths(12), None, None, None)
    assert np.abs(plain - found).max() > 0.1


def test_nothing_in_nothing_out(engine, encoder):
    none = np.zeros(0, np.int32)
    assert engine.logits(none, lengths(), None).shape == (0, VOCAB)
    assert engine.logits(none, lengths(0, 0), None).shape == (0, VOCAB)
    assert encoder.hidden_states(none, lengths(), None, None, None).shape == (0, 32)
    assert encoder.embed(none, lengths(), None, "mean", True, None).shape == (0, 32)


def test_info(engine, llama):
    info = engine.info()
    assert info["path"] == str(llama[0])
    assert (info["architecture"], info["format"], info["precision"]) == ("llama", "safetensors", "float32")
    assert (info["causal"], info["has_logits"]) == (True, True)
    assert (info["vocab_size"], info["hidden_size"], info["layers"]) == (VOCAB, 48, 2)
    assert (info["heads"], info["kv_heads"], info["head_dim"], info["max_positions"]) == (3, 1, 16, POSITIONS)
    assert info["load_seconds"] > 0
    assert {"name", "storage", "rows", "cols", "bytes"} <= set(info["weights"][0])
    assert sum(w["rows"] * w["cols"] for w in info["weights"] if "q_proj" in w["name"]) == 2 * 48 * 48
    assert ("model.layers.1.mlp.down_proj", 80, 48) in engine.modules()
    assert engine.adapter_names() == []


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "options", "text"),
    [
        ([], {}, "the prompt is empty"),
        ([VOCAB], {}, "token 0 of the prompt: expected an id from 0 to 96 .*, found 97"),
        ([1, -1], {}, "token 1 of the prompt: .*found -1"),
        ([1] * (POSITIONS + 1), {}, "1201 tokens, more than the 1200 positions"),
        ([1], {"max_tokens": 0}, "max_tokens must be 1 or more, found 0"),
        ([1], {"max_tokens": -5}, "max_tokens"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"stop": [""]}, "stop string 0 is empty"),
    ],
)
def test_wrong_generations_are_refused(engine, prompt, options, text):
    with pytest.raises(_core.InvalidArgumentError, match=text):
        start(engine, prompt, **options)


def test_an_encoder_generates_nothing(encoder):
    with pytest.raises(_core.UnsupportedError, match="bert is an encoder"):
        start(encoder, [1])
    with pytest.raises(_core.InvalidArgumentError, match="no output layer"):
        encoder.logits(np.array([1], np.int32), lengths(1), None)


@pytest.mark.parametrize(
    ("tokens", "sizes", "text"),
    [
        ([1, 2, VOCAB], [1, 2], "token 1 of sequence 1: expected an id from 0 to 96"),
        ([1, -7], [2], "found -7"),
        ([1, 2, 3], [2], "sum to the 3 tokens given, found a sum of 2"),
        ([1, 2, 3], [2, 2], "sequence 1 is said to have 2 tokens, and 1 of 3 are left"),
        ([1], [-1], "sequence 0 is said to have -1"),
        ([1] * (POSITIONS + 1), [POSITIONS + 1], "1201 tokens, more than the 1200 positions"),
    ],
)
def test_wrong_batches_are_refused(engine, tokens, sizes, text):
    with pytest.raises(_core.InvalidArgumentError, match=text):
        engine.logits(np.array(tokens, np.int32), np.array(sizes, np.int64), None)


def test_wrong_positions_types_and_pooling_are_refused(engine, encoder):
    one, size = np.array([1], np.int32), lengths(1)

    def array(*values: int) -> np.ndarray:
        return np.array(values, np.int32)

    with pytest.raises(_core.InvalidArgumentError, match="position from 0 to 39, found 40"):
        encoder.hidden_states(one, size, array(40), None, None)
    with pytest.raises(_core.InvalidArgumentError, match="positions: expected one for each of 1 tokens, found 2"):
        encoder.hidden_states(one, size, array(0, 1), None, None)
    with pytest.raises(_core.InvalidArgumentError, match="token type from 0 to 1, found 2"):
        encoder.hidden_states(one, size, None, array(2), None)
    with pytest.raises(_core.InvalidArgumentError, match="has token type 1; this model takes none"):
        engine.hidden_states(one, size, None, array(1), None)
    assert engine.hidden_states(one, size, None, array(0), None).shape == (1, 48)
    with pytest.raises(_core.InvalidArgumentError, match='"mean", "cls", "max" or "last", found "median"'):
        encoder.embed(one, size, None, "median", True, None)
    with pytest.raises(_core.InvalidArgumentError, match="sequence 1 is empty"):
        encoder.embed(one, lengths(1, 0), None, "mean", True, None)
    with pytest.raises(_core.NotFoundError, match='no adapter "sql"; loaded: none'):
        engine.logits(one, size, [[("sql", 1.0)]])
    with pytest.raises(_core.NotFoundError, match='no adapter "sql"'):
        engine.unload_adapter("sql")


def test_arrays_are_never_converted_in_silence(engine):
    for wrong in (np.array([2**32 + 1]), np.array([1.5]), np.array([1.5], np.float32)):
        with pytest.raises(TypeError):
            engine.logits(wrong, lengths(1), None)
    with pytest.raises(_core.InvalidArgumentError, match="tokens: expected one dimension, found 2"):
        engine.logits(np.zeros((1, 1), np.int32), lengths(1), None)


def test_wrong_load_options_are_refused(llama):
    for device, threads, precision, quantize, text in [
        ("cuda:7", 1, "high", "", "cuda"),
        ("abacus", 1, "high", "", "abacus"),
        ("cpu", -1, "high", "", "threads.*-1"),
        ("cpu", 1, "low", "", '"high", "fast" or "float32", found "low"'),
        ("cpu", 1, "high", "nf9", "nf9"),
    ]:
        with pytest.raises((_core.InvalidArgumentError, _core.NotFoundError), match=text):
            _core.Engine.load(str(llama[0]), device, threads, precision, quantize, None)


def test_weights_that_are_not_numbers_give_no_token(llama, tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig.from_pretrained(llama[0])
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[11, 3] = float("nan")
    model.save_pretrained(tmp_path)
    generation = start(load(tmp_path), [1, 2])
    for _ in range(2):
        with pytest.raises(_core.CorruptFileError, match=r"logit of token 11 is -?nan"):
            generation.step()
        assert generation.tokens == []


# --- Python's side -------------------------------------------------------------------------------------------------


def test_progress_grows_to_one(llama):
    seen: list[float] = []
    _core.Engine.load(str(llama[0]), "cpu", 1, "high", "", seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 3


def test_what_the_progress_callback_raises_is_raised(llama):
    def stop(done: float) -> None:
        raise ZeroDivisionError(f"at {done}")

    with pytest.raises(ZeroDivisionError, match="at "):
        _core.Engine.load(str(llama[0]), "cpu", 1, "high", "", stop)


def test_ctrl_c_stops_loading(llama):
    with pytest.raises(KeyboardInterrupt):
        _core.Engine.load(str(llama[0]), "cpu", 1, "high", "", lambda done: signal.raise_signal(signal.SIGINT))


def test_other_threads_run_while_it_computes(engine):
    """With a switch interval of an hour, another thread runs only where the one that has the GIL lets go of it."""
    go, ran = threading.Event(), []
    calls = {
        "logits": lambda: engine.logits(random_tokens(200), lengths(200), None),
        "hidden_states": lambda: engine.hidden_states(random_tokens(200), lengths(200), None, None, None),
        "embed": lambda: engine.embed(random_tokens(200), lengths(200), None, "mean", True, None),
        "step": start(engine, random_tokens(3).tolist(), max_tokens=1000).step,
    }
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        for name, call in calls.items():
            go.clear()
            ran.clear()
            thread = threading.Thread(target=lambda: (go.wait(), ran.append(True)))
            thread.start()
            go.set()
            for _ in range(1000):
                call()
                if ran:
                    break
            assert ran, name
            thread.join()
    finally:
        sys.setswitchinterval(interval)


def test_threads_may_share_a_generation(engine):
    expected = finish(start(engine, [4, 5, 6], max_tokens=60))
    generation = start(engine, [4, 5, 6], max_tokens=60)
    threads = [threading.Thread(target=finish, args=(generation,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert generation.tokens == expected


def test_threads_share_an_engine(engine):
    prompts = [random_tokens(5, seed=s).tolist() for s in range(4)]
    expected = [finish(start(engine, prompt, temperature=1.0, seed=3)) for prompt in prompts]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        for _ in range(5):
            found[i] = finish(start(engine, prompts[i], temperature=1.0, seed=3))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(4)] == expected


def test_a_corrupt_config_is_an_error_not_a_crash(llama, tmp_path):
    config = json.loads((llama[0] / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((llama[0] / "model.safetensors").read_bytes())
    for field, value in [("num_hidden_layers", 3), ("hidden_size", 50), ("vocab_size", 98), ("num_attention_heads", 0)]:
        (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
        with pytest.raises(_core.Error):
            load(tmp_path)
