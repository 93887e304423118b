"""Token ids on their way to the core, and rows on their way back: checked, packed without padding, unpacked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InvalidArgumentError

TokenLists = Sequence[Sequence[int]] | NDArray[np.integer[Any]]


class Packed(NamedTuple):
    """Sequences one behind the other."""

    tokens: NDArray[np.int32]  # [total]
    lengths: NDArray[np.int64]  # [sequences]


def whole(name: str, value: int) -> int:
    """An integer that was meant as one: no bool, no float."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidArgumentError(f"{name}: expected an integer, got {value!r}")
    return int(value)


def token_ids(where: str, values: ArrayLike) -> NDArray[np.int32]:
    """Checked token ids [n]."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgumentError(f"{where}: expected a list of token ids: {error}") from None
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, dtype=np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgumentError(f"{where}: expected a list of token ids, got {array.dtype} of shape {array.shape}")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise InvalidArgumentError(
            f"{where}: token id {array.min() if array.min() < 0 else array.max()} is out of range"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def pack(where: str, lists: TokenLists) -> Packed:
    """Checked lists of token ids, one behind the other."""
    if isinstance(lists, (str, bytes)) or not hasattr(lists, "__len__"):
        raise InvalidArgumentError(f"{where}: expected lists of token ids, [batch, tokens], got {type(lists).__name__}")
    if len(lists) and not hasattr(lists[0], "__len__"):
        raise InvalidArgumentError(f"{where}: expected lists of token ids, [batch, tokens]; for one list pass [ids]")
    rows = [token_ids(f"{where}[{i}]", row) for i, row in enumerate(lists)]
    lengths = np.array([row.size for row in rows], dtype=np.int64)
    return Packed(np.concatenate(rows) if rows else np.empty(0, dtype=np.int32), lengths)


def unpack(rows: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """[total, n] -> [batch, longest, n], zeros past the end of a sequence."""
    batch, longest = len(lengths), int(lengths.max(initial=0))
    if batch * longest == rows.shape[0]:
        return rows.reshape(batch, longest, rows.shape[1])
    out = np.zeros((batch, longest, rows.shape[1]), dtype=np.float32)
    out[np.arange(longest) < lengths[:, None]] = rows
    return out
