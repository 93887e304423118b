"""Patterns of rank_pattern and alpha_pattern come from a file: no text in their place may hang or crash the process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import halfbyte

if TYPE_CHECKING:
    from oracle.adapters import Adapters
    from oracle.cases import Engines

IDS = [[1, 2, 3, 4, 5]]


def _with_pattern(adapters: Adapters, folder: Path, pattern: str) -> Path:
    shutil.copytree(adapters.path("llama-qv"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["alpha_pattern"] = {pattern: 1000}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("pattern", ["(.*)*(.*)*(.*)*(.*)*(.*)*!", "(((a+)+)+)+!", "(x|x|x)*(x|x|x)*!"])
def test_no_pattern_takes_for_ever(engines: Engines, adapters: Adapters, tmp_path: Path, pattern: str) -> None:
    # None of them matches a module: the answers are those of the plain alpha.
    model = engines.get("llama", "float32")
    model.load_adapter(adapters.path("llama-qv"), "plain")
    model.load_adapter(_with_pattern(adapters, tmp_path / "adapter", pattern), "hostile")
    try:
        np.testing.assert_array_equal(model.logits(IDS, adapter="hostile"), model.logits(IDS, adapter="plain"))
    finally:
        model.unload_adapter("plain")
        model.unload_adapter("hostile")


@pytest.mark.parametrize("pattern", ["(" * 100_000, "(" * 500 + "é" + ")" * 499, "q_proj[", "*", "é" * 2000])
def test_what_is_no_pattern_is_an_error(engines: Engines, adapters: Adapters, tmp_path: Path, pattern: str) -> None:
    folder = _with_pattern(adapters, tmp_path / "adapter", pattern)
    with pytest.raises(halfbyte.UnsupportedError, match="alpha_pattern"):
        engines.get("llama", "float32").load_adapter(folder, "x")
