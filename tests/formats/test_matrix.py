"""The matrix of docs/formats.md: every cell is a check that is run here, and the table of the page is what came out.

A row is a storage of a format, and a tiny model of it from oracle/builders.py. To add one: its line in ROWS, and

    HALFBYTE_WRITE_DOCS=1 pytest tests/formats/test_matrix.py

which writes the table into the page.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import halfbyte
from halfbyte import _core
from halfbyte.convert import convert
from oracle import ggml_types, reference
from oracle.cases import SEQUENCES, run

if TYPE_CHECKING:
    from oracle.builders import Zoo
    from oracle.cases import References

PAGE = Path(__file__).parents[2] / "docs/formats.md"
BEGIN, END = "<!-- matrix: tests/formats/test_matrix.py writes this -->\n", "<!-- end of the matrix -->\n"
HEADER = ("format", "storage", "reads", "values equal", "logits, to float64", "round trip")


@dataclass(frozen=True)
class Row:
    """``name``: of the checkpoint in the zoo. ``weights``: what ``convert`` writes it as, for halfbyte's own files."""

    format: str
    storage: str
    name: str
    oracle: str
    weights: str | None = None
    panels: bool = False

    @property
    def id(self) -> str:
        return f"{self.format}-{self.storage}"


GPTQ, AWQ, FP8 = "GPTQ folder", "AWQ folder", "fp8 folder"
HF, BNB, GGUF, OWN = "Hugging Face folder", "bitsandbytes folder", "GGUF", "halfbyte's GGUF"
ROWS = [
    Row(HF, "f32", "llama", "torch"),
    Row(HF, "f16", "llama/f16", "torch"),
    Row(HF, "bf16", "llama/bf16", "torch"),
    *(Row(BNB, kind, f"llama/{kind}", "bitsandbytes") for kind in ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8")),
    Row(GPTQ, "gptq", "llama_aligned/gptq", "numpy"),
    Row(GPTQ, "gptq_v2", "llama_aligned/gptq-v2", "numpy"),
    Row(AWQ, "awq", "llama_aligned/awq", "numpy"),
    Row(FP8, "fp8_e4m3", "llama_aligned/fp8-block", "torch"),
    *(Row(GGUF, kind, f"llama_blocks/{kind}.gguf", "gguf") for kind in ("F32", "F16", "BF16")),
    Row(GGUF, "F64", "llama_k/F64.gguf", "gguf"),
    *(Row(GGUF, kind, f"llama_blocks/{kind}.gguf", "gguf") for kind in ("Q4_0", "Q4_1", "Q8_0")),
    *(
        Row(GGUF, kind.name, f"llama_k/{kind.name}.gguf", "gguf")
        for kind in ggml_types.LAYOUTS
        if kind.name not in ("Q4_0", "Q4_1", "Q8_0")
    ),
    *(
        Row(
            OWN,
            storage,
            f"llama_aligned/{storage.replace('_panels', '-dq')}",
            "bitsandbytes",
            "keep",
            "panels" in storage,
        )
        for storage in ("nf4_panels", "nf4", "fp4_panels", "fp4")
    ),
    Row(OWN, "int8_rows", "llama_aligned/int8", "bitsandbytes", "keep"),
    Row(OWN, "int8", "llama_aligned", "numpy", "int8"),
]


class Checks:
    """The cells of one row. Each gives the text of the page, or raises."""

    def __init__(self, row: Row, zoo: Zoo, references: References, folder: Path) -> None:
        self.row, self.references = row, references
        self.path, self.folder = zoo.path(row.name), folder
        if row.weights is not None:
            self.path = folder / "own.gguf"
            convert(zoo.path(row.name), self.path, weights=row.weights, panels=row.panels)  # type: ignore[arg-type]
        self.checkpoint = _core.Checkpoint(str(self.path))
        self.plan = self.checkpoint.plan()[1]

    def cells(self) -> list[str]:
        return [self.row.format, f"`{self.row.storage}`", self.reads(), self.values(), self.logits(), self.round_trip()]

    def reads(self) -> str:
        """Linear layers have the storage that the row names."""
        kind = self.row.storage.lower().removesuffix("-dq")
        kind = "int8_rows" if (self.row.format, kind) == (BNB, "int8") else kind
        found = {self.checkpoint.weight(t[0]).format for t in self.plan if t[3] == "linear"}
        # A layer whose rows are no whole blocks has no panels: o_proj, here.
        assert found == {kind} | ({kind.removesuffix("_panels")} if self.row.panels else set()), found
        nested = {self.checkpoint.weight(t[0]).nested_block_size > 0 for t in self.plan if t[3] == "linear"}
        if self.row.format == BNB:
            assert nested == {self.row.storage.endswith("-dq")}
        return "yes"

    def reference(self) -> reference.Reference:
        rounded = self.row.weights if self.row.weights != "keep" else None
        return self.references.get(self.row.name, quantize=rounded)

    def values(self) -> str:
        """Every matrix bit for bit what the oracle decodes, as [out, in] and in Hugging Face's order of rows."""
        expected = self.reference().model.state_dict()
        seen = 0
        for source, hf, _, role, _, _, transposed, order in self.plan:
            if role == "vector":
                continue
            found = self.checkpoint.weight(source).dequantize()
            found = found.T if transposed else found
            if order and not self.checkpoint.has_reference_rows:
                found = found[np.asarray(order)]
            exact = expected[hf].numpy() + np.float32(0 if self.row.oracle == "numpy" else -0.0)  # no -0 among int8
            assert found.dtype == exact.dtype == np.float32 and found.shape == exact.shape, hf
            assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(exact).tobytes(), hf
            seen += 1
        assert seen == 14 + 2
        return f"{self.row.oracle}, bit for bit"

    def logits(self) -> str:
        """The rule of oracle/reference.py, in two precisions."""
        for precision in ("float32", "high"):
            with halfbyte.load(self.path, precision=precision) as model:  # type: ignore[arg-type]
                self.reference().check(run(model, SEQUENCES, causal=True), precision)
        return "within transformers' error"

    def round_trip(self) -> str:
        """Into one file and, of what bitsandbytes can hold, from it into a folder: everything comes back as it was."""
        if self.row.format in (GPTQ, AWQ, FP8):
            with pytest.raises(halfbyte.UnsupportedError, match="weights"):
                convert(self.path, self.folder / "again.gguf")
            return "as floats, or rounded again"
        own = self.folder / "again.gguf"
        convert(self.path, own)
        again = _core.Checkpoint(str(own))
        for source, _, gguf, role, _, _, transposed, order in self.plan:
            before, after = self.checkpoint.weight(source), again.weight(gguf)
            plain = before.transposed() if transposed else before
            if order and self.checkpoint.has_reference_rows != again.has_reference_rows:
                rows = order if again.has_reference_rows else [int(i) for i in np.argsort(order)]
                plain = plain.reordered(rows) if role != "vector" else plain
            if role == "vector":
                assert after.format == "f32"
                continue
            assert after.format.removesuffix("_panels") == plain.format.removesuffix("_panels"), source
            assert same_planes(plain.planes(), after.planes()), source
        if self.row.format in (HF, GGUF) or (self.row.format, self.row.storage) == (OWN, "int8"):
            return "file"
        convert(own, self.folder / "folder", format="bitsandbytes")
        if self.row.format == OWN:
            convert(self.folder / "folder", self.folder / "last.gguf", panels=self.row.panels)
            last = _core.Checkpoint(str(self.folder / "last.gguf"))
            for _, _, gguf, *_ in self.plan:
                assert same_planes(self.checkpoint.weight(gguf).planes(), last.weight(gguf).planes()), gguf
            return "file, folder"
        before = {k: v for path in sorted(self.path.glob("*.safetensors")) for k, v in raw(path).items()}
        after = raw(self.folder / "folder/model.safetensors")
        for name, value in before.items():
            if "quant_state" not in name:  # JSON, in another order
                assert after[name] == value, name
        return "file, folder"


def same_planes(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a)


def raw(path: Path) -> dict[str, bytes]:
    """Tensors as bytes: numpy has no bfloat16."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header.pop("__metadata__", None)
    data = content[8 + size :]
    return {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


@pytest.fixture(scope="module")
def found() -> dict[str, list[str]]:
    """Cells by row, as the tests below find them."""
    return {}


@pytest.fixture
def check(found: dict[str, list[str]], zoo: Zoo, references: References, tmp_path_factory: Any) -> Any:
    def once(row: Row) -> list[str]:
        if row.id not in found:
            found[row.id] = Checks(row, zoo, references, tmp_path_factory.mktemp("matrix")).cells()
        return found[row.id]

    return once


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row(row: Row, check: Any) -> None:
    assert len(check(row)) == len(HEADER)


def table(rows: Sequence[Sequence[str]]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def test_the_page_says_what_was_found(check: Any) -> None:
    made = table([check(row) for row in ROWS])
    page = PAGE.read_text(encoding="utf-8")
    head, begin, rest = page.partition(BEGIN)
    old, end, tail = rest.partition(END)
    assert begin and end, "the marks of the matrix are gone from docs/formats.md"
    if os.environ.get("HALFBYTE_WRITE_DOCS"):
        PAGE.write_text(head + BEGIN + made + END + tail, encoding="utf-8")
    else:
        assert old == made, "stale: HALFBYTE_WRITE_DOCS=1 pytest tests/formats/test_matrix.py writes it anew"


def test_every_type_has_a_row() -> None:
    storages = {row.storage.lower().removesuffix("-dq") for row in ROWS} | {"int8_rows"}
    with pytest.raises(_core.InvalidArgumentError) as caught:
        _core.weight_from_planes("none", 1, 256, 32, {"data": np.zeros(1, np.uint8)})
    known = set(str(caught.value).partition("expected one of ")[2].split(", "))
    assert known <= storages, known - storages
