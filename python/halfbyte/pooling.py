"""From token vectors to one sentence vector: what the files of sentence-transformers (modules.json ...) say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CorruptFileError, UnsupportedError
from .files import carried_files, parse_json
from .tokenizer import Metadata, read_json

POOLING_MODES = ("mean", "cls", "max", "last")  # what the core computes

# sentence-transformers' word -> the core's
_MODES = {"cls": "cls", "max": "max", "mean": "mean", "lasttoken": "last"}
_LEGACY_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# llama.cpp's enum llama_pooling_type
_GGUF_POOLING = {0: None, 1: "mean", 2: "cls", 3: "last"}


@dataclass(frozen=True)
class SentenceConfig:
    """What ``encode`` does by default."""

    pooling: str = "mean"  # sentence-transformers' default for a plain transformers checkpoint
    normalize: bool = False
    max_seq_length: int | None = None  # None: what the model and tokenizer allow
    do_lower_case: bool = False
    prompt: str = ""  # put before every sentence (config_sentence_transformers.json default_prompt_name)


def read_folder(folder: Path) -> SentenceConfig:
    """The settings of a Hugging Face folder; the defaults where it has no modules.json.

    Raises:
        UnsupportedError: a module or pooling mode that halfbyte doesn't compute; the text names it.
        CorruptFileError: files that contradict their format.

    """
    path = folder / "modules.json"
    if not path.is_file():
        return SentenceConfig()
    try:
        modules = parse_json(path.read_bytes(), str(path))
        kinds = [(str(m["type"]).rsplit(".", 1)[-1], str(m.get("path", ""))) for m in modules]
    except (TypeError, KeyError, AttributeError) as error:
        raise CorruptFileError(f"{path}: expected a list of objects with type and path: {error!r}") from None
    for _, subfolder in kinds:
        if Path(subfolder).is_absolute() or ".." in Path(subfolder).parts or "\0" in subfolder:
            raise CorruptFileError(f"{path}: the path {subfolder!r} is not one of a folder inside this one")
    pooling = "mean"
    normalize = False
    for position, (kind, subfolder) in enumerate(kinds):
        if kind == "Transformer" and position == 0:
            continue
        if kind == "Pooling" and position == 1:
            pooling = _pooling_mode(folder / subfolder / "config.json")
        elif kind == "Normalize" and position == len(kinds) - 1:
            normalize = True
        else:
            raise UnsupportedError(
                f"{path}: module {position} is {kind}; halfbyte computes Transformer, Pooling, Normalize in this "
                "order, and without that module the vectors would be wrong"
            )
    transformer = read_json(folder / kinds[0][1] / "sentence_bert_config.json") if kinds else {}
    length = transformer.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        raise CorruptFileError(
            f"{folder}/sentence_bert_config.json: max_seq_length must be a positive integer, found {length!r}"
        )
    return SentenceConfig(
        pooling=pooling,
        normalize=normalize,
        max_seq_length=length,
        do_lower_case=bool(transformer.get("do_lower_case", False)),
        prompt=_default_prompt(folder / "config_sentence_transformers.json"),
    )


def _pooling_mode(path: Path) -> str:
    config = read_json(path)
    value: Any = config.get("pooling_mode")
    if value is None:
        value = [mode for flag, mode in _LEGACY_FLAGS.items() if config.get(flag)] or ["mean"]
    modes = [value] if isinstance(value, str) else value
    if not isinstance(modes, list) or not all(isinstance(mode, str) for mode in modes):
        raise CorruptFileError(f"{path}: pooling_mode must be a text, found {value!r:.80}")
    if len(modes) != 1 or modes[0] not in _MODES:
        raise UnsupportedError(
            f"{path}: pooling {' + '.join(map(str, modes))}; halfbyte computes one of {', '.join(_MODES)}"
        )
    if config.get("include_prompt", True) is False:
        raise UnsupportedError(f"{path}: include_prompt false (a prompt left out of the pooling) isn't supported")
    return _MODES[modes[0]]


def _default_prompt(path: Path) -> str:
    config = read_json(path)
    name = config.get("default_prompt_name")
    if name is None:
        return ""
    prompts = config.get("prompts") or {}
    if not isinstance(name, str) or not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise CorruptFileError(f"{path}: default_prompt_name is {name!r}, but prompts has no such text")
    return str(prompts[name])


def read_gguf(checkpoint: Metadata, architecture: str) -> SentenceConfig:
    """The settings of a GGUF file: ``<architecture>.pooling_type``. It has no word for normalisation: off."""
    with carried_files(checkpoint, "pooling") as folder:
        if folder is not None:
            return read_folder(folder)
    value = checkpoint.metadata(f"{architecture}.pooling_type")
    if value is None:
        return SentenceConfig()
    if not isinstance(value, int) or value not in _GGUF_POOLING:
        raise UnsupportedError(
            f"{architecture}.pooling_type {value}: halfbyte pools by mean (1), cls (2) or last token (3)"
        )
    return SentenceConfig(pooling=_GGUF_POOLING[value] or "mean")
