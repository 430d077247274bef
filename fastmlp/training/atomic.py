"""Files that are there whole or not at all, whenever the writer is killed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]


def write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Put ``parts`` one after another into ``path``: into a temporary file, fsync, rename, fsync.

    Missing directories are made, also one that has vanished meanwhile.

    Raises:
        OSError: the file cannot be written. What was at ``path`` is then still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:  # not mkstemp, whose files nobody else may read
            with contextlib.suppress(OSError):  # some file systems have no locks
                _lock(file)
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def prepare(path: Path) -> None:
    """See that ``path`` can be written, and remove what killed writers of it have left.

    Raises:
        OSError: it cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a directory")
    leftover = re.compile(re.escape(path.name) + r"\.[0-9a-f]{8}\.part")
    for part in path.parent.iterdir():
        if leftover.fullmatch(part.name):
            with contextlib.suppress(OSError), part.open("r+b") as file:
                _lock(file)  # refused while its writer lives
                part.unlink()
    probe = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    probe.open("xb").close()
    probe.unlink()


def _lock(file: IO[bytes]) -> None:
    """Hold ``file`` until it is closed or this process ends, however it ends.

    Raises:
        OSError: somebody else holds it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
