"""Adapters by name: read when they are asked for, put away for a budget, replaced."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import halfbyte
from oracle.cases import random_ids

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from oracle.builders import Zoo
    from oracle.peft_models import TrainedZoo

IDS = [random_ids(9, 41)]
KEYS = {"a": "llama-lora", "b": "llama-dora", "c": "llama-saved"}


@pytest.fixture
def model(zoo: Zoo) -> Iterator[Any]:
    """One that has seen nothing yet: its counts begin at 0."""
    with halfbyte.load(zoo.path("llama"), precision="float32") as model:
        yield model


def _counts(model: Any) -> tuple[int, int, int, int]:
    stats = model.adapter_stats
    return stats["hits"], stats["misses"], stats["put_away"], stats["resident"]


def test_read_when_first_named(model: Any, trained: TrainedZoo, tmp_path: Path) -> None:
    model.load_adapter(trained.path("llama-lora"), "eager")
    model.load_adapter(trained.path("llama-lora"), "lazy", lazily=True)
    model.load_adapter(tmp_path / "nowhere", "absent", lazily=True)
    assert sorted(model.adapters) == ["absent", "eager", "lazy"]
    assert _counts(model) == (0, 0, 0, 1)
    eager = model.logits(IDS, adapter="eager")
    assert _counts(model) == (1, 0, 0, 1)
    np.testing.assert_array_equal(model.logits(IDS, adapter="lazy"), eager)
    assert _counts(model) == (1, 1, 0, 2)
    np.testing.assert_array_equal(model.logits(IDS, adapter="lazy"), eager)
    assert _counts(model) == (2, 1, 0, 2)
    for _ in range(2):  # what cannot be read can be asked for again
        with pytest.raises(halfbyte.NotFoundError, match="nowhere"):
            model.logits(IDS, adapter="absent")
    shutil.copytree(trained.path("llama-lora"), tmp_path / "nowhere")
    np.testing.assert_array_equal(model.logits(IDS, adapter="absent"), eager)


def test_a_budget_puts_away_the_least_recently_used(model: Any, trained: TrainedZoo) -> None:
    sizes, expected = {}, {}
    for name, key in KEYS.items():
        model.load_adapter(trained.path(key), name)
        sizes[name] = model.adapter_info(name)["bytes"]
        expected[name] = model.logits(IDS, adapter=name)
    assert model.adapter_stats["bytes"] == sum(sizes.values())
    model.logits(IDS, adapter="a")  # now b is the oldest
    _, misses, away, _ = _counts(model)
    assert (misses, away) == (0, 0)

    model.set_adapter_budget(sum(sizes.values()) - 1)
    assert _counts(model)[1:] == (0, 1, 2)
    assert model.adapter_stats["bytes"] == sizes["a"] + sizes["c"]
    assert sorted(model.adapters) == ["a", "b", "c"]
    np.testing.assert_array_equal(model.logits(IDS, adapter="a"), expected["a"])
    assert _counts(model)[1:] == (0, 1, 2)  # it was there
    np.testing.assert_array_equal(model.logits(IDS, adapter="b"), expected["b"])
    assert _counts(model)[1:] == (1, 2, 2)  # b was read, c was the oldest
    assert model.adapter_stats["bytes"] == sizes["a"] + sizes["b"]

    model.set_adapter_budget(1)  # the one in use is kept, however large
    for name in ("a", "b", "c", "a"):
        np.testing.assert_array_equal(model.logits(IDS, adapter=name), expected[name])
        assert model.adapter_stats["resident"] == 1
    together = model.logits(IDS * 3, adapter=["a", "b", "c"])
    for row, name in enumerate(("a", "b", "c")):
        np.testing.assert_allclose(together[row], expected[name][0], rtol=0, atol=1e-4)

    model.set_adapter_budget(None)
    for name in KEYS:
        model.logits(IDS, adapter=name)
    assert model.adapter_stats["resident"] == 3


def test_a_pinned_one_stays(model: Any, trained: TrainedZoo) -> None:
    model.load_adapter(trained.path("llama-saved"), "pinned", pinned=True)
    model.load_adapter(trained.path("llama-lora"), "other")
    model.set_adapter_budget(1)
    model.logits(IDS, adapter="other")
    model.set_adapter_budget(1)
    assert model.adapter_stats["resident"] == 1
    before = model.adapter_stats["misses"]
    model.logits(IDS, adapter="pinned")
    assert model.adapter_stats["misses"] == before
    model.unload_adapter("pinned")  # which is no matter of budgets
    assert model.adapters == ["other"]


def test_replaced_and_forgotten(model: Any, trained: TrainedZoo) -> None:
    model.load_adapter(trained.path("llama-lora"), "x")
    first = model.logits(IDS, adapter="x")
    model.load_adapter(trained.path("llama-dora"), "x", lazily=True)
    second = model.logits(IDS, adapter="x")
    assert model.adapter_info("x")["modules"] and not np.array_equal(first, second)
    with pytest.raises(halfbyte.NotFoundError):  # and the one that was there stays
        model.load_adapter("/nowhere", "x")
    np.testing.assert_array_equal(model.logits(IDS, adapter="x"), second)
    model.unload_adapter("x")
    assert model.adapter_stats["resident"] == 0 and model.adapter_stats["bytes"] == 0
    with pytest.raises(halfbyte.NotFoundError, match=r'"x".*none'):
        model.logits(IDS, adapter="x")
    model.load_adapter(trained.path("llama-dora"), "y")
    with pytest.raises(halfbyte.NotFoundError, match=r'"x".*"y"'):  # the one asked for, and those there are
        model.unload_adapter("x")
