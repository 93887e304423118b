"""The errors that halfbyte raises. Each has a built-in base too, so that ``except ValueError`` works."""

from ._core import (
    CancelledError,
    CorruptFileError,
    Error,
    InputOutputError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfMemoryError,
    UnsupportedError,
)

__all__ = [
    "CancelledError",
    "CorruptFileError",
    "Error",
    "InputOutputError",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "OutOfMemoryError",
    "UnsupportedError",
]
