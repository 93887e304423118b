"""Global memory out of pieces that know their bounds, and the shared memory of several blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Addresses = NDArray[np.int64]

SHARED = 1 << 60  # where generic addresses of shared memory begin
PARAMETERS = 1 << 61  # and those of parameters


class Global:
    """One array over all pieces and what lies between them, which nobody may touch."""

    def __init__(self, pieces: dict[int, Bytes]) -> None:
        self.base = min(pieces) // 256 * 256
        end = max(at + len(piece) for at, piece in pieces.items())
        size = (end - self.base + 511) // 256 * 256
        self.memory = np.full(size, 0xFF, np.uint8)
        self.valid = np.zeros(size, bool)
        for at, piece in pieces.items():
            self.memory[at - self.base : at - self.base + len(piece)] = piece
            self.valid[at - self.base : at - self.base + len(piece)] = True

    def piece(self, at: int, size: int) -> Bytes:
        return self.memory[at - self.base : at - self.base + size]

    def offsets(self, addresses: Addresses, size: int) -> Addresses:
        """Where bytes of these accesses begin; checked."""
        at = addresses - self.base
        if (
            (at < 0).any()
            or (at + size > len(self.memory)).any()
            or not (self.valid[at] & self.valid[at + size - 1]).all()
        ):
            raise IndexError("global memory: out of bounds")
        if (addresses % size).any():
            raise IndexError("global memory: misaligned")
        return at


class Shared:
    """Of `blocks` blocks, `size` bytes each; poisoned until written to."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self.pitch = (size + 15) // 16 * 16 + 16
        self.memory = np.full(blocks * self.pitch, 0xFF, np.uint8)

    def offsets(self, addresses: Addresses, size: int, block: Addresses) -> Addresses:
        if (addresses < 0).any() or (addresses + size > self.size).any():
            raise IndexError("shared memory: out of bounds")
        if (addresses % size).any():
            raise IndexError("shared memory: misaligned")
        return addresses + block * self.pitch


def gather(memory: Bytes, offsets: Addresses, size: int) -> Bytes:
    """[len(offsets), size]"""
    return memory[offsets[:, None] + np.arange(size)]


def scatter(memory: Bytes, offsets: Addresses, values: Bytes) -> None:
    memory[offsets[:, None] + np.arange(values.shape[1])] = values
