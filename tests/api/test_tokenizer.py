"""Tokenizers of Hugging Face folders, against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from texts import DIGITS, TEXTS, random_texts
from tiny import byte_level_tokenizer, metaspace_tokenizer
from tokenizers import AddedToken, decoders, pre_tokenizers
from transformers import AutoTokenizer

from halfbyte.errors import CorruptFileError, InvalidArgumentError, NotFoundError, UnsupportedError
from halfbyte.tokenizer import byte_alphabet, load_folder_tokenizer

ALL_TEXTS = [*TEXTS, *DIGITS, *random_texts(0, 200)]


def save(folder: Path, backend: Any, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    base = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(base | (config or {})))
    return folder


def test_minilm_ids(minilm_path: Path) -> None:
    ours, theirs = load_folder_tokenizer(minilm_path), AutoTokenizer.from_pretrained(minilm_path)
    assert ours.encode_batch(ALL_TEXTS) == [theirs(t)["input_ids"] for t in ALL_TEXTS]
    assert ours.encode_batch(ALL_TEXTS, add_special_tokens=False) == [
        theirs(t, add_special_tokens=False)["input_ids"] for t in ALL_TEXTS
    ]
    assert ours.settings.special_tokens["cls_token"] == "[CLS]"
    assert ours.settings.max_length == 512


@pytest.mark.parametrize("length", [2, 3, 7, 20])
def test_truncation_keeps_the_special_tokens(minilm_path: Path, length: int) -> None:
    ours, theirs = load_folder_tokenizer(minilm_path), AutoTokenizer.from_pretrained(minilm_path)
    expected = [theirs(t, truncation=True, max_length=length)["input_ids"] for t in ALL_TEXTS]
    assert ours.encode_batch(ALL_TEXTS, max_length=length) == expected
    with pytest.raises(InvalidArgumentError, match="no room"):
        ours.encode_batch(["a"], max_length=1)


CONFIGS: list[dict[str, Any]] = [
    {"bos_token": "<|start|>", "eos_token": "<|end|>"},
    {"bos_token": "<|start|>", "eos_token": "<|end|>", "add_bos_token": True},
    {"bos_token": "<|start|>", "eos_token": "<|end|>", "add_bos_token": True, "add_eos_token": True},
    {"eos_token": {"__type": "AddedToken", "content": "<|end|>"}, "add_bos_token": False, "add_eos_token": True},
    {"model_max_length": 1000000000000000019884624838656},
]


@pytest.mark.parametrize("config", CONFIGS)
def test_special_tokens_round_a_text(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = save(tmp_path / "t", byte_level_tokenizer(), config)
    ours, theirs = load_folder_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    texts = [*ALL_TEXTS, "<|start|>user<|end|> <|start|>x"]
    assert ours.encode_batch(texts) == [theirs(t)["input_ids"] for t in texts]
    assert ours.settings.special_tokens.get("bos_token") == theirs.bos_token
    assert ours.settings.special_tokens.get("eos_token") == theirs.eos_token
    assert ours.settings.max_length is None
    for text in texts:
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_added_tokens_of_the_config(tmp_path: Path) -> None:
    backend = byte_level_tokenizer()
    size = backend.get_vocab_size()
    entry = {"content": "<|tool|>", "special": True, "lstrip": False, "rstrip": False, "normalized": False}
    folder = save(tmp_path / "t", backend, {"added_tokens_decoder": {str(size): entry}})
    ours, theirs = load_folder_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode("a<|tool|>b") == theirs("a<|tool|>b")["input_ids"]
    assert size in ours.encode("a<|tool|>b")
    save(folder, backend, {"added_tokens_decoder": {str(size + 5): entry}})
    with pytest.raises(CorruptFileError, match=r"<\|tool\|>"):
        load_folder_tokenizer(folder)


@pytest.mark.parametrize("make", [byte_level_tokenizer, metaspace_tokenizer])
def test_pieces_join_to_the_text(tmp_path: Path, make: Callable[[], Any]) -> None:
    tokenizer = load_folder_tokenizer(save(tmp_path / "t", make()))
    pieces = tokenizer.vocabulary_pieces()
    assert len(pieces) == tokenizer.vocab_size
    for text in ALL_TEXTS:
        if make is metaspace_tokenizer and "▁" in text:
            continue
        joined = b"".join(pieces[i] for i in tokenizer.encode(text)).decode()
        assert joined == (text if make is byte_level_tokenizer or not text else " " + text)


def test_pieces_of_special_added_and_byte_tokens(tmp_path: Path) -> None:
    backend = byte_level_tokenizer()
    backend.add_tokens([AddedToken("<think> é", special=False), AddedToken("<pad>", special=True)])
    tokenizer = load_folder_tokenizer(save(tmp_path / "t", backend))
    pieces = tokenizer.vocabulary_pieces()
    assert pieces[0] == pieces[1] == b""
    assert pieces[-2:] == ["<think> é".encode(), b""]
    bytes_seen = {piece for piece in pieces if len(piece) == 1}
    assert bytes_seen == {bytes([b]) for b in range(256)}


def test_byte_alphabet_is_the_packages_own() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    for character, byte in alphabet.items():
        if byte < 0x80:
            assert decoders.ByteLevel().decode([character]) == chr(byte)


def test_wordpiece_pieces(minilm_path: Path) -> None:
    tokenizer = load_folder_tokenizer(minilm_path)
    pieces = tokenizer.vocabulary_pieces()
    assert pieces[tokenizer.encode("embedding")[1]] == b" em"
    assert b"".join(pieces[i] for i in tokenizer.encode("embedding the words")) == b" embedding the words"


def test_a_decoder_without_bytes_is_named(tmp_path: Path) -> None:
    backend = byte_level_tokenizer()
    backend.decoder = decoders.CTC()
    with pytest.raises(UnsupportedError, match="CTC"):
        load_folder_tokenizer(save(tmp_path / "t", backend)).vocabulary_pieces()


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 5}, {}, (7, 8)),
        ({"eos_token_id": 7}, {}, {"eos_token": "<|end|>"}, (7, 0)),
        ({}, {"eos_token_id": 5}, {}, (5,)),
        (None, {"eos_token_id": 0}, {"eos_token": "<|end|>"}, (0,)),
        (None, None, {"eos_token": "<|end|>"}, (0,)),
        (None, {"eos_token_id": None}, {}, ()),
    ],
)
def test_stop_ids(tmp_path: Path, generation: Any, config: Any, tokenizer: Any, expected: tuple[int, ...]) -> None:
    folder = save(tmp_path / "t", byte_level_tokenizer(), tokenizer)
    for name, value in (("generation_config.json", generation), ("config.json", config)):
        if value is not None:
            (folder / name).write_text(json.dumps(value))
    assert load_folder_tokenizer(folder).stop_ids == expected


def test_saved_truncation_and_padding_are_dropped(tmp_path: Path) -> None:
    backend = byte_level_tokenizer()
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    tokenizer = load_folder_tokenizer(save(tmp_path / "t", backend))
    assert tokenizer.decode(tokenizer.encode("a text of some length")) == "a text of some length"


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"tokenizer\.json.*save_pretrained"):
        load_folder_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json"):
        load_folder_tokenizer(tmp_path)
    save(tmp_path, byte_level_tokenizer())
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="JSON object, found list"):
        load_folder_tokenizer(tmp_path)
    save(tmp_path, byte_level_tokenizer())
    with pytest.raises(InvalidArgumentError, match="expected str, got int"):
        load_folder_tokenizer(tmp_path).encode(3)  # type: ignore[arg-type]
