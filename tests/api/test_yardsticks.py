"""The comparison of tools/bench: what it makes of measurements. No yardstick runs here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "bench"
sys.path.insert(0, str(TOOLS))

import costs  # noqa: E402
import report  # noqa: E402
import rows  # noqa: E402
from session import Session, SideError  # noqa: E402

from halfbyte.bench_models import SHAPES, tensors  # noqa: E402
from oracle import packages  # noqa: E402

ROWS = {row.key: row for row in rows.all_rows()}


def result(**changes):
    return {
        "key": "k",
        "title": "a task",
        "task": "decode",
        "unit": "tokens/s",
        "threads": 2,
        "rounds": 3,
        "work": 30,
        "passes_work": 1,
        "gflop": 60.0,
        "roofs": {"read_gb_per_s": 40.0, "float32": 100.0, "bfloat16": 0.0, "int16": 200.0, "int8": 400.0},
        "targets": [
            {"ours": "halfbyte high", "theirs": "slow", "ratio": 1.25},
            {"ours": "halfbyte high", "theirs": "best", "ratio": 1.25},
            {"ours": "halfbyte high", "theirs": "broken", "ratio": 1.25},
        ],
        "limits": [
            {"ours": "halfbyte high", "what": "of readable", "value": 0.25},
            {"ours": "halfbyte high", "what": "of readable", "value": 0.26},
            {"ours": "halfbyte high", "what": "peak MB", "value": 799.0},
            {"ours": "halfbyte high", "what": "seconds", "value": 3.0},
            {"ours": "broken", "what": "seconds", "value": 3.0},
        ],
        "sides": {
            "halfbyte high": {"seconds": [3.0, 1.0, 9.0], "bytes": 10**9, "peak_mb": 800.0, "load_s": 0.25},
            "slow": {"seconds": [6.0, 6.0, 6.0], "bytes": 0, "peak_mb": 900.0, "load_s": 1.0},
            "quick": {"seconds": [2.7, 2.7, 2.7], "bytes": 0, "peak_mb": 900.0, "load_s": 1.0},
            "broken": {"error": "no such file"},
        },
    } | changes


def test_medians_and_ratios():
    one = result()
    assert report.median_speed(one, "halfbyte high") == 10.0
    assert report.median_speed(one, "broken") is None
    assert report.best_peer(one) == "quick"
    assert report.ratio(one, "halfbyte high", "slow") == 2.0
    found = [(v["theirs"], v["ratio"], v["met"]) for v in report.verdicts(one)]
    assert found == [("slow", 2.0, True), ("quick", pytest.approx(0.9), False), ("broken", None, None)]


def test_a_ratio_that_equals_its_target_meets_it():
    one = result(targets=[{"ours": "halfbyte high", "theirs": "slow", "ratio": 2.0}])
    assert report.verdicts(one)[0]["met"] is True


def test_a_row_without_yardsticks_has_no_best():
    one = result(sides={"halfbyte high": result()["sides"]["halfbyte high"]})
    assert report.best_peer(one) is None
    assert {v["met"] for v in report.verdicts(one)} == {None}


@pytest.mark.parametrize(
    ("unit", "expected"), [("tokens/s", "10.0 tok/s"), ("ms", "3000 ms"), ("s", "3.00 s")], ids=["tok/s", "ms", "s"]
)
def test_speeds_in_the_unit_of_the_row(unit, expected):
    assert report.shown(result(unit=unit), "halfbyte high") == expected
    assert report.shown(result(unit=unit), "broken") == "-"


def test_the_tables():
    lines = report.summary([result()]).splitlines()
    assert lines[2] == "| a task | halfbyte high | 10.0 tok/s | slow | 5.0 tok/s | 2.00 | 1.25 | yes |"
    assert lines[3].endswith("| 0.90 | 1.25 | no |")
    assert lines[4].endswith("| broken | - | - | 1.25 | not run |")
    assert [line.split(" | ", 2)[2] for line in lines[5:]] == [
        "25% of readable | - | - | - | 25% of readable | yes |",
        "25% of readable | - | - | - | 26% of readable | no |",
        "800 MB | - | - | - | 799 MB | no |",
        "3.00 s | - | - | - | 3.00 s | yes |",
        "- | - | - | - | 3.00 s | not run |",
    ]
    detail = report.detail(result())
    # 10 tokens/s of 1 GB each are a quarter of 40 GB/s; 60 GFLOP in 3 seconds a tenth of 200 GFLOP/s.
    row = "| halfbyte high | 10.0 tok/s | ±133% | 10.0 (25%) | 20 (10% of int16) | - | - | 800 | 0.25 |"
    assert row in detail.splitlines()
    assert "broken did not run: no such file." in detail
    widths = {line.count("|") for line in detail.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_quality_stands_beside_speed():
    one = result()
    one["sides"]["slow"]["quality"] = {"error": 0.00321, "perplexity": 12.3456, "perplexity_float64": 12.3}
    assert "| 3.2e-03 | 12.346 (12.300) |" in report.detail(one)


def test_only_the_part_between_the_marks_is_replaced():
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.replaced(text, "new")
    assert new == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.replaced(new, "new") == new
    with pytest.raises(ValueError, match="begin"):
        report.replaced("no marks", "new")


def test_the_page_has_a_place_for_the_tables():
    page = (TOOLS.parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
    assert "x" in report.replaced(page, "x")


def test_rows_are_sound():
    assert len(ROWS) == len(rows.all_rows())
    for row in ROWS.values():
        labels = [entrant.label for entrant in row.entrants]
        assert len(set(labels)) == len(labels), row.key
        assert any(not label.startswith("halfbyte") for label in labels), row.key
        for target in row.targets:
            assert target.ours in labels, row.key
            assert target.theirs in [*labels, "best"], row.key
        assert {limit.ours for limit in row.limits} <= set(labels), row.key


@pytest.mark.parametrize("name", ["llama-1b", "llama-8b", "smollm2"])
def test_layer_weights_are_those_of_the_shape(name):
    plan = tensors(SHAPES[name], "nf4", "nf4")
    expected = sum(int(np.prod(tensor.shape)) for tensor in plan if "_proj" in tensor.name)
    assert costs.layer_weights(SHAPES[name]) == expected


def test_operations_of_a_request():
    decode, batch, prefill = (costs.gflop(ROWS[key]) for key in ("decode-1b-2t", "batch-1b", "prefill-1b"))
    # 1.2358e9 weights, two operations each and token, and a little for attention.
    assert 1.0 < decode / (rows.STEPS * 2 * 1.2358) < 1.01
    assert 1.0 < batch / (16 * rows.BATCH_STEPS * 2 * 1.2358) < 1.01
    # The output layer (a fifth) for one token of 512; attention to 256 keys on average.
    layers = 2 * 512 * 0.9731
    attention = 512 * 4 * 16 * 2048 * 256.5 * 1e-9
    assert prefill == pytest.approx(layers + attention + 2 * 0.2627, rel=1e-3)
    assert costs.tokens_per_pass(ROWS["batch-1b"]) == 16
    assert costs.tokens_per_pass(ROWS["decode-1b-2t"]) == 1


def test_perplexity_and_error():
    import quality

    tokens = np.array([0, 1, 2, 3], np.int32)
    even = np.zeros((4, 8), np.float32)
    assert quality.perplexity(even, tokens) == pytest.approx(8.0)
    sure = np.full((4, 8), -50.0, np.float32)
    sure[[0, 1, 2], [1, 2, 3]] = 50.0
    assert quality.perplexity(sure, tokens) == pytest.approx(1.0)
    assert quality.relative_error(np.array([3.0, 4.0]), np.array([3.0, 5.0])) == pytest.approx(1 / 34**0.5)


def test_a_side_answers_and_tells_its_errors():
    options = {"path": str(packages.smollm2()), "threads": 1}
    with Session("halfbyte", options) as side:
        assert side.loaded["load_s"] > 0
        assert side.loaded["bytes"] > 50_000_000
        reply = side.ask({"task": "decode", "prompts": [[1, 2, 3], [4, 5, 6]], "steps": 2})
        assert reply["seconds"] > 0
        assert reply["peak_mb"] > 50
        assert side.ask({"task": "prefill", "tokens": [1, 2, 3]})["seconds"] > 0
        with pytest.raises(SideError, match=r"halfbyte: InvalidArgumentError: .*found 99999"):
            side.ask({"task": "prefill", "tokens": [99999]})
        assert side.ask({"task": "prefill", "tokens": [1]})["seconds"] > 0  # it goes on
    with pytest.raises(SideError, match="halfbyte: NotFoundError"):
        Session("halfbyte", {"path": "no such file", "threads": 1})


def test_a_kept_run_can_be_printed_again(tmp_path, capsys, monkeypatch):
    import compare

    run = {"conditions": {"processor": "a", "threads": 2, "date": "today"}, "results": [result()]}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["compare.py", "--from-json", str(path), "--no-docs"])
    assert compare.main() == 0
    assert capsys.readouterr().out.strip() == report.page(run).strip()
