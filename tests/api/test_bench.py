"""``halfbyte bench``: what the rows say, not how fast they are."""

import json
from dataclasses import asdict

import gguf
import pytest

from halfbyte import _core, bench, cli, errors
from halfbyte.demo import demo_model

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
    assert rows[0].fraction == rows[0].gb_per_s / rows[0].read_gb_per_s
    assert rows[1].fraction == rows[1].gflops / rows[1].peak_gflops


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


@pytest.mark.parametrize("probe", [_core.read_bandwidth, _core.peak_gflops])
def test_the_probes(probe):
    assert probe(threads=2, seconds=0.01) > 0
    with pytest.raises(errors.InvalidArgumentError, match="threads must be in"):
        probe(threads=-1)
    with pytest.raises(errors.InvalidArgumentError, match="seconds must be"):
        probe(seconds=float("nan"))
