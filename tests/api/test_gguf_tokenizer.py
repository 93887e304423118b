"""Tokenizers inside GGUF files, against transformers' converter and the tokenizers they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from texts import DIGITS, TEXTS, random_texts
from tiny import byte_level_tokenizer, metaspace_tokenizer
from transformers import AutoTokenizer

from halfbyte import _core
from halfbyte.errors import CorruptFileError, UnsupportedError
from halfbyte.gguf_tokenizer import load_gguf_tokenizer
from halfbyte.tokenizer import Tokenizer, load_folder_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


class Entries:
    """Metadata from a dict, as _core.Checkpoint gives it: arrays of numbers as numpy, texts in arrays as bytes."""

    def __init__(self, **entries: Any) -> None:
        self.entries = {name.replace("__", "."): value for name, value in entries.items()}

    def metadata(self, key: str) -> Any:
        value = self.entries.get(key.removeprefix("tokenizer."))
        if isinstance(value, list):
            return [v.encode() for v in value] if value and isinstance(value[0], str) else np.array(value)
        return value


def load(**entries: Any) -> Tokenizer:
    return load_gguf_tokenizer(Entries(**entries), "file.gguf")


# ---- the real file


@pytest.fixture(scope="module")
def smollm2_tokenizer(smollm2_path: Path) -> Tokenizer:
    return load_gguf_tokenizer(_core.Checkpoint(str(smollm2_path)), str(smollm2_path))


def test_smollm2_ids(smollm2_path: Path, smollm2_tokenizer: Tokenizer) -> None:
    # transformers' converter doesn't know that "smollm" cuts digits apart: no digits here.
    theirs = AutoTokenizer.from_pretrained(str(smollm2_path.parent), gguf_file=smollm2_path.name)
    chat = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    texts = [*TEXTS, chat, "<|endoftext|>x<repo_name>", "<|im_startx|>", *random_texts(1, 300, digits=False)]
    assert smollm2_tokenizer.encode_batch(texts) == [theirs(t)["input_ids"] for t in texts]


@pytest.mark.parametrize(
    ("text", "ids"),
    [  # computed with llama.cpp (llama-cpp-python 0.3.36)
        (
            "The year 1234567 and 3.14159",
            [504, 713, 216, 33, 34, 35, 36, 37, 38, 39, 284, 216, 35, 30, 33, 36, 33, 37, 41],
        ),
        ("x²½ ⅣⅤ ①②", [104, 19133, 16738, 216, 173, 223, 113, 173, 223, 114, 216, 173, 235, 250, 173, 235, 111]),
        ("हिन्दी १२३", [4300, 134, 27011, 30658, 16525, 44757, 37189, 216, 9310, 117, 9310, 118, 9310, 119]),
        ("v1.2.3-rc4", [102, 33, 30, 34, 30, 35, 29, 6506, 36]),
        ("0 00 000 0000", [32, 216, 32, 32, 216, 32, 32, 32, 216, 32, 32, 32, 32]),
    ],
)
def test_smollm2_digits(smollm2_tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert smollm2_tokenizer.encode(text) == ids


def test_smollm2_facts(smollm2_tokenizer: Tokenizer) -> None:
    settings = smollm2_tokenizer.settings
    assert settings.special_tokens == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    assert settings.stop_ids == (2, 0)
    assert "<|im_start|>" in settings.chat_templates["default"]
    assert smollm2_tokenizer.vocab_size == 49152


def test_smollm2_pieces(smollm2_tokenizer: Tokenizer) -> None:
    pieces = smollm2_tokenizer.vocabulary_pieces()
    assert len(pieces) == 49152
    assert pieces[:17] == [b""] * 17
    for text in [*TEXTS, *DIGITS, *random_texts(2, 100)]:
        assert b"".join(pieces[i] for i in smollm2_tokenizer.encode(text)).decode() == text


# ---- byte-level BPE


def byte_level_entries(**changes: Any) -> dict[str, Any]:
    state = json.loads(byte_level_tokenizer().to_str())
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    merges = [" ".join(m) if isinstance(m, list) else m for m in state["model"]["merges"]]
    return {
        "ggml__model": "gpt2",
        "ggml__pre": "gpt-2",
        "ggml__tokens": tokens,
        "ggml__token_type": [CONTROL, CONTROL] + [NORMAL] * (len(tokens) - 2),
        "ggml__merges": merges,
        "ggml__eos_token_id": 0,
        "ggml__bos_token_id": 1,
    } | changes


def test_byte_level_is_the_tokenizer_it_was_made_from() -> None:
    ours, theirs = load(**byte_level_entries()), byte_level_tokenizer()
    texts = [*TEXTS, *DIGITS, *random_texts(3, 200), "<|start|>a<|end|>"]
    assert ours.encode_batch(texts) == [theirs.encode(t).ids for t in texts]


PRE_TEXT = "It's 12345 DON'T  x\n\n y'all!!! Ünï 三 \t."


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", "It|'s| 12345| DON|'|T| | x|\n\n| y|'|all|!!!| Ünï| 三| |\t|."),
        ("smollm", "It|'s| |1|2|3|4|5| DON|'|T| | x|\n\n| y|'|all|!!!| Ünï| 三| |\t|."),
        ("llama-bpe", "It|'s| |123|45| DON|'T| | x|\n\n| y|'all|!!!| Ünï| 三| |\t|."),
        ("qwen2", "It|'s| |1|2|3|4|5| DON|'T| | x|\n\n| y|'all|!!!| Ünï| 三| |\t|."),
        ("tekken", "It|'s| |1|2|3|4|5| DON|'T| | x|\n\n| y|'all|!!!| Ünï| 三| |\t|."),
        ("gpt-4o", "It's| |123|45| DON'T| | x|\n\n| y|'all|!!!| Ünï| 三| |\t|."),
        ("default", "It|'|s| |123|45| DON|'|T| | x|\n\n| y|'|all|!!!| Ünï| 三| \t|."),
    ],
)
def test_pre_tokenizers(pre: str, pieces: str) -> None:
    backend = load(**byte_level_entries(ggml__pre=pre)).backend
    assert backend.pre_tokenizer is not None
    cuts = [PRE_TEXT[a:b] for _, (a, b) in backend.pre_tokenizer.pre_tokenize_str(PRE_TEXT)]
    assert cuts == pieces.split("|")


def test_every_llama_pre_tokenizer_is_the_converters_own(tmp_path: Path) -> None:
    """Where transformers knows a name too, both cut alike."""
    entries = byte_level_entries()
    texts = [t for t in [*TEXTS, *DIGITS, *random_texts(4, 60)] if t.isascii()]
    for pre in ("llama-bpe", "qwen2", "tekken", "gpt-4o", "dbrx", "gpt-2"):
        path = tmp_path / f"{pre}.gguf"
        write_gguf(path, entries | {"ggml__pre": pre})
        theirs = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=path.name)
        ours = load(**entries | {"ggml__pre": pre, "ggml__add_bos_token": False})
        for text in texts:
            assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], (pre, text)


def write_gguf(path: Path, entries: dict[str, Any]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in entries.items():
        key = "tokenizer." + name.replace("__", ".")
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.add_uint32("llama.block_count", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["a"]),
        ({"ggml__add_bos_token": True}, ["<|start|>", "a"]),
        ({"ggml__add_bos_token": True, "ggml__add_eos_token": True}, ["<|start|>", "a", "<|end|>"]),
        ({"ggml__pre": "llama-bpe"}, ["<|start|>", "a"]),
        ({"ggml__pre": "llama-bpe", "ggml__add_bos_token": False}, ["a"]),
        ({"ggml__add_space_prefix": True}, ["Ġa"]),
    ],
)
def test_tokens_round_a_text(changes: dict[str, Any], expected: list[str]) -> None:
    tokenizer = load(**byte_level_entries(**changes))
    assert [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("a")] == expected


def test_user_defined_tokens_stay_whole_and_show() -> None:
    entries = byte_level_entries()
    entries["ggml__tokens"] = [*entries["ggml__tokens"], "<think> "]
    entries["ggml__token_type"] = [*entries["ggml__token_type"], USER_DEFINED]
    tokenizer = load(**entries)
    index = len(entries["ggml__tokens"]) - 1
    assert index in tokenizer.encode("a<think> b")
    assert tokenizer.vocabulary_pieces()[index] == b"<think> "
    assert tokenizer.decode(tokenizer.encode("a<think> b")) == "a<think> b"


def test_end_tokens() -> None:
    entries = byte_level_entries()
    entries["ggml__tokens"] = ["<|im_end|>", *entries["ggml__tokens"][1:], "<|eot_id|>", "<|endoftext|>"]
    entries["ggml__token_type"] = [CONTROL, CONTROL, *entries["ggml__token_type"][2:], CONTROL, NORMAL]
    size = len(entries["ggml__tokens"])
    assert load(**entries).stop_ids == (0, size - 2)  # the last is an ordinary token here
    assert load(**entries, ggml__eot_token_id=5).stop_ids == (0, 5, size - 2)


# ---- SentencePiece BPE


def sentencepiece_entries(**changes: Any) -> dict[str, Any]:
    state = json.loads(metaspace_tokenizer().to_str())
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(tokens) - 259)
    # as in Llama 2: merged tokens score by their rank, single characters below all of them
    merged = {"".join(m): -float(n) for n, m in enumerate(reversed_first(state["model"]["merges"]))}
    scores = [
        0.0 if kind != NORMAL else merged.get(t, -1e6 - i)
        for i, (t, kind) in enumerate(zip(tokens, types, strict=True))
    ]
    return {
        "ggml__model": "llama",
        "ggml__tokens": tokens,
        "ggml__token_type": types,
        "ggml__scores": scores,
        "ggml__bos_token_id": 1,
        "ggml__eos_token_id": 2,
    } | changes


def reversed_first(merges: list[Any]) -> list[tuple[str, str]]:
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges]


def test_sentencepiece_ids(tmp_path: Path) -> None:
    entries = sentencepiece_entries()
    ours, source = load(**entries), metaspace_tokenizer()
    texts = [*TEXTS, *DIGITS, *random_texts(5, 200)]
    assert ours.encode_batch(texts, add_special_tokens=False) == [source.encode(t).ids for t in texts]
    path = tmp_path / "spm.gguf"
    write_gguf(path, entries)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path), gguf_file=path.name)
    for text in texts:
        if not text.startswith(" "):  # transformers merges a first space with the prefix; SentencePiece keeps both
            assert ours.encode(text) == theirs(text)["input_ids"], text


def test_sentencepiece_special_tokens_and_decoding() -> None:
    tokenizer = load(**sentencepiece_entries())
    ids = tokenizer.encode("hi</s>there é€")
    assert ids[0] == 1
    assert 2 in ids
    assert tokenizer.decode(tokenizer.encode("the dog é€😀")) == "the dog é€😀"
    pieces = tokenizer.vocabulary_pieces()
    assert b"".join(pieces[i] for i in tokenizer.encode("the dog é€😀")).decode() == " the dog é€😀"
    assert pieces[:4] == [b"", b"", b"", b"\x00"]
    assert tokenizer.settings.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert load(**sentencepiece_entries(ggml__add_bos_token=False)).encode("a")[0] != 1
    assert load(**sentencepiece_entries(ggml__add_space_prefix=False)).decode([1]) == ""


# ---- WordPiece


def test_wordpiece_is_the_tokenizer_it_was_made_from(minilm_path: Path) -> None:
    theirs = load_folder_tokenizer(minilm_path)
    vocab = theirs.backend.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)

    def spelt(token: str) -> str:  # as llama.cpp's converter writes them
        if token.startswith("[") and token.endswith("]"):
            return token
        return token[2:] if token.startswith("##") else "▁" + token

    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    ours = load(
        ggml__model="bert",
        ggml__tokens=[spelt(t) for t in tokens],
        ggml__token_type=[CONTROL if t in special else NORMAL for t in tokens],
        ggml__bos_token_id=101,
        ggml__seperator_token_id=102,
        ggml__unknown_token_id=100,
    )
    texts = [*TEXTS, *DIGITS, *random_texts(6, 200), "a [MASK] b"]
    assert ours.encode_batch(texts) == theirs.encode_batch(texts)
    assert ours.vocabulary_pieces() == theirs.vocabulary_pieces()


# ---- errors


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"ggml__model": "rwkv"}, UnsupportedError, "rwkv"),
        ({"ggml__model": None}, UnsupportedError, "no tokenizer"),
        ({"ggml__pre": "martian"}, UnsupportedError, "martian"),
        ({"ggml__tokens": None}, CorruptFileError, r"tokenizer\.ggml\.tokens"),
        ({"ggml__merges": None}, CorruptFileError, "merges"),
        ({"ggml__merges": ["abc"]}, CorruptFileError, "two parts"),
        ({"ggml__merges": ["zz qq"]}, CorruptFileError, "merges"),
        ({"ggml__token_type": [1]}, CorruptFileError, "token_type has 1 entries"),
        ({"ggml__eos_token_id": 99999}, CorruptFileError, "eos_token_id is 99999"),
        ({"ggml__model": "llama", "ggml__merges": None}, CorruptFileError, "scores"),
    ],
)
def test_errors(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        load(**byte_level_entries(**changes))


def test_tokens_that_are_not_utf8() -> None:
    entries = Entries(**byte_level_entries())
    good = entries.metadata("tokenizer.ggml.tokens")
    bad = [*good[:-1], b"\xff\xfe"]
    entries.metadata = lambda key: bad if key.endswith(".tokens") else Entries.metadata(entries, key)  # type: ignore[method-assign]
    with pytest.raises(CorruptFileError, match="UTF-8"):
        load_gguf_tokenizer(entries, "file.gguf")
