"""Prints the tables of csrc/storage/iq_grids.cpp, from the grids of the package gguf.

A grid of GGUF's IQ formats is a set of short vectors of small digits in ascending order, the first digit counting
least. So the set is all there is to say: one bit for every possible vector, six bits a character.
"""

from __future__ import annotations

import string

import numpy as np
from gguf import quants

ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
WIDTH = 118
GRIDS = {
    "kIq1": quants.IQ1_S,
    "kIq2Xxs": quants.IQ2_XXS,
    "kIq2Xs": quants.IQ2_XS,
    "kIq2S": quants.IQ2_S,
    "kIq3Xxs": quants.IQ3_XXS,
    "kIq3S": quants.IQ3_S,
}


def members(kind: type) -> np.ndarray:
    """The vectors of a grid as numbers in base len(grid_map), in the order of the grid."""
    kind.init_grid()
    base, length = len(kind.grid_map), kind.grid_shape[1]
    digits = np.searchsorted(np.float32(kind.grid_map), kind.grid.reshape(kind.grid_shape))
    numbers = (digits * base ** np.arange(length)).sum(axis=1)
    if not (np.diff(numbers) > 0).all():
        raise ValueError(f"{kind.__name__}: not in ascending order")
    return numbers


def text(kind: type) -> str:
    """The set: bit i % 6 of character i // 6 is set where the number i is a member."""
    bits = np.zeros(-(-(len(kind.grid_map) ** kind.grid_shape[1]) // 6) * 6, np.int64)
    bits[members(kind)] = 1
    return "".join(ALPHABET[value] for value in (bits.reshape(-1, 6) << np.arange(6)).sum(axis=1))


def main() -> None:
    """Print one C++ constant a grid."""
    for name, kind in GRIDS.items():
        print(f"constexpr std::string_view {name} =")
        encoded = text(kind)
        step = WIDTH - 6
        lines = [f'    "{encoded[i : i + step]}"' for i in range(0, len(encoded), step)]
        print("\n".join(lines) + ";")


if __name__ == "__main__":
    main()
