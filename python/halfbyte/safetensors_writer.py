"""The writing of .safetensors files, tensor after tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray


class SafetensorsWriter:
    """Tensors one after the other into a .safetensors file: first into a file beside it, then header and data.

    The header has every offset and stands in front, so the data waits in a second file until all sizes are known.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._size = 0
        self._data: BinaryIO | None = None

    def __enter__(self) -> SafetensorsWriter:
        self._data = self._path.with_suffix(".data").open("wb+")
        return self

    def add(self, name: str, dtype: str, shape: Sequence[int], array: NDArray[Any]) -> None:
        """One tensor; ``array`` has its bytes in order."""
        assert self._data is not None
        end = self._size + array.nbytes
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [self._size, end]}
        array.tofile(self._data)
        self._size = end

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        assert self._data is not None
        with self._data as data:
            if kind is None:
                data.flush()
                text = json.dumps(self._header).encode()
                text += b" " * (-len(text) % 8)
                with self._path.open("wb") as file:
                    file.write(len(text).to_bytes(8, "little") + text)
                    data.seek(0)
                    for piece in _pieces(data):
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
        self._path.with_suffix(".data").unlink()


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(8 << 20):
        yield piece
