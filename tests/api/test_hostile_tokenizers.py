"""Tokenizer data, chat templates and pooling settings made to do harm: one malformed file, one named error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_gguf_tokenizer import Entries, byte_level_entries, sentencepiece_entries
from test_tokenizer import save
from tiny import byte_level_tokenizer

from halfbyte.chat import render
from halfbyte.errors import CorruptFileError, Error, InputOutputError, InvalidArgumentError
from halfbyte.gguf_tokenizer import load_gguf_tokenizer
from halfbyte.pooling import read_folder, read_gguf
from halfbyte.tokenizer import TokenizerSettings, load_folder_tokenizer

DEEP = "[" * 100_000 + "]" * 100_000


class Metadata:
    """Values as they are, where Entries would turn lists into what a file holds."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self.entries = entries

    def metadata(self, key: str) -> Any:
        return self.entries.get(key)


# --- GGUF -----------------------------------------------------------------------------------------------------------

NUMBERS = np.arange(3, dtype=np.int32)
# What stands in the place of a good value, and the words of the error.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "model an array": ({"model": NUMBERS}, r"tokenizer\.ggml\.model must be a text"),
    "tokens a number": ({"tokens": 3}, r"tokenizer\.ggml\.tokens must be an array of texts, found 3"),
    "tokens a text": ({"tokens": "abc"}, r"tokens must be an array of texts, found 'abc'"),
    "tokens numbers": ({"tokens": NUMBERS}, r"tokens must be an array of texts"),
    "types a number": ({"token_type": 1}, r"token_type must be an array of finite numbers"),
    "types texts": ({"token_type": [b"1"]}, r"token_type must be an array of finite numbers"),
    "types NaN": ({"token_type": np.array([np.nan])}, r"token_type must be an array of finite numbers"),
    "merges numbers": ({"merges": NUMBERS}, r"merges must be an array of texts"),
    "merges a text": ({"merges": "a b"}, r"merges must be an array of texts, found 'a b'"),
    "merges not UTF-8": ({"merges": [b"\xff a"]}, r"merges: not UTF-8"),
    "merges of unknown tokens": ({"merges": [b"zz qq"]}, r"vocabulary and merges don't fit together.*zz"),
    "merges to an unknown token": ({"merges": [b"! \xc4\xa0"]}, r"vocabulary and merges don't fit together"),
    "pre a number": ({"pre": 1}, r"tokenizer\.ggml\.pre must be a text, found 1"),
    "id negative": ({"eos_token_id": -1}, r"eos_token_id is -1, but there are \d+ tokens"),
    "id beyond": ({"bos_token_id": 2**32 - 1}, r"bos_token_id is 4294967295, but there are \d+ tokens"),
    "id a text": ({"eos_token_id": "2"}, r"eos_token_id must be a token id, found '2'"),
    "id a fraction": ({"eos_token_id": 1.5}, r"eos_token_id must be a token id, found 1\.5"),
    "id NaN": ({"eos_token_id": float("nan")}, r"eos_token_id must be a token id, found nan"),
    "id true": ({"eos_token_id": True}, r"eos_token_id must be a token id, found True"),
    "id an array": ({"padding_token_id": NUMBERS}, r"padding_token_id must be a token id"),
    "flag an array": ({"add_bos_token": NUMBERS}, r"add_bos_token must be true or false"),
    "flag a text": ({"add_eos_token": "false"}, r"add_eos_token must be true or false, found 'false'"),
    "flag 2": ({"add_space_prefix": 2}, r"add_space_prefix must be true or false, found 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_gguf_values_of_a_wrong_kind(name: str) -> None:
    changes, text = WRONG[name]
    entries = Entries(**byte_level_entries())
    good = {f"tokenizer.{key}": entries.metadata(f"tokenizer.{key}") for key in entries.entries}
    with pytest.raises(CorruptFileError, match=rf"^file\.gguf: .*{text}"):
        load_gguf_tokenizer(
            Metadata(good | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}), "file.gguf"
        )


@pytest.mark.parametrize(
    ("scores", "text"),
    [
        (None, "one entry per token"),
        (np.zeros(5, np.float32), "one entry per token"),
        (np.full(600, np.nan, np.float32), "array of finite numbers"),
        (np.full(600, np.inf, np.float32), "array of finite numbers"),
        ([b"a"] * 600, "array of finite numbers"),
        (1.0, "array of finite numbers"),
        ("a" * 600, "array of finite numbers"),
    ],
)
def test_gguf_scores(scores: Any, text: str) -> None:
    entries = Entries(**sentencepiece_entries())
    good = {f"tokenizer.{key}": entries.metadata(f"tokenizer.{key}") for key in entries.entries}
    with pytest.raises(CorruptFileError, match=rf"tokenizer\.ggml\.scores must .*{text}"):
        load_gguf_tokenizer(Metadata(good | {"tokenizer.ggml.scores": scores}), "file.gguf")


@pytest.mark.parametrize("value", [1, "default", NUMBERS])
def test_gguf_chat_template_names(value: Any) -> None:
    entries = Entries(**byte_level_entries())
    good = {f"tokenizer.{key}": entries.metadata(f"tokenizer.{key}") for key in entries.entries}
    with pytest.raises(CorruptFileError, match=r"tokenizer\.chat_templates must be an array of texts"):
        load_gguf_tokenizer(Metadata(good | {"tokenizer.chat_templates": value}), "file.gguf")


@pytest.mark.parametrize("token", ["a $B b", "$9:3", "$A", " "])
def test_gguf_tokens_round_a_text_of_a_strange_spelling(token: str) -> None:
    """They are put into a template of the tokenizers package."""
    entries = byte_level_entries(ggml__add_bos_token=True)
    entries["ggml__tokens"] = [entries["ggml__tokens"][0], token, *entries["ggml__tokens"][2:]]
    tokenizer = load_gguf_tokenizer(Entries(**entries), "file.gguf")
    assert tokenizer.encode("ab") == [1, *tokenizer.encode("ab", add_special_tokens=False)]


@pytest.mark.parametrize(
    "files",
    [
        DEEP,
        '{"a": "\\ud800"}',
        '{"\\ud800": "a"}',
        '{"a\\u0000b": "a"}',
        '{"": "a"}',
        '{".": "a"}',
        '{"a": "b", "a": "c"}',
        '{"a": "b", "a/c": "d"}',
        '{"a": ' + "9" * 5000 + "}",
        3,
        b"\xff",
    ],
)
def test_carried_files(files: Any) -> None:
    for read in (load_gguf_tokenizer, read_gguf):
        with pytest.raises(CorruptFileError, match=r"halfbyte\.files"):
            read(Metadata({"halfbyte.files": files}), "file.gguf")


def test_carried_files_with_long_names_and_a_config_of_numbers() -> None:
    with pytest.raises(InputOutputError, match=r"halfbyte\.files: 'aaa.* can't be written"):
        load_gguf_tokenizer(Metadata({"halfbyte.files": json.dumps({"a" * 5000: ""})}), "file.gguf")
    with pytest.raises(CorruptFileError, match=r"halfbyte\.config must be a text"):
        load_gguf_tokenizer(Metadata({"halfbyte.files": "{}", "halfbyte.config": 3}), "file.gguf")


# --- Hugging Face folders -------------------------------------------------------------------------------------------


def edited(folder: Path, edit: Any) -> Path:
    """A folder whose tokenizer.json edit() has changed."""
    state = json.loads(byte_level_tokenizer().to_str())
    edit(state)
    save(folder, byte_level_tokenizer())
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return folder


TOKENIZERS: dict[str, Any] = {
    "a list": lambda state: state.update(model=[]),
    "no model": lambda state: state.pop("model"),
    "no vocabulary": lambda state: state["model"].pop("vocab"),
    "negative id": lambda state: state["model"]["vocab"].update(x=-1),
    "id beyond 32 bits": lambda state: state["model"]["vocab"].update(x=2**32),
    "id a text": lambda state: state["model"]["vocab"].update(x="1"),
    "merge of unknown tokens": lambda state: state["model"]["merges"].append(["zz", "qq"]),
    "merge of one token": lambda state: state["model"]["merges"].append("abc"),
    "merges a number": lambda state: state["model"].update(merges=3),
    "decoder nested deep": lambda state: state.update(decoder=json.loads("[" * 500 + "]" * 500)),
    "added token a text": lambda state: state.update(added_tokens=["a"]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizer_json(tmp_path: Path, name: str) -> None:
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json: the tokenizers package can't read it"):
        load_folder_tokenizer(edited(tmp_path / "t", TOKENIZERS[name]))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"null", DEEP.encode(), b"PK\3\4"])
def test_tokenizer_json_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "t", byte_level_tokenizer())
    (tmp_path / "t" / "tokenizer.json").write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"tokenizer\.json: the tokenizers package can't read it"):
        load_folder_tokenizer(tmp_path / "t")


def test_an_absurd_token_id_takes_no_memory(tmp_path: Path) -> None:
    """A list up to the greatest id would take 32 GB."""
    tokenizer = load_folder_tokenizer(
        edited(tmp_path / "t", lambda state: state["model"]["vocab"].update(far=2**32 - 1))
    )
    assert len(tokenizer.vocabulary_pieces(500)) == 500
    with pytest.raises(CorruptFileError, match=r"has \d+ tokens, and one of them has the id 4294967295"):
        tokenizer.vocabulary_pieces()


CONFIGS: dict[str, tuple[str, str]] = {
    "empty": ("", "not JSON"),
    "nested deep": (DEEP, "nested too deep"),
    "key twice": ('{"bos_token": "a", "bos_token": "b"}', "the key 'bos_token' appears twice"),
    "long number": ('{"model_max_length": ' + "9" * 5000 + "}", "not JSON"),
    "tokens a list": ('{"added_tokens_decoder": [1]}', "added_tokens_decoder must be an object by token id"),
    "id a word": ('{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder must be an object by token id"),
    "id negative": ('{"added_tokens_decoder": {"-5": {}}}', "added_tokens_decoder must be an object by token id"),
    "id of other digits": ('{"added_tokens_decoder": {"\\u0663": {}}}', "must be an object by token id"),
    "token a text": ('{"added_tokens_decoder": {"999": "a"}}', '999: expected an object with a text "content"'),
    "no content": ('{"added_tokens_decoder": {"999": {}}}', '999: expected an object with a text "content"'),
    "id out of order": ('{"added_tokens_decoder": {"99999": {"content": "new"}}}', "has id 99999"),
    "template a number": ('{"chat_template": 3}', "expected a string or a list"),
    "templates numbers": ('{"chat_template": [3]}', "expected objects with name and template"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_tokenizer_config(tmp_path: Path, name: str) -> None:
    content, text = CONFIGS[name]
    folder = save(tmp_path / "t", byte_level_tokenizer())
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(CorruptFileError, match=rf"tokenizer_config\.json: .*{text}"):
        load_folder_tokenizer(folder)


@pytest.mark.parametrize("value", ['"2"', "[1, [2]]", "1.5", "true", str(2**31), "9" * 4000, "{}"])
def test_end_tokens_of_a_wrong_kind(tmp_path: Path, value: str) -> None:
    folder = save(tmp_path / "t", byte_level_tokenizer())
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
    with pytest.raises(CorruptFileError, match=r"generation_config\.json: eos_token_id must be token ids"):
        load_folder_tokenizer(folder)


def test_lengths_that_say_nothing(tmp_path: Path) -> None:
    for i, value in enumerate(("true", "0.5", "-1", "1e30", '"512"', "null")):
        folder = save(tmp_path / str(i), byte_level_tokenizer())
        (folder / "tokenizer_config.json").write_text(f'{{"model_max_length": {value}}}')
        assert load_folder_tokenizer(folder).settings.max_length is None


def test_folders_in_the_place_of_files(tmp_path: Path) -> None:
    folder = save(tmp_path / "t", byte_level_tokenizer())
    (folder / "special_tokens_map.json").mkdir()
    with pytest.raises(InputOutputError, match=r"special_tokens_map\.json: can't be read"):
        load_folder_tokenizer(folder)


def test_any_part_of_tokenizer_json_may_be_wrong(tmp_path: Path) -> None:
    """With one value replaced the tokenizer is read or refused, and works on a text or refuses it: nothing else."""
    folder = save(tmp_path / "t", byte_level_tokenizer(300))
    rng = np.random.default_rng(1)
    wrong: list[Any] = [None, True, -1, 2**40, 1.5, "", "x", [], [[]], {}, {"type": "BPE"}]

    def replace_one(value: Any) -> None:
        while isinstance(value, (dict, list)) and value:
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            key = keys[int(rng.integers(len(keys)))]
            if not isinstance(value[key], (dict, list)) or rng.random() < 0.3:
                value[key] = wrong[int(rng.integers(len(wrong)))]
                return
            value = value[key]

    text = byte_level_tokenizer(300).to_str()
    for _ in range(150):
        state = json.loads(text)
        replace_one(state)
        (folder / "tokenizer.json").write_text(json.dumps(state))
        try:
            tokenizer = load_folder_tokenizer(folder)
            tokenizer.vocabulary_pieces()
            tokenizer.decode(tokenizer.encode("The quick 12"))
        except Error as error:
            assert str(folder) in str(error)


# --- pooling and chat templates -------------------------------------------------------------------------------------

TRANSFORMER = {"type": "sentence_transformers.models.Transformer", "path": ""}


def pooling_folder(folder: Path, files: dict[str, Any]) -> Path:
    modules = [TRANSFORMER, {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    for name, value in ({"modules.json": modules, "1_Pooling/config.json": {}} | files).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


POOLING: dict[str, tuple[dict[str, Any], str]] = {
    "modules nested deep": ({"modules.json": DEEP}, r"modules\.json: .*nested too deep"),
    "modules a number": ({"modules.json": "3"}, r"modules\.json: expected a list"),
    "modules numbers": ({"modules.json": "[3]"}, r"modules\.json: expected a list"),
    "path upwards": ({"modules.json": [TRANSFORMER | {"path": "../x"}]}, "'../x' is not one of a folder inside"),
    "path from the root": ({"modules.json": [TRANSFORMER | {"path": "/etc"}]}, "'/etc' is not one of a folder inside"),
    "mode a number": ({"1_Pooling/config.json": {"pooling_mode": 3}}, "pooling_mode must be a text, found 3"),
    "modes lists": ({"1_Pooling/config.json": {"pooling_mode": [[]]}}, "pooling_mode must be a text"),
    "prompts a list": (
        {"config_sentence_transformers.json": {"default_prompt_name": "a", "prompts": ["a"]}},
        "prompts has no such text",
    ),
    "prompt name a list": (
        {"config_sentence_transformers.json": {"default_prompt_name": [], "prompts": {}}},
        "prompts has no such text",
    ),
    "length true": (
        {"sentence_bert_config.json": {"max_seq_length": True}},
        "max_seq_length must be a positive integer",
    ),
    "length 0": ({"sentence_bert_config.json": {"max_seq_length": 0}}, "max_seq_length must be a positive integer"),
}


@pytest.mark.parametrize("name", POOLING)
def test_pooling(tmp_path: Path, name: str) -> None:
    files, text = POOLING[name]
    with pytest.raises(CorruptFileError, match=text):
        read_folder(pooling_folder(tmp_path / "m", files))


@pytest.mark.parametrize("value", [9, -1, 1.5, "mean", NUMBERS])
def test_pooling_of_gguf(value: Any) -> None:
    with pytest.raises(Error, match=r"bert\.pooling_type .*: halfbyte pools by mean"):
        read_gguf(Metadata({"bert.pooling_type": value}), "bert")


@pytest.mark.parametrize(
    ("template", "error", "text"),
    [
        ("{% for %}", CorruptFileError, "chat template, line 1"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", CorruptFileError, "can't be compiled"),
        ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, CorruptFileError, "can't be compiled"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", InvalidArgumentError, "fails on these messages"),
        ("{{ messages[7].content.x }}", InvalidArgumentError, "refuses these messages"),
        ("{{ 1 // 0 }}", InvalidArgumentError, "fails on these messages"),
        ("{{ ''.__class__.__mro__ }}", Error, "sandbox"),
        ("{{ range(10 ** 9) | list }}", InvalidArgumentError, "fails on these messages"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_chat_templates(template: str, error: type[Exception], text: str) -> None:
    settings = TokenizerSettings(where="folder", chat_templates={"default": template})
    limit = sys.getrecursionlimit()
    with pytest.raises(error, match=text):
        render(settings, [{"role": "user", "content": "a"}])
    assert sys.getrecursionlimit() == limit
