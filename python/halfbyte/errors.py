"""The errors that halfbyte raises: one base class, and a second, built-in base each, so that ``except ValueError`` works too."""

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
