"""Which layer is rounded to what: patterns of names, made into names."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from pathlib import Path

from . import _core
from .errors import InvalidArgumentError

Rounding = tuple[str, int, bool]
"""Format ("": as in the file), block size and double quantisation (of nf4 and fp4)."""


def names_module(pattern: str, module: str) -> bool:
    """Whether a name, the name of what contains it, or a pattern with wildcards is that of a module."""
    return module.startswith(pattern + ".") or fnmatch.fnmatchcase(module, pattern)


def roundings(path: Path, quantize: str | Mapping[str, str] | None) -> tuple[str, dict[str, Rounding]]:
    """``quantize=`` of :func:`halfbyte.load`: the format of all layers, and {layer: rounding} of a mapping.

    Raises:
        InvalidArgumentError: a pattern that fits no linear layer. (A layer's whole name goes to the core, which knows
            the output layer too.)

    """
    if quantize is None or isinstance(quantize, str):
        return quantize or "", {}
    _, tensors = _core.Checkpoint(str(path)).plan()
    layers = [hf.removesuffix(".weight") for _, hf, _, role, *_ in tensors if role == "linear"]
    chosen: dict[str, Rounding] = {}
    for pattern, storage in quantize.items():
        fitting = [layer for layer in layers if names_module(pattern, layer)] or [pattern]
        if fitting == [pattern] and any(c in pattern for c in "*?["):
            raise InvalidArgumentError(
                f"quantize: no linear layer of {path} is named {pattern!r}; they are named as in Hugging Face files: "
                f"{', '.join(layers[:2])}, ..."
            )
        for layer in fitting:
            chosen.setdefault(layer, ("" if storage == "keep" else storage, 64, True))
    return "", chosen
