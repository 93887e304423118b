"""Everything that PEFT trains, on every architecture that has it, against peft in float64: the conformance table.

A row is a feature of docs/adapters.md, a cell one adapter of oracle/adapter_zoo.py, which is run on the float base and
on its 4-bit form, as QLoRA has it. To add one: its line there, and

    HALFBYTE_WRITE_DOCS=1 pytest tests/adapters/test_conformance.py

which writes the table into the page. A cell of the table is a test below: one that fails is a failure of the suite.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from oracle import peft_models
from oracle.adapter_zoo import CELLS, COLUMNS, COMBINED, SPECS, Cell
from oracle.cases import random_ids
from oracle.reference import Error, Reference, top_gap

if TYPE_CHECKING:
    from oracle.cases import Engines
    from oracle.peft_models import TrainedZoo

PAGE = Path(__file__).parents[2] / "docs/adapters.md"
BEGIN, END = "<!-- table: tests/adapters/test_conformance.py writes this -->\n", "<!-- end of the table -->\n"
VARIANTS = {"float": "", "NF4": "/nf4-dq"}
CASES = [pytest.param(cell, variant, id=f"{cell.key}-{name}") for name, variant in VARIANTS.items() for cell in CELLS]


CASES += [
    pytest.param(Cell("", "", key), variant, id=f"{key}-{name}")
    for name, variant in VARIANTS.items()
    for key in COMBINED
]


@pytest.mark.parametrize(("cell", "variant"), CASES)
def test_cell(cell: Cell, variant: str, engines: Engines, trained: TrainedZoo) -> None:
    """The rule of oracle/reference.py: an error of at most twice that of peft in float32."""
    spec = SPECS[cell.key]
    truth = trained.reference(cell.key, variant)
    sequences = spec.sequences()
    for precision in ("float32", "high") if cell.high else ("float32",):
        model = engines.get(spec.base + variant, precision)
        model.load_adapter(trained.path(cell.key), "x")
        try:
            alone = [peft_models.run(model, spec.run, [ids], "x")[0] for ids in sequences]
            together = peft_models.run(model, spec.run, sequences, "x")
        finally:
            model.unload_adapter("x")
        if spec.vocabulary is None and spec.model is None:  # it can't be ignored unnoticed
            plain = peft_models.run(model, spec.run, sequences)
            assert Error.of(plain, truth.truth).rms > 1000 * truth.reference_error("float32").rms
        truth.check(alone, precision)
        truth.check(together, precision)


@pytest.mark.parametrize("key", [cell.key for cell in CELLS if cell.generates])
def test_generation(key: str, engines: Engines, trained: TrainedZoo) -> None:
    """Cached steps carry the adapter: tokens are the argmax of the float64 network under peft, and peft's own."""
    spec = SPECS[key]
    truth = trained.reference(key, "/nf4-dq")
    prompt = random_ids(7, 31) + list(spec.tokens) + random_ids(4, 32)
    model = engines.get(spec.base + "/nf4-dq", "float32")
    plain = model.generate_tokens([t % 500 + 1 for t in prompt] if spec.vocabulary else prompt, max_tokens=12)
    model.load_adapter(trained.path(key), "x")
    try:
        tokens = model.generate_tokens(prompt, max_tokens=12, adapter="x")
    finally:
        model.unload_adapter("x")
    assert tokens and tokens != plain
    logits = truth.run(truth.model64, prompt + tokens[:-1])[len(prompt) - 1 :]
    chosen = logits[np.arange(len(tokens)), tokens]
    error = truth.reference_error("float32").max
    assert (logits.max(-1) - chosen).max() <= 2 * error  # the argmax, or within the error of float32 of it
    if top_gap(logits).min() > 4 * error:  # peft, too, can't but choose these
        with torch.inference_mode():
            out = truth.model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=len(tokens),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert out[0].tolist()[-len(tokens) :] == tokens


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("key", ["llama-own-classes", "gpt2-own-classes", "bert-own-classes", "bert-own-token-classes"])
def test_the_head_of_the_base_alone(key: str, variant: str, engines: Engines, trained: TrainedZoo) -> None:
    spec = SPECS[key]
    base = peft_models.base_model(trained.zoo, spec.base + variant, spec)
    truth = Reference(base, spec.sequences(), peft_models.Tokens(spec.run))
    truth.check(peft_models.run(engines.get(spec.base + variant, "float32"), spec.run, spec.sequences()), "float32")


# Layouts in which a device multiplies weights can't always be undone; the lengths of rows come from them all the same.
@pytest.mark.parametrize(
    "name",
    [f"llama_aligned/{kind}" for kind in ("bf16", "int8", "nf4", "fp4-dq")]
    + [f"llama_blocks/{kind}.gguf" for kind in ("Q4_0", "Q8_0", "F16")],
)
def test_dora_on_other_storages(name: str, engines: Engines, trained: TrainedZoo) -> None:
    base, _, variant = name.partition("/")
    key = f"dora-{base}"
    truth = trained.reference(key, "/" + variant)
    model = engines.get(name, "high")
    model.load_adapter(trained.path(key), "x")
    try:
        truth.check(peft_models.run(model, "logits", truth.sequences, "x"), "high")
    finally:
        model.unload_adapter("x")


def _table() -> str:
    cells: dict[str, dict[str, str]] = {}
    for cell in CELLS:
        cells.setdefault(cell.row, {})[cell.column] = ", ".join(VARIANTS)
    rows = [[row, *(found.get(column, "-") for column in COLUMNS)] for row, found in cells.items()]
    lines = [["feature", *COLUMNS], ["---"] * (1 + len(COLUMNS)), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def test_the_page_says_what_is_tested() -> None:
    made = _table()
    page = PAGE.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    old, end, tail = rest.partition(END)
    assert begin and end, "the marks of the table are gone from docs/adapters.md"
    if os.environ.get("HALFBYTE_WRITE_DOCS"):
        PAGE.write_text(head + BEGIN + made + END + tail, encoding="utf-8")
    else:
        assert old == made, "stale: HALFBYTE_WRITE_DOCS=1 pytest tests/adapters/test_conformance.py writes it anew"
