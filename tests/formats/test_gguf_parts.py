"""Split GGUF models: what the package gguf writes, and one set of parts for each way to be wrong."""

# ruff: noqa: E501 (a row of a table is a line)
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from files import I32, LLAMA, STRING, U16, U32, floats, gguf_bytes, gguf_pair, gguf_tensor

from halfbyte import _core

C, U, N = _core.CorruptFileError, _core.UnsupportedError, _core.NotFoundError


def split_by_gguf(folder: Path, **options: Any) -> tuple[list[Path], dict[str, np.ndarray]]:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama", **options)
    writer.add_block_count(2)
    values = {f"t{i}": np.full((i + 1, 32), i, np.float32) for i in range(7)}
    for name, value in values.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("model*.gguf")), values


@pytest.mark.parametrize("options", [{"split_max_tensors": 3}, {"split_max_tensors": 2, "small_first_shard": True}])
def test_parts_as_gguf_writes_them(tmp_path: Path, options: dict[str, Any]) -> None:
    """Opened by any of them: the same names, shapes, values and metadata."""
    parts, values = split_by_gguf(tmp_path, **options)
    assert len(parts) >= 3
    for part in parts:
        checkpoint = _core.Checkpoint(str(part))
        assert (checkpoint.architecture, checkpoint.metadata("llama.block_count")) == ("llama", 2)
        assert checkpoint.names() == sorted(values)
        for name, value in values.items():
            assert checkpoint.shape(name) == list(value.shape)
            np.testing.assert_array_equal(checkpoint.weight(name).dequantize(), value)


def head(number: int, count: int = 2, tensors: int = 3) -> list[bytes]:
    return [
        gguf_pair("split.no", U16, number),
        gguf_pair("split.count", U16, count),
        gguf_pair("split.tensors.count", I32, tensors),
    ]


DATA = floats(*range(8))
A, B = gguf_tensor("a", [8], 0, 0), gguf_tensor("b", [8], 0, 32)
FIRST = gguf_bytes([LLAMA, *head(0)], [A, B], DATA * 2)
SECOND = gguf_bytes(head(1), [gguf_tensor("c", [8], 0, 0)], DATA)


def second(*pairs: bytes, name: str = "c") -> bytes:
    return gguf_bytes(list(pairs), [gguf_tensor(name, [8], 0, 0)], DATA)


# name: first part, second part (None: no such file), the error and its text
BROKEN: dict[str, tuple[bytes, bytes | None, type[Exception], str]] = {
    "missing part": (FIRST, None, N, r"part 2 of 2 is missing: there is no .*x-00002-of-00002\.gguf"),
    "no GGUF": (FIRST, b"GGML", C, r"x-00002-of-00002\.gguf: not a GGUF file"),
    "cut off": (FIRST, SECOND[:-1], C, r"x-00002-of-00002\.gguf: tensor c: its 32 bytes"),
    "another count": (FIRST, second(*head(1, 3)), C, r"x-00002-of-00002\.gguf: split\.count is 3, and .* says 2"),
    "no count": (FIRST, second(*head(1)[:1], *head(1)[2:]), C, r"split\.count is missing, and .* says 2"),
    "another number": (FIRST, second(*head(0)), C, r"split\.no is 0, expected 1 in a file of this name"),
    "no number": (FIRST, second(*head(1)[1:]), C, r"split\.no is missing, expected 1"),
    "another total": (FIRST, second(*head(1, 2, 4)), C, r"split\.tensors\.count is not what .* says"),
    "wrong total": (
        gguf_bytes([LLAMA, *head(0, 2, 4)], [A, B], DATA * 2),
        second(*head(1, 2, 4)),
        C,
        r"split\.tensors\.count is 4, and its 2 parts have 3 tensors",
    ),
    "tensor twice": (FIRST, second(*head(1), name="a"), C, r"tensor a is in .*x-00001-of-00002\.gguf too"),
    "another model": (
        FIRST,
        second(*head(1), gguf_pair("general.architecture", STRING, "gpt2")),
        C,
        r"x-00002-of-00002\.gguf: general\.architecture is not what .*x-00001-of-00002\.gguf says",
    ),
    "metadata of its own": (FIRST, second(*head(1), gguf_pair("llama.rope.scale", U32, 2)), C, r"llama\.rope\.scale is not"),
    "number beyond": (gguf_bytes([LLAMA, *head(2)], [A, B], DATA * 2), SECOND, C, r"split\.no is 2, expected 0 to 1"),
    "first without number": (gguf_bytes([LLAMA, *head(0)[1:]], [A, B], DATA * 2), SECOND, C, r"split\.no is missing, expected 0"),
    "negative count": (gguf_bytes([LLAMA, gguf_pair("split.count", I32, -1)], [A], DATA), None, C, r"split\.count must be a whole"),
    "count a text": (gguf_bytes([LLAMA, gguf_pair("split.count", STRING, "2")], [A], DATA), None, C, r"split\.count must be a whole"),
    "second under the first's name": (SECOND, SECOND, U, r'part 2 of 2 .* must end with "-00002-of-00002\.gguf"'),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken(tmp_path: Path, name: str) -> None:
    first, other, error, text = BROKEN[name]
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(first)
    if other is not None:
        (tmp_path / "x-00002-of-00002.gguf").write_bytes(other)
    with pytest.raises(error, match=text):
        _core.Checkpoint(str(tmp_path / "x-00001-of-00002.gguf"))


def test_the_same_metadata_twice_is_no_contradiction(tmp_path: Path) -> None:
    (tmp_path / "x-00001-of-00002.gguf").write_bytes(FIRST)
    (tmp_path / "x-00002-of-00002.gguf").write_bytes(second(LLAMA, *head(1)))
    assert _core.Checkpoint(str(tmp_path / "x-00002-of-00002.gguf")).names() == ["a", "b", "c"]


def test_a_part_that_was_renamed(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(FIRST)
    with pytest.raises(U, match=r'part 1 of 2 of a split model; its name must end with "-00001-of-00002\.gguf"'):
        _core.Checkpoint(str(tmp_path / "model.gguf"))


def test_one_part_is_a_whole(tmp_path: Path) -> None:
    (tmp_path / "any.gguf").write_bytes(gguf_bytes([LLAMA, *head(0, 1, 1)], [A], DATA))
    assert _core.Checkpoint(str(tmp_path / "any.gguf")).names() == ["a"]


def test_weights_outlive_their_files(tmp_path: Path) -> None:
    parts, values = split_by_gguf(tmp_path, split_max_tensors=3)
    weights = {name: _core.Checkpoint(str(parts[0])).weight(name) for name in values}
    shutil.rmtree(tmp_path)
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight.dequantize(), values[name])
