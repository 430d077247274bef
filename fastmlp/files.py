"""Files that are there whole or not at all, whenever the writer is killed, and whoever else writes."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]


def write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Put ``parts`` one after another into ``path``: into a temporary file, fsync, rename, fsync.

    Missing directories are made, also one that has vanished meanwhile. A link stays one: what it points to
    is written. A file that is there keeps its mode, and where possible its owner; a new one has the umask's.
    What is not a file, such as a device or a pipe, is written to directly.

    Raises:
        OSError: the file cannot be written. What was at ``path`` is then still there.
    """
    found = _writable(path)
    if _is_special(found):
        with path.open("wb") as special:
            special.writelines(parts)
        return
    target = _target(path)
    temporary, file = _create(target)
    try:
        with file:
            if found is not None:
                _make_alike(file, found)
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # a directory may be one that nobody may read
        directory = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(directory)  # the rename itself
        finally:
            os.close(directory)


def prepare(path: Path) -> None:
    """See that ``path`` can be written, and remove what killed writers of it have left.

    Raises:
        OSError: it cannot.
    """
    if _is_special(_writable(path)):
        return
    target = _target(path)
    leftover = re.compile(re.escape(target.name) + r"\.[0-9a-f]{8}\.part")
    with contextlib.suppress(OSError):  # a directory may be one that nobody may read
        for part in target.parent.iterdir():
            if leftover.fullmatch(part.name):
                with contextlib.suppress(OSError), part.open("r+b") as dead:
                    _lock(dead)  # refused while its writer lives
                    part.unlink()
    probe, file = _create(target)
    with file:
        probe.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone, of all threads and processes that say so of ``path``: a file that is made for this, and stays.

    Where that file cannot be made or its file system has no locks, there is none.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            no_link = getattr(os, "O_NOFOLLOW", 0)
            file = stack.enter_context(
                os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | no_link, 0o666), "r+b")
            )
            _lock(file, wait=True)
            stack.callback(_unlock, file)  # closing does not while a fork has the file too
        yield


def _writable(path: Path) -> os.stat_result | None:
    """What is at ``path``, where its links lead; None for nothing.

    Raises:
        OSError: nobody may write there.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path}: a directory")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    return found


def _is_special(found: os.stat_result | None) -> bool:
    return found is not None and not stat.S_ISREG(found.st_mode)


def _target(path: Path) -> Path:
    """The file that ``path`` names, links resolved, in a directory that is there."""
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _create(target: Path) -> tuple[Path, IO[bytes]]:
    """A new file beside ``target``, held so that no `prepare` takes it for a dead writer's."""
    while True:
        part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        file = part.open("xb")  # not mkstemp, whose files nobody else may read
        with contextlib.suppress(OSError):  # some file systems have no locks
            _lock(file, wait=True)
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # a `prepare` came before the lock


def _make_alike(file: IO[bytes], found: os.stat_result) -> None:
    """Give ``file`` the owner, the group and the mode of ``found``, as far as one may."""
    for owner in (found.st_uid, -1):
        with contextlib.suppress(OSError):
            os.chown(file.fileno(), owner, found.st_gid)
            break
    mode = found.st_mode & 0o777
    if os.fstat(file.fileno()).st_gid != found.st_gid:
        mode &= ~0o070  # which were another group's rights
    with contextlib.suppress(OSError):
        os.chmod(file.fileno(), mode)


def _lock(file: IO[bytes], wait: bool = False) -> None:
    """Hold ``file`` until it is closed or this process ends, however it ends.

    Raises:
        OSError: somebody else holds it, and this does not ``wait``; or there are no locks here.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unlock(file: IO[bytes]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
