"""What sentence-transformers' files say, and which of it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from halfbyte import pooling
from halfbyte.errors import CorruptFileError, UnsupportedError
from halfbyte.pooling import SentenceConfig

Write = Callable[[str, Any], Path]


def modules(*kinds: str) -> list[dict[str, Any]]:
    prefix = "sentence_transformers.models."
    return [{"idx": i, "path": "" if i == 0 else f"{i}_{k}", "type": prefix + k} for i, k in enumerate(kinds)]


def test_minilm(minilm_path: Path) -> None:
    assert pooling.read_folder(minilm_path) == SentenceConfig("mean", normalize=True, max_seq_length=256)


def test_a_plain_folder(tmp_path: Path) -> None:
    assert pooling.read_folder(tmp_path) == SentenceConfig("mean", normalize=False, max_seq_length=None)


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({}, "mean"),
    ],
)
def test_modes(tmp_path: Path, write_json: Write, config: dict[str, Any], mode: str) -> None:
    write_json("modules.json", modules("Transformer", "Pooling"))
    write_json("1_Pooling/config.json", config)
    assert pooling.read_folder(tmp_path).pooling == mode


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, r"cls \+ mean"),
        ({"pooling_mode": "newest"}, "newest"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt"),
    ],
)
def test_modes_that_are_refused(tmp_path: Path, write_json: Write, config: dict[str, Any], text: str) -> None:
    write_json("modules.json", modules("Transformer", "Pooling"))
    write_json("1_Pooling/config.json", config)
    with pytest.raises(UnsupportedError, match=text):
        pooling.read_folder(tmp_path)


@pytest.mark.parametrize(
    "kinds",
    [
        ("Transformer", "Pooling", "Dense", "Normalize"),
        ("Transformer", "Pooling", "Normalize", "LayerNorm"),
        ("StaticEmbedding", "Normalize"),
        ("Transformer", "WeightedLayerPooling", "Pooling"),
    ],
)
def test_modules_that_are_refused(tmp_path: Path, write_json: Write, kinds: tuple[str, ...]) -> None:
    write_json("modules.json", modules(*kinds))
    strange = next(k for k in kinds if k not in {"Transformer", "Pooling", "Normalize"})
    with pytest.raises(UnsupportedError, match=rf"is ({strange}|Normalize)"):
        pooling.read_folder(tmp_path)


def test_transformer_settings_and_default_prompt(tmp_path: Path, write_json: Write) -> None:
    write_json("modules.json", modules("Transformer", "Pooling", "Normalize"))
    write_json("1_Pooling/config.json", {"pooling_mode_cls_token": True})
    write_json("sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": True})
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    write_json("config_sentence_transformers.json", prompts)
    expected = SentenceConfig("cls", normalize=True, max_seq_length=12, do_lower_case=True, prompt="query: ")
    assert pooling.read_folder(tmp_path) == expected
    write_json("config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": "query"})
    with pytest.raises(CorruptFileError, match="query"):
        pooling.read_folder(tmp_path)
    write_json("config_sentence_transformers.json", {})
    write_json("sentence_bert_config.json", {"max_seq_length": -1})
    with pytest.raises(CorruptFileError, match="max_seq_length"):
        pooling.read_folder(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[3]", '[{"path": ""}]'])
def test_a_corrupt_modules_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"modules\.json"):
        pooling.read_folder(tmp_path)


class Entry:
    def __init__(self, value: Any) -> None:
        self.value = value

    def metadata(self, key: str) -> Any:
        return self.value if key == "bert.pooling_type" else None


@pytest.mark.parametrize(("value", "mode"), [(None, "mean"), (0, "mean"), (1, "mean"), (2, "cls"), (3, "last")])
def test_gguf(value: Any, mode: str) -> None:
    assert pooling.read_gguf(Entry(value), "bert") == SentenceConfig(mode)


def test_gguf_ranking_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="pooling_type 4"):
        pooling.read_gguf(Entry(4), "bert")
