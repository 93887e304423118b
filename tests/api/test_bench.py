"""``halfbyte bench``: what the rows say, not how fast they are."""

import hashlib
import json
from dataclasses import asdict, replace

import bitsandbytes
import gguf
import numpy as np
import peft
import pytest
import torch
import transformers

import halfbyte
from halfbyte import _core, bench, bench_models, cli, errors, ops
from halfbyte.bench_machine import Roofs
from halfbyte.demo import demo_model
from oracle import reference

SMALL = {"prompt_tokens": 5, "decode_tokens": 3, "repeats": 1}


@pytest.fixture(scope="module")
def rows():
    return list(bench.measure(str(demo_model()), threads=[1], **SMALL))


def test_a_decoder_has_two_rows(rows):
    assert [(row.task, row.threads, row.batch, row.decode_tokens) for row in rows] == [
        ("decode", 1, 1, 3),
        ("prefill", 1, 1, 0),
    ]
    for row in rows:
        assert (row.architecture, row.format, row.storages) == ("llama", "gguf", "q4_1, q8_0")
        assert min(row.tokens_per_s, row.gb_per_s, row.read_gb_per_s, row.gflops, row.peak_gflops, row.rss_mb) > 0
        assert row.isa == _core.isa()
        assert row.gb_per_s == pytest.approx(row.tokens_per_s * row.bytes_per_token * 1e-9)
        of_memory, of_arithmetic = row.gb_per_s / row.read_gb_per_s, row.gflops / row.peak_gflops
        assert row.fraction == max(of_memory, of_arithmetic)
        assert row.roof == ("memory" if of_memory > of_arithmetic else "arithmetic")
        assert row.peak_rss_mb >= row.rss_mb


def test_bytes_and_operations_are_those_of_the_file(rows):
    matrices = [t for t in gguf.GGUFReader(demo_model()).tensors if len(t.shape) == 2]
    weights = sum(int(t.n_bytes) for t in matrices)  # the embedding is tied: read once, as the output layer
    cache = 2 * 2 * 30 * 3 * 64  # keys and values, 2 bytes, 30 layers, 3 heads of 64
    decode, prefill = rows
    # Tokens 6, 7 and 8 of the sequence are timed: the middle one attends to 7.
    assert decode.bytes_per_token == weights + 7 * cache
    assert prefill.bytes_per_token == weights / 5 + cache
    assert decode.bits_per_weight == pytest.approx(8 * weights / sum(int(t.n_elements) for t in matrices))
    flops = 2 * sum(int(t.n_elements) for t in matrices) + 4 * 30 * 9 * 64 * 7
    assert decode.gflops == pytest.approx(decode.tokens_per_s * flops * 1e-9)
    output = 49152 * 576  # for the last of the five tokens alone
    flops = 2 * (sum(int(t.n_elements) for t in matrices) - output * 4 / 5) + 4 * 30 * 9 * 64 * 3
    assert prefill.gflops == pytest.approx(prefill.tokens_per_s * flops * 1e-9)


def test_json_lines_and_table(capsys):
    arguments = ["bench", str(demo_model()), "--task", "prefill", "--threads", "1,2", "--prompt-tokens", "4"]
    assert cli.main([*arguments, "--repeats", "1", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["threads"] for line in lines] == [1, 2]
    assert cli.main([*arguments, "--repeats", "1"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5
    assert table[3].split()[:2] == ["prefill", "1"]
    assert set(lines[0]) == set(asdict(next(bench.measure(str(demo_model()), task="prefill", threads=[1], **SMALL))))


def test_what_a_model_cannot_do_is_an_error():
    with pytest.raises(errors.InvalidArgumentError, match=r"needs 100003 positions and the model has \d+: lower"):
        next(bench.measure(str(demo_model()), threads=[1], prompt_tokens=100000, decode_tokens=3))


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--threads", "1,x"], ["--repeats", "-1"], ["--task", "x"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["bench", *arguments])
    assert exit_.value.code == 2
    assert arguments[0] in capsys.readouterr().err


# --- the roofs ---


def test_the_roof_is_that_of_the_arithmetic_a_precision_allows():
    roofs = Roofs(read_gb_per_s=10.0, float32=100.0, bfloat16=0.0, int16=200.0, int8=400.0)
    assert [roofs.binding(precision) for precision in ("high", "fast", "float32")] == [
        ("int16", 200.0),
        ("int8", 400.0),
        ("float32", 100.0),
    ]
    # A processor without integer products of its own: nobody would multiply integers there.
    slow = replace(roofs, int16=50.0, int8=60.0)
    assert [slow.binding(precision)[0] for precision in ("high", "fast")] == ["float32", "float32"]


def test_a_row_names_its_roof(rows):
    for row in rows:
        peaks = {
            "float32": row.peak_float32_gflops,
            "int16": row.peak_int16_gflops,
            "bfloat16": row.peak_bfloat16_gflops,
            "int8": row.peak_int8_gflops,
        }
        assert row.peak_gflops == peaks[row.peak_arithmetic] > 0
        assert row.peak_arithmetic in ("int16", "float32")


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16", "int16", "int8"])
def test_every_peak(arithmetic):
    peak = _core.peak_gflops(1, 0.01, arithmetic)
    assert peak >= 0 if arithmetic == "bfloat16" else peak > 0


def test_an_unknown_arithmetic_is_an_error():
    with pytest.raises(
        errors.InvalidArgumentError, match='expected "float32", "bfloat16", "int16" or "int8", found "x"'
    ):
        _core.peak_gflops(arithmetic="x")


@pytest.mark.parametrize("probe", [_core.read_bandwidth, _core.peak_gflops])
def test_the_probes(probe):
    assert probe(threads=2, seconds=0.01) > 0
    with pytest.raises(errors.InvalidArgumentError, match="threads must be in"):
        probe(threads=-1)
    with pytest.raises(errors.InvalidArgumentError, match="seconds must be"):
        probe(seconds=float("nan"))


# --- models made for --shape ---

LLAMA = bench_models.Shape(128, 2, 4, 2, 192, 320, 64)
TIED = replace(LLAMA, tied=True)
BERT = bench_models.Shape(128, 2, 4, 0, 192, 150, 64)
IDS = np.arange(3, 15, dtype=np.int32)


def make(folder, shape, weights="nf4", output_layer="nf4", seed=1):
    folder.mkdir(parents=True)
    bench_models.write_model(folder, shape, weights=weights, output_layer=output_layer, seed=seed)
    return folder


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_same_seed_makes_the_same_model(tmp_path):
    one = make(tmp_path / "one", LLAMA)
    assert digest(make(tmp_path / "same", LLAMA)) == digest(one)
    assert digest(make(tmp_path / "other", LLAMA, seed=2)) != digest(one)
    # Nor does it depend on the machine or on a release of numpy: made on 2026-11-25.
    assert digest(one) == "6a97e8422b9486dab6aab2a69c42430d807b04f131ae0c02f164e429fe42a15b"


@pytest.mark.parametrize("shape", [LLAMA, TIED], ids=["own output layer", "tied"])
def test_transformers_and_bitsandbytes_read_a_made_model(shape, tmp_path):
    folder = make(tmp_path / "model", shape, output_layer="bf16")
    with torch.no_grad():
        as_saved = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu")
        kinds = [type(module) for module in as_saved.modules()]
        assert kinds.count(bitsandbytes.nn.Linear4bit) == 7 * shape.layers
        rounded = as_saved(torch.from_numpy(IDS)[None].long()).logits[0].float().numpy()
        expected = reference.load(folder)(torch.from_numpy(IDS)[None].long()).logits[0].numpy()
    with halfbyte.load(folder, precision="float32") as ours:
        assert ours.info["format"] == "bitsandbytes"
        found = ours.logits([IDS.tolist()])[0]
    # Both in float32: 2 layers of sums of up to 192 terms; logits are spread over several units.
    assert expected.std() > 0.5
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    # As it is loaded everything is bfloat16, which keeps 8 bits: some of 2^-8 = 4e-3 for each of a dozen layers.
    assert np.sqrt(np.mean((rounded - expected) ** 2)) < 12**0.5 * 4e-3 * expected.std()


def test_a_made_encoder_is_what_transformers_reads(tmp_path):
    folder = make(tmp_path / "model", BERT, "f32", "f32")
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS)[None].long()).last_hidden_state[0].numpy()
    with halfbyte.load(folder, precision="float32") as ours:
        found = ours.hidden_states([IDS.tolist()])[0]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("weights", bench_models.WEIGHTS)
@pytest.mark.parametrize("shape", [LLAMA, BERT], ids=["llama", "bert"])
def test_activations_of_made_models_stay_in_range(shape, weights, tmp_path):
    with halfbyte.load(make(tmp_path / "model", shape, weights, weights)) as model:
        hidden = model.hidden_states([IDS.tolist()])[0]
    assert np.isfinite(hidden).all()
    assert 0.1 < hidden.std() < 10


def test_the_shapes_are_those_of_the_networks():
    def weights(name):
        plan = bench_models.tensors(bench_models.SHAPES[name], "nf4", "nf4")
        return sum(int(np.prod(tensor.shape)) for tensor in plan)

    # As the models' own cards and files count them.
    assert weights("llama-1b") == 1_235_814_400
    assert weights("llama-8b") == 8_030_261_248
    assert weights("smollm2") == 134_515_008
    assert weights("bert-base") == 109_482_240 - 768 * 769  # without the pooler
    assert weights("minilm") == 22_713_216 - 384 * 385


def test_a_made_model_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(bench_models.SHAPES, "minilm", BERT)
    folder = bench_models.made_model("minilm")
    assert folder.parent == tmp_path / "halfbyte" / "bench"
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert bench_models.made_model("minilm") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]  # nothing half made is left


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_models, "_write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench_models.made_model("minilm", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_shapes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(bench_models.SHAPES, "llama-1b", TIED)
    monkeypatch.setitem(bench_models.SHAPES, "bert-base", BERT)


def bench_json(capsys, *arguments):
    small = ["--prompt-tokens", "5", "--decode-tokens", "3", "--repeats", "1", "--threads", "1"]
    assert cli.main(["bench", *small, "--json", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("output_layer", "storages"),
    [([], "nf4"), (["--output-layer", "bf16"], "bf16, nf4"), (["--output-layer", "int8"], "bf16, int8, nf4")],
)
def test_a_shape_is_made_and_measured(tiny_shapes, output_layer, storages, capsys):
    decode, prefill = bench_json(capsys, "--shape", "llama-1b", *output_layer)
    assert (decode["task"], prefill["task"]) == ("decode", "prefill")
    assert decode["storages"] == storages
    layers = sum(rows * cols for rows, cols in ((128, 128), (64, 128), (64, 128), (128, 128), *[(192, 128)] * 3))
    output = 320 * 128
    # 4.13 bits: half a byte, a byte of scale for 64 of them, and a float32 for 256 of those; and two tables a matrix.
    bits = {"nf4": 4.13, "bf16, nf4": 16, "bf16, int8, nf4": 8.25}[storages]
    tables = (16 + 256) * 4 * (15 if storages == "nf4" else 14)
    expected = 2 * layers * 4.13 / 8 + output * bits / 8 + tables + 7 * 2 * 2 * 2 * 64
    assert decode["bytes_per_token"] == pytest.approx(expected, rel=0.02)


def test_a_batch_shares_the_weights(tiny_shapes, capsys):
    (one,) = bench_json(capsys, "--shape", "llama-1b", "--task", "decode")
    (batch,) = bench_json(capsys, "--shape", "llama-1b", "--task", "batch", "--batch", "4")
    assert (batch["batch"], batch["prompt_tokens"], batch["decode_tokens"]) == (4, 5, 3)
    cache = 7 * 2 * 2 * 2 * 64
    assert batch["bytes_per_token"] - cache == pytest.approx((one["bytes_per_token"] - cache) / 4)
    assert batch["gflops"] / batch["tokens_per_s"] == pytest.approx(one["gflops"] / one["tokens_per_s"])
    assert bench_json(capsys, "--shape", "llama-1b", "--task", "batch")[0]["batch"] == 16
    assert bench_json(capsys, "--shape", "bert-base")[0]["batch"] == 8


def test_a_random_adapter(tiny_shapes, tmp_path, capsys):
    (plain,) = bench_json(capsys, "--shape", "llama-1b", "--task", "decode")
    (adapted,) = bench_json(capsys, "--shape", "llama-1b", "--task", "decode", "--adapter", "random:4")
    assert adapted["adapter"] == "random:4"
    factors = 2 * 4 * sum(a + b for a, b in ((128, 128), (64, 128), (64, 128), (128, 128), *[(192, 128)] * 3))
    assert adapted["bytes_per_token"] - plain["bytes_per_token"] == pytest.approx(2 * factors, rel=0.4)  # and a header
    (folder,) = (tmp_path / "halfbyte" / "bench").glob("adapter-*")
    assert bench_json(capsys, "--shape", "llama-1b", "--task", "decode", "--adapter", str(folder))

    base = bench_models.made_model("llama-1b", output_layer="bf16")
    model = peft.PeftModel.from_pretrained(reference.load(base), folder)
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS)[None].long()).logits[0].float().numpy()
    with halfbyte.load(base, precision="float32") as ours:
        without = ours.logits([IDS.tolist()])[0]
        ours.load_adapter(folder, name="a")
        found = ours.logits([IDS.tolist()], adapter="a")[0]
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-4 * scale
    assert np.abs(found - without).max() > 1e-2 * scale


def test_what_adapters_cost(tiny_shapes, capsys):
    rows = bench_json(capsys, "--shape", "llama-1b", "--adapters", "3", "--adapter", "random:4")
    assert [(row["task"], row["adapters"], row["batch"]) for row in rows] == [
        ("decode", "1", 1),
        ("prefill", "1", 1),
        ("batch", "3 different", 3),
        ("decode", "64 idle", 1),
    ]
    for row in rows:
        assert row["rank"] == 4 and min(row["tokens_per_s"], row["tokens_per_s_without"]) > 0
        assert row["cost"] == pytest.approx(1 - row["tokens_per_s"] / row["tokens_per_s_without"])
        # In memory A is padded to 16 rows; in the file there is a header.
        assert 0 < row["adapter_mb"] < 4 * row["file_mb"]
    assert cli.main(["bench", "--shape", "llama-1b", "--adapters", "1", "--adapter", "x"]) == 1


def test_the_output_layer_is_rounded_and_the_table_is_not(tmp_path):
    folder = make(tmp_path / "model", TIED, "f32", "f32")
    plain = _core.Engine.load(str(folder), "cpu", 1, "float32", "", None)
    rounded = _core.Engine.load(str(folder), "cpu", 1, "float32", "", None, "int8")
    lengths = np.array([len(IDS)], np.int64)
    hidden = plain.hidden_states(IDS, lengths, None, None, None)
    assert np.array_equal(rounded.hidden_states(IDS, lengths, None, None, None), hidden)
    table = _core.Checkpoint(str(folder)).weight("model.embed_tokens.weight").dequantize()
    expected = hidden.astype(np.float64) @ ops.quantize(table, "int8").dequantize().astype(np.float64).T
    found = rounded.logits(IDS, lengths, None)
    # float32 products of 128 terms: 128 * 2^-24 of their sizes at the very worst.
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(plain.logits(IDS, lengths, None) - expected).max() > 1e-3 * np.abs(expected).max()
    assert rounded.info()["weights"][-1] == {
        "name": "lm_head.weight",
        "storage": "int8",
        "rows": 320,
        "cols": 128,
        "bytes": 320 * (128 + 4),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "llama-1b", "path"], "name a model or a --shape, not both"),
        (["--shape", "bert-base", "--task", "batch"], "batch needs a decoder, and bert is an encoder"),
        (
            ["--shape", "llama-1b", "--task", "prefill", "--adapter", "random:0"],
            "expected a PEFT folder or random:RANK, found 'random:0'",
        ),
        (
            ["--shape", "llama-1b", "--task", "prefill", "--adapter", "random:x"],
            "expected a PEFT folder or random:RANK, found 'random:x'",
        ),
        (["--shape", "llama-1b", "--task", "batch", "--decode-tokens", "60"], "batch needs 65 positions"),
    ],
)
def test_what_cannot_be_measured_is_an_error(arguments, message, tiny_shapes, capsys):
    assert cli.main(["bench", "--prompt-tokens", "5", "--threads", "1", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_unknown_words_are_errors(tmp_path):
    with pytest.raises(errors.InvalidArgumentError, match="there is no shape 'x'; there are llama-1b, llama-8b"):
        bench_models.made_model("x", cache=tmp_path)
    with pytest.raises(errors.InvalidArgumentError, match="weights are made as nf4, bf16, f32, not as 'q4_0'"):
        bench_models.made_model("minilm", weights="q4_0", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
