"""Text to token ids and back: the ``tokenizers`` package, and what a checkpoint's files say around it.

The behaviour is that of ``transformers.AutoTokenizer`` on the same folder: which special tokens ``encode`` adds, which
ids end a generation, which chat templates there are.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import CorruptFileError, InputOutputError, InvalidArgumentError, NotFoundError, UnsupportedError
from .files import parse_json

if TYPE_CHECKING:
    import tokenizers  # imported when a text is first met: token ids need none of it

_NAMED_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Metadata(Protocol):
    """What a GGUF file says: ``halfbyte._core.Checkpoint``, or anything with its ``metadata``."""

    def metadata(self, key: str) -> Any:
        """One value; None if absent."""


@dataclass(frozen=True)
class TokenizerSettings:
    """What a checkpoint says about its tokenizer beyond the vocabulary."""

    where: str  # file or folder, for error texts
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # "bos_token" -> "<s>"
    stop_ids: tuple[int, ...] = ()  # ids that end a generation
    chat_templates: Mapping[str, str] = field(default_factory=dict)  # name -> jinja source; the usual name is "default"
    max_length: int | None = None  # tokenizer_config.json model_max_length, where it is a real bound


class Tokenizer:
    """Text <-> token ids of one checkpoint. Safe to use from many threads."""

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
        # Some tokenizer.json files carry the truncation and padding of a training run; transformers drops them too.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.settings = settings

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The ``tokenizers.Tokenizer`` underneath."""
        return self._backend

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end a generation."""
        return self.settings.stop_ids

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the special tokens (beginning of sequence, [CLS], ...) of the model's training."""
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True, max_length: int | None = None
    ) -> list[list[int]]:
        """Token ids of every text; ``max_length`` cuts the end of the text, not the special tokens behind it."""
        for text in texts:
            if not isinstance(text, str):
                raise InvalidArgumentError(f"encode: expected str, got {type(text).__name__}")
        if max_length is None:
            return [e.ids for e in self._backend.encode_batch(list(texts), add_special_tokens=add_special_tokens)]
        room = max_length - (self._backend.num_special_tokens_to_add(False) if add_special_tokens else 0)
        if room < 0:
            raise InvalidArgumentError(f"encode: max_length {max_length} leaves no room for the special tokens")
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        for encoding in encodings:
            encoding.truncate(room)
        return [self._backend.post_process(e, None, add_special_tokens).ids for e in encodings]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int | None:
        """The id of a token's exact spelling; None if the vocabulary has no such token."""
        return self._backend.token_to_id(token)

    def vocabulary_pieces(self, size: int | None = None) -> list[bytes]:
        """The bytes that each token id adds to a text; empty for special tokens, which show nothing.

        Args:
            size: ids below it are wanted, as many as the model has; None: all of the tokenizer's.

        Raises:
            UnsupportedError: the decoder isn't one whose tokens have bytes of their own.
            CorruptFileError: an id far beyond the number of tokens.

        """
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        added_tokens = self._backend.get_added_tokens_decoder()
        if size is None:
            size = max((*vocabulary.values(), *added_tokens), default=-1) + 1
            count = len(vocabulary) + len(added_tokens)
            if size > 16 * count + 65536:
                raise CorruptFileError(
                    f"{self.settings.where}: the tokenizer has {count} tokens, and one of them has the id {size - 1}"
                )
        piece = _piece_reader(json.loads(self._backend.to_str())["decoder"], self.settings.where)
        pieces = [b""] * size
        for token, index in vocabulary.items():
            if index < size:
                pieces[index] = piece(token)
        for index, added in added_tokens.items():
            if index < size:
                pieces[index] = b"" if added.special else added.content.encode()
        return pieces


# ---- the bytes of a token


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others for U+0100 onwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(rest)}


def _byte_level_piece(token: str) -> bytes:
    alphabet = byte_alphabet()
    if all(c in alphabet for c in token):
        return bytes(alphabet[c] for c in token)
    return token.encode()  # as the ByteLevel decoder does with a token outside its alphabet


def _metaspace_piece(token: str, replacement: str, byte_fallback: bool) -> bytes:
    if byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(replacement, " ").encode()


def _piece_reader(decoder: dict[str, Any] | None, where: str) -> Any:
    """A function from a token's spelling to its bytes, after the decoder of tokenizer.json."""
    steps = [] if decoder is None else decoder.get("decoders", [decoder])
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return _byte_level_piece
    if not kinds:
        return lambda token: token.encode()
    if kinds == {"WordPiece"}:
        prefix = steps[0].get("prefix", "##")
        return lambda token: (token[len(prefix) :] if token.startswith(prefix) else " " + token).encode()
    if kinds == {"BPEDecoder"}:
        suffix = steps[0].get("suffix", "</w>")
        return lambda token: token.replace(suffix, " ").encode()
    if kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        replacement = "▁"
        for step in steps:
            if step["type"] == "Metaspace":
                replacement = step["replacement"]
            elif step["type"] == "Replace":
                pattern = step["pattern"].get("String")
                if pattern is None or step["content"] != " ":
                    raise UnsupportedError(f"{where}: tokenizer decoder Replace {step['pattern']} isn't one for spaces")
                replacement = pattern
        fallback = "ByteFallback" in kinds
        return lambda token: _metaspace_piece(token, replacement, fallback)
    raise UnsupportedError(f"{where}: tokenizer decoder {sorted(kinds)} isn't supported for streaming text")


# ---- Hugging Face folders


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} where there is no such file. Raises CorruptFileError, InputOutputError."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputOutputError(f"{path}: can't be read: {error.strerror or error}") from None
    value = parse_json(text, str(path))
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def load_folder_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json and tokenizer_config.json.

    Which special tokens go round a text is told by tokenizer.json alone: where there is one, ``transformers`` too
    ignores "add_bos_token" and "add_eos_token" of tokenizer_config.json.

    Raises:
        NotFoundError: no tokenizer.json.
        CorruptFileError: one that can't be read.

    """
    import tokenizers  # noqa: PLC0415

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise NotFoundError(
            f"{folder}: no tokenizer.json, so text can't become token ids; pass token ids, or save the tokenizer there "
            "with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    with package_errors(f"{path}: the tokenizers package can't read it"):
        backend = tokenizers.Tokenizer.from_file(str(path))
    config = read_json(folder / "tokenizer_config.json")
    _add_missing_tokens(backend, config, folder)
    specials = _special_tokens(config, read_json(folder / "special_tokens_map.json"))
    limit = config.get("model_max_length")
    settings = TokenizerSettings(
        where=str(folder),
        special_tokens=specials,
        stop_ids=_stop_ids(folder, backend, specials),
        chat_templates=_chat_templates(folder, config),
        max_length=_max_length(limit),
    )
    return Tokenizer(backend, settings)


@contextlib.contextmanager
def package_errors(text: str) -> Iterator[None]:
    """What the tokenizers package raises, as CorruptFileError: plain Exception, and a BaseException where it panics."""
    try:
        yield
    except (CorruptFileError, UnsupportedError, ImportError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CorruptFileError(f"{text}: {error}") from None
        raise


def _max_length(limit: Any) -> int | None:
    """model_max_length, where it is a real bound: 1e30 says "none"."""
    is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    return int(limit) if is_number and 1 <= limit < 1e9 else None


def _token_text(value: Any) -> str | None:
    """A special token: a string, or the dict that transformers writes for an AddedToken."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    """Named special tokens; the first config that has one wins."""
    found: dict[str, str] = {}
    for config in configs:
        for name in _NAMED_SPECIALS:
            text = _token_text(config.get(name))
            if text is not None:
                found.setdefault(name, text)
    return found


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any], folder: Path) -> None:
    """Tokens of tokenizer_config.json "added_tokens_decoder" that tokenizer.json doesn't have."""
    import tokenizers  # noqa: PLC0415

    known = backend.get_added_tokens_decoder()
    where = f"{folder}/tokenizer_config.json: added_tokens_decoder"
    entries = config.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict) or not all(i.isascii() and i.isdigit() and len(i) < 11 for i in entries):
        raise CorruptFileError(f"{where} must be an object by token id")
    for index, entry in sorted((int(i), entry) for i, entry in entries.items() if int(i) not in known):
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise CorruptFileError(f'{where}: {index}: expected an object with a text "content", found {entry!r:.80}')
        flags = {k: bool(entry.get(k, False)) for k in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        backend.add_tokens([tokenizers.AddedToken(entry["content"], **flags)])
        if backend.token_to_id(entry["content"]) != index:
            raise CorruptFileError(
                f"{folder}/tokenizer_config.json: added token {entry['content']!r} has id {index}, "
                f"but tokenizer.json leaves it {backend.token_to_id(entry['content'])}"
            )


def set_bos_eos(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Make ``encode`` put these tokens round a text, and no others."""
    from tokenizers import processors  # noqa: PLC0415

    # Names of our own in the template: a token may be spelt with spaces or like one of its placeholders.
    named = {name: token for name, token in (("bos", bos), ("eos", eos)) if token is not None}
    single = " ".join([*(["bos"] if "bos" in named else []), "$A", *(["eos"] if "eos" in named else [])])
    special = [{"id": n, "ids": [backend.token_to_id(t)], "tokens": [t]} for n, t in named.items()]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)


def config_stop_ids(folder: Path) -> tuple[int, ...]:
    """End-of-sequence ids that generation_config.json gives, or else config.json, as ``transformers`` reads them."""
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) and -(2**31) <= i < 2**31 for i in ids):
                raise CorruptFileError(f"{folder / name}: eos_token_id must be token ids, found {value!r:.80}")
            return tuple(ids)
    return ()


def _stop_ids(folder: Path, backend: tokenizers.Tokenizer, specials: Mapping[str, str]) -> tuple[int, ...]:
    """The config's ids, and the tokenizer's own end-of-sequence token: in chat fine-tunes that is what ends a turn."""
    own = backend.token_to_id(specials["eos_token"]) if "eos_token" in specials else None
    return tuple(dict.fromkeys((*config_stop_ids(folder), *(() if own is None else (own,)))))


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name: chat_template.jinja and additional_chat_templates/*.jinja, else tokenizer_config.json."""
    found: dict[str, str] = {}
    value = config.get("chat_template")
    if isinstance(value, str):
        found["default"] = value
    elif isinstance(value, list):
        for entry in value:
            if not isinstance(entry, dict) or not isinstance(entry.get("template"), str):
                raise CorruptFileError(
                    f"{folder}/tokenizer_config.json: chat_template: expected objects with name and template"
                )
            found[str(entry.get("name", "default"))] = entry["template"]
    elif value is not None:
        raise CorruptFileError(f"{folder}/tokenizer_config.json: chat_template: expected a string or a list")
    try:
        own = folder / "chat_template.jinja"
        if own.is_file():
            found["default"] = own.read_text(encoding="utf-8")
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            found[path.stem] = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{folder}: a chat template isn't UTF-8: {error}") from None
    return found
