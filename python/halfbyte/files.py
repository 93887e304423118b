"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import InputOutputError


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
