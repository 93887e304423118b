"""The tokenizer inside a GGUF file, rebuilt from its metadata as a ``tokenizers.Tokenizer``.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, section "Tokenizer". What they leave open (the
pre-tokenizer behind a name, defaults for the beginning of sequence) follows llama.cpp's ``src/llama-vocab.cpp``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import CorruptFileError, UnsupportedError
from .files import carried_files
from .tokenizer import (
    Metadata,
    Tokenizer,
    TokenizerSettings,
    load_folder_tokenizer,
    package_errors,
    set_bos_eos,
)

if TYPE_CHECKING:
    import tokenizers

# tokenizer.ggml.token_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

# ---- byte-level BPE: how a text is cut before the merges, by tokenizer.ggml.pre

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Pre(NamedTuple):
    splits: tuple[str, ...]  # applied one after the other, each to the pieces of the one before
    ignore_merges: bool = False  # a piece that is a token stays whole, whatever the merges say
    add_bos: bool = False  # where tokenizer.ggml.add_bos_token is absent
    nfc: bool = False  # the models' own tokenizer.json normalises to NFC


_DEFAULT_PRE = _Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))
_GPT2_PRE = _Pre((_GPT2,))
_DIGITS_PRE = _Pre((r"\p{N}", _GPT2))
_LLAMA3_PRE = _Pre((_LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2_PRE = _Pre((_QWEN2,), nfc=True)

_PRE: dict[str, _Pre] = {
    "default": _DEFAULT_PRE,
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "roberta-bpe"), _GPT2_PRE),
    **dict.fromkeys(("jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code"), _GPT2_PRE),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"), _DIGITS_PRE),
    "command-r": _DIGITS_PRE._replace(nfc=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3"), _LLAMA3_PRE),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), _Pre((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"), _QWEN2_PRE),
    "falcon": _Pre((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "tekken": _Pre((_TEKKEN,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _Pre((_GPT4O,))),
}

# Spellings that end a generation wherever they are control tokens: older files name only one end-of-sequence id.
_END_TOKENS = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>",
    "_<EOT>",
)  # fmt: skip


def load_gguf_tokenizer(checkpoint: Metadata, where: str) -> Tokenizer:
    """The tokenizer of a GGUF file.

    Raises:
        UnsupportedError: a tokenizer model or pre-tokenizer not known here; the text names it.
        CorruptFileError: metadata that contradicts itself.

    """
    with carried_files(checkpoint, where) as folder:
        if folder is not None:
            return load_folder_tokenizer(folder)
    vocabulary = _Vocabulary(checkpoint, where)
    builders = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe, "bert": _wordpiece}
    if vocabulary.model not in builders:
        raise UnsupportedError(
            f"{where}: tokenizer.ggml.model {vocabulary.model!r} isn't supported (supported: {', '.join(builders)}); "
            "token ids still work (generate_tokens, logits)"
        )
    with package_errors(f"{where}: the tokenizer's vocabulary and merges don't fit together"):
        backend, bos, eos = builders[vocabulary.model](vocabulary)
        _add_special_tokens(backend, vocabulary)
        set_bos_eos(backend, bos, eos)
    return Tokenizer(backend, vocabulary.settings())


class _Vocabulary:
    """The tokenizer.* metadata of one file, checked."""

    def __init__(self, checkpoint: Metadata, where: str) -> None:
        self.where = where
        self._checkpoint = checkpoint
        self.model = self.text("tokenizer.ggml.model")
        if self.model is None:
            raise UnsupportedError(
                f"{where}: the file holds no tokenizer (no tokenizer.ggml.model); "
                "token ids still work (generate_tokens, logits)"
            )
        tokens = checkpoint.metadata("tokenizer.ggml.tokens")
        if tokens is None:
            raise CorruptFileError(f"{where}: no tokenizer.ggml.tokens")
        self.tokens = self._texts("tokenizer.ggml.tokens", tokens)
        types = self._numbers("tokenizer.ggml.token_type")
        self.types: list[int] = [_NORMAL] * len(self.tokens) if types is None else [int(t) for t in types]
        if len(self.types) != len(self.tokens):
            raise CorruptFileError(
                f"{where}: tokenizer.ggml.token_type has {len(self.types)} entries for {len(self.tokens)} tokens"
            )
        self.ids = {token: index for index, token in enumerate(self.tokens)}

    def _texts(self, key: str, values: Sequence[bytes | str]) -> list[str]:
        """The values of an array of texts. Numpy arrays hold numbers; an empty one says nothing of its type."""
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
            raise CorruptFileError(f"{self.where}: {key} must be an array of texts, found {values!r:.80}")
        if not all(isinstance(v, (str, bytes)) for v in values):
            raise CorruptFileError(f"{self.where}: {key} must be an array of texts, found one of other values")
        try:
            return [v.decode("utf-8") if isinstance(v, bytes) else v for v in values]
        except UnicodeDecodeError as error:
            raise CorruptFileError(f"{self.where}: {key}: not UTF-8: {error}") from None

    def _numbers(self, key: str) -> list[int | float] | None:
        values = self._checkpoint.metadata(key)
        if values is None:
            return None
        found = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(found, list) or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in found):
            raise CorruptFileError(f"{self.where}: {key} must be an array of finite numbers")
        return found

    def text(self, key: str) -> str | None:
        value = self._checkpoint.metadata(key)
        if value is None:
            return None
        if not isinstance(value, (str, bytes)):
            raise CorruptFileError(f"{self.where}: {key} must be a text, found {value!r:.80}")
        return self._texts(key, [value])[0]

    def flag(self, key: str, fallback: bool) -> bool:
        value = self._checkpoint.metadata(key)
        if value is None:
            return fallback
        if not isinstance(value, int) or value not in (0, 1):
            raise CorruptFileError(f"{self.where}: {key} must be true or false, found {value!r:.80}")
        return bool(value)

    def merges(self) -> list[tuple[str, str]] | None:
        value = self._checkpoint.metadata("tokenizer.ggml.merges")
        if value is None:
            return None
        pairs = []
        for merge in self._texts("tokenizer.ggml.merges", value):
            cut = merge.find(" ", 1)  # a part may begin with a space
            if cut < 0:
                raise CorruptFileError(f"{self.where}: tokenizer.ggml.merges: {merge!r} isn't two parts and a space")
            pairs.append((merge[:cut], merge[cut + 1 :]))
        return pairs

    def scores(self) -> list[float]:
        value = self._numbers("tokenizer.ggml.scores")
        if value is None or len(value) != len(self.tokens):
            raise CorruptFileError(f"{self.where}: tokenizer.ggml.scores must have one entry per token")
        return [float(v) for v in value]

    def special(self, name: str, fallback: int | None = None) -> str | None:
        """The spelling of ``tokenizer.ggml.<name>_token_id``."""
        value = self._checkpoint.metadata(f"tokenizer.ggml.{name}_token_id")
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise CorruptFileError(
                f"{self.where}: tokenizer.ggml.{name}_token_id must be a token id, found {value!r:.80}"
            )
        index: int | None = fallback if value is None else value
        if index is None or (value is None and index >= len(self.tokens)):
            return None
        if not 0 <= index < len(self.tokens):
            raise CorruptFileError(
                f"{self.where}: tokenizer.ggml.{name}_token_id is {index}, but there are {len(self.tokens)} tokens"
            )
        return self.tokens[index]

    def bos_eos(self, add_bos: bool, add_eos: bool = False) -> tuple[str | None, str | None]:
        """The tokens that go round a text; the defaults are those of the tokenizer model."""
        sentencepiece = self.model == "llama"
        bos = self.special("bos", 1 if sentencepiece else None)
        eos = self.special("eos", 2 if sentencepiece else None)
        return (
            bos if self.flag("tokenizer.ggml.add_bos_token", add_bos) else None,
            eos if self.flag("tokenizer.ggml.add_eos_token", add_eos) else None,
        )

    def settings(self) -> TokenizerSettings:
        sentencepiece = self.model == "llama"
        named = {
            "bos_token": self.special("bos", 1 if sentencepiece else None),
            "eos_token": self.special("eos", 2 if sentencepiece else None),
            "unk_token": self.special("unknown", 0 if sentencepiece else None),
            "pad_token": self.special("padding"),
            "sep_token": self.special("seperator") or self.special("separator"),  # the key is misspelt in most files
            "cls_token": self.special("cls"),
            "mask_token": self.special("mask"),
        }
        specials = {name: token for name, token in named.items() if token is not None}
        stops = [named["eos_token"], self.special("eot"), self.special("eom")]
        stops += [t for t in _END_TOKENS if t in self.ids and self.types[self.ids[t]] == _CONTROL]
        return TokenizerSettings(
            where=self.where,
            special_tokens=specials,
            stop_ids=tuple(dict.fromkeys(self.ids[t] for t in stops if t is not None)),
            chat_templates=self._chat_templates(),
        )

    def _chat_templates(self) -> dict[str, str]:
        found = {}
        default = self.text("tokenizer.chat_template")
        if default is not None:
            found["default"] = default
        names = self._checkpoint.metadata("tokenizer.chat_templates")
        for name in self._texts("tokenizer.chat_templates", [] if names is None else names):
            source = self.text(f"tokenizer.chat_template.{name}")
            if source is not None:
                found[name] = source
        return found


_Built = tuple["tokenizers.Tokenizer", "str | None", "str | None"]  # and the tokens round a text


def _byte_level_bpe(vocabulary: _Vocabulary) -> _Built:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers  # noqa: PLC0415

    name = vocabulary.text("tokenizer.ggml.pre") or "default"
    if name not in _PRE:
        raise UnsupportedError(
            f"{vocabulary.where}: tokenizer.ggml.pre {name!r}: how this tokenizer cuts text isn't known here "
            f"(known: {', '.join(sorted(_PRE))}); token ids still work (generate_tokens, logits)"
        )
    pre = _PRE[name]
    merges = vocabulary.merges()
    if merges is None:
        raise CorruptFileError(f"{vocabulary.where}: a byte-level BPE tokenizer needs tokenizer.ggml.merges")
    backend = Tokenizer(models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=pre.ignore_merges))
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    prefix = vocabulary.flag("tokenizer.ggml.add_space_prefix", False)
    splits = [pre_tokenizers.Split(Regex(s), "isolated") for s in pre.splits]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(prefix, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    return backend, *vocabulary.bos_eos(add_bos=pre.add_bos)


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> _Built:
    """SentencePiece BPE (Llama 2, Mistral): spaces are "▁", bytes without a token are "<0x..>"."""
    from tokenizers import Tokenizer, decoders, models, normalizers  # noqa: PLC0415

    merges = vocabulary.merges() or _merges_from_scores(vocabulary)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=merges,
            unk_token=vocabulary.special("unknown", 0),
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # Spaces are kept as they come, and a text that is cut by special tokens gets its "▁" after each of them, as in
    # llama.cpp and in Llama 2's own tokenizer.json.
    prefix = vocabulary.flag("tokenizer.ggml.add_space_prefix", True)
    steps: list[Any] = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    parts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix else parts)
    return backend, *vocabulary.bos_eos(add_bos=True)


def _merges_from_scores(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """SentencePiece joins, again and again, the two neighbours whose union has the best score: merges in that order.

    The order among the splits of one token is that of ``transformers`` (generate_merges).
    """
    ids, scores = vocabulary.ids, vocabulary.scores()
    found: list[tuple[float, int, int, str, str]] = []
    for index, token in enumerate(vocabulary.tokens):
        if vocabulary.types[index] not in (_NORMAL, _USER_DEFINED) or ids[token] != index:
            continue
        splits = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(a, b) for a, b in splits if a in ids and b in ids]
        known.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(scores[index], len(a), len(b), a, b) for a, b in known]
    found.sort(key=lambda entry: entry[:3], reverse=True)
    return [(a, b) for *_, a, b in found]


def _wordpiece(vocabulary: _Vocabulary) -> _Built:
    """BERT's WordPiece. GGUF marks the beginning of a word ("▁word"); tokenizers marks the rest ("##ing")."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers  # noqa: PLC0415

    bracketed = re.compile(r"\[.*\]")
    tokens = []
    for token in vocabulary.tokens:
        if token.startswith("▁"):
            tokens.append(token[1:])
        else:
            tokens.append(token if bracketed.fullmatch(token) else "##" + token)
    ids = {token: index for index, token in enumerate(tokens)}
    unknown = vocabulary.special("unknown", 100) or "[UNK]"
    # No key says whether the model lowers its text; one whose vocabulary has no capitals does.
    lowercase = not any("A" <= c <= "Z" for t in tokens if not bracketed.fullmatch(t) for c in t)
    backend = Tokenizer(models.WordPiece(vocab=ids, unk_token=unknown, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    first = vocabulary.special("cls") or vocabulary.special("bos", 101)
    last = vocabulary.special("seperator") or vocabulary.special("separator") or vocabulary.special("eos", 102)
    return backend, first, last


def _add_special_tokens(backend: tokenizers.Tokenizer, vocabulary: _Vocabulary) -> None:
    """Control and user-defined tokens are found whole in a text; control tokens show nothing when decoded."""
    from tokenizers import AddedToken  # noqa: PLC0415

    special = {_CONTROL, _UNKNOWN}
    added = [
        AddedToken(token, normalized=False, special=kind in special)
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if (kind in special or kind == _USER_DEFINED) and token
    ]
    if vocabulary.model == "bert":
        added = [t for t in added if not t.content.startswith("▁")]  # converters mark whole-word tokens oddly
    before = backend.get_vocab_size(with_added_tokens=True)
    backend.add_tokens(added)
    if backend.get_vocab_size(with_added_tokens=True) != before:
        raise CorruptFileError(f"{vocabulary.where}: a special token isn't in the vocabulary that the merges make")
