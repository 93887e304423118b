"""Runs transformers whose weights take half a byte each.

>>> import halfbyte
>>> model = halfbyte.load("path/to/folder-or-file.gguf")
>>> model.generate("The capital of France is", max_tokens=16)
"""

from . import errors, ops
from ._core import Weight, __version__, architectures
from .convert import convert
from .convert_adapter import convert_adapter
from .errors import (
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
from .model import Model, load
from .ops import devices
from .stream import Stream
from .tokenizer import Tokenizer

__all__ = [
    "CancelledError",
    "CorruptFileError",
    "Error",
    "InputOutputError",
    "InternalError",
    "InvalidArgumentError",
    "Model",
    "NotFoundError",
    "OutOfMemoryError",
    "Stream",
    "Tokenizer",
    "UnsupportedError",
    "Weight",
    "__version__",
    "architectures",
    "convert",
    "convert_adapter",
    "devices",
    "errors",
    "load",
    "ops",
]
