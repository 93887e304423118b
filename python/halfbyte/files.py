"""Files that appear whole or not at all, and the small files that halfbyte's own checkpoints carry inside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from .errors import CorruptFileError, InputOutputError


def parse_json(text: str | bytes, where: str) -> Any:
    """A JSON document from a file of somebody else. Raises CorruptFileError: not JSON, or a key twice in one object."""

    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} appears twice in one object")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except ValueError as error:  # not JSON, not UTF-8, a number of thousands of digits
        raise CorruptFileError(f"{where}: not JSON: {error}") from None
    except RecursionError:
        raise CorruptFileError(f"{where}: not JSON that can be read: nested too deep") from None


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only when it is complete and on the disk.

    Until then what was there before stays; after an error it is still there. A device or a pipe is written directly.
    Raises InputOutputError where the system refuses (no permission, a full disk).
    """
    direct = path.exists() and not path.is_file()
    target = path if direct else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with target.open("wb" if direct else "xb") as file:
                yield file
                if direct:
                    return
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                shutil.copymode(path, target)
            target.replace(path)
        except BaseException:
            if not direct:
                target.unlink(missing_ok=True)
            raise
    except OSError as error:
        kept = " (it is as it was before)" if path.is_file() else ""
        raise InputOutputError(f"{path}: can't be written{kept}: {error.strerror or error}") from None


class Metadata(Protocol):
    """What a GGUF file says: ``halfbyte._core.Checkpoint``, or anything with its ``metadata``."""

    def metadata(self, key: str) -> Any:
        """One value; None if absent."""


@contextlib.contextmanager
def carried_files(checkpoint: Metadata, where: str) -> Iterator[Path | None]:
    """A temporary folder with the tokenizer and pooling files that a file of halfbyte carries; None for other files.

    Raises:
        CorruptFileError: halfbyte.files is not an object of texts.
        InputOutputError: they can't be written.

    """
    text, config = checkpoint.metadata("halfbyte.files"), checkpoint.metadata("halfbyte.config")
    if text is None:
        yield None
        return
    files = parse_json(text, f"{where}: halfbyte.files") if isinstance(text, str) else None
    good = isinstance(files, dict) and all(_is_text(name) and _is_text(content) for name, content in files.items())
    if not isinstance(files, dict) or not good or not all(_is_file_name(name) for name in files):
        raise CorruptFileError(f"{where}: halfbyte.files must be an object of texts by file name")
    if config is not None and not isinstance(config, str):
        raise CorruptFileError(f"{where}: halfbyte.config must be a text")
    with tempfile.TemporaryDirectory(prefix="halfbyte-") as folder:
        for name, content in {"config.json": config or "{}", **files}.items():
            path = Path(folder) / name
            try:
                path.parent.mkdir(exist_ok=True)
                path.write_text(content, encoding="utf-8")
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                raise CorruptFileError(f"{where}: halfbyte.files: {name!r} is a file and a folder") from None
            except OSError as error:
                raise InputOutputError(f"{where}: halfbyte.files: {name!r} can't be written: {error}") from None
        yield Path(folder)


def _is_text(value: Any) -> bool:
    """A string that UTF-8 can hold: JSON lets half of a surrogate pair pass."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_file_name(name: str) -> bool:
    """Names come from a file that may be hostile: one folder deep, and nowhere else."""
    parts = Path(name).parts
    return "\0" not in name and not Path(name).is_absolute() and ".." not in parts and 1 <= len(parts) <= 2
