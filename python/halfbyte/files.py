"""Files that appear whole or not at all, and the small files that halfbyte's own checkpoints carry inside."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from .errors import CorruptFileError, InputOutputError


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

    Raises CorruptFileError where halfbyte.files is not an object of texts.
    """
    text = checkpoint.metadata("halfbyte.files")
    if text is None:
        yield None
        return
    try:
        files = json.loads(text)
        good = isinstance(files, dict) and all(isinstance(content, str) for content in files.values())
    except (TypeError, ValueError):
        good = False
    # Names come from a file that may be hostile: one folder deep, and nowhere else.
    if not good or any(Path(n).is_absolute() or ".." in Path(n).parts or len(Path(n).parts) > 2 for n in files):
        raise CorruptFileError(f"{where}: halfbyte.files must be an object of texts by file name")
    with tempfile.TemporaryDirectory(prefix="halfbyte-") as folder:
        for name, content in {"config.json": checkpoint.metadata("halfbyte.config") or "{}", **files}.items():
            path = Path(folder) / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
        yield Path(folder)
