"""``tokenizer.ggml.*`` and the pooling of GGUF files, for other tools; halfbyte reads the files that come along."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gguf

_POOLING = {"pooling_mode_mean_tokens": "MEAN", "pooling_mode_cls_token": "CLS", "pooling_mode_lasttoken": "LAST"}


def add_vocabulary(writer: gguf.GGUFWriter, package: Any, files: dict[str, str]) -> None:
    """Byte-level BPE as "gpt2", WordPiece as "bert"; of other tokenizers nothing.

    SentencePiece's ("llama", "t5") are told by scores, which a tokenizer.json of merges hasn't.
    """
    document = json.loads(files["tokenizer.json"])
    model = document.get("model", {})
    decoder = json.dumps(document.get("decoder") or {})
    if model.get("type") == "BPE" and "ByteLevel" in decoder:
        _add_byte_level(writer, package, document)
    elif model.get("type") == "WordPiece" and model.get("continuing_subword_prefix", "##") == "##":
        _add_wordpiece(writer, package, document)
    else:
        return
    settings = json.loads(files.get("tokenizer_config.json", "{}"))
    vocab = _vocabulary(document)
    for key, add in (
        ("bos_token" if settings.get("bos_token") else "cls_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("unk_token", writer.add_unk_token_id),
        ("sep_token", writer.add_sep_token_id),
        ("pad_token", writer.add_pad_token_id),
        ("mask_token", writer.add_mask_token_id),
    ):
        token = settings.get(key)
        content = token.get("content") if isinstance(token, dict) else token
        if content in vocab:
            add(vocab[content])
    if isinstance(template := settings.get("chat_template") or files.get("chat_template.jinja"), str):
        writer.add_chat_template(template)


def add_pooling(writer: gguf.GGUFWriter, package: Any, files: dict[str, str]) -> None:
    """How vectors of tokens become one, of a folder of sentence-transformers."""
    config = json.loads(files.get("1_Pooling/config.json", "{}"))
    modes = [kind for key, kind in _POOLING.items() if config.get(key)]
    if len(modes) == 1:
        writer.add_pooling_type(package.PoolingType[modes[0]])


def _vocabulary(document: dict[str, Any]) -> dict[str, int]:
    """Ids by token, added tokens included."""
    vocab: dict[str, int] = dict(document["model"]["vocab"])
    vocab.update({t["content"]: t["id"] for t in document.get("added_tokens", [])})
    return vocab


def _tokens(document: dict[str, Any], package: Any) -> tuple[list[str], list[int]]:
    """Tokens by id, the gaps filled, and their types."""
    by_id = {index: token for token, index in _vocabulary(document).items()}
    special = {t["content"] for t in document.get("added_tokens", []) if t.get("special")}
    control, normal, unused = package.TokenType.CONTROL, package.TokenType.NORMAL, package.TokenType.UNUSED
    count = max(by_id) + 1
    kinds = [unused if i not in by_id else control if by_id[i] in special else normal for i in range(count)]
    return [by_id.get(i, f"[PAD{i}]") for i in range(count)], kinds


def _add_byte_level(writer: gguf.GGUFWriter, package: Any, document: dict[str, Any]) -> None:
    tokens, kinds = _tokens(document, package)
    merges = [m if isinstance(m, str) else " ".join(m) for m in document["model"].get("merges", [])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)


def _add_wordpiece(writer: gguf.GGUFWriter, package: Any, document: dict[str, Any]) -> None:
    """GGUF marks the beginning of a word ("▁word") where tokenizer.json marks what goes on ("##ing")."""
    tokens, kinds = _tokens(document, package)
    bracketed = re.compile(r"\[.*\]")
    marked = [
        t if bracketed.fullmatch(t) or kind != package.TokenType.NORMAL else t[2:] if t.startswith("##") else "▁" + t
        for t, kind in zip(tokens, kinds, strict=True)
    ]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(marked)
    writer.add_token_types(kinds)
