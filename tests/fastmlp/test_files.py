"""Files that are there whole or not at all: what may be at the path, and who else writes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fastmlp import files as atomic

_NOBODY = 65534


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def device(path: Path, minor: int) -> Path:
    """A device of /dev under another name: 3 is null, 7 full."""
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        path.open("wb").close()
    except OSError as error:
        pytest.skip(f"no right to make a device: {error}")
    return path


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that belongs to somebody who is not root: `as_a_user`."""
    path = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(path, _NOBODY, _NOBODY)
    yield path
    path.chmod(0o700)
    shutil.rmtree(path)


def as_a_user(work: Callable[[], None]) -> None:
    """Do ``work`` without root's rights, in a fork of its own."""
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgid(_NOBODY)
                os.setuid(_NOBODY)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    for name, target in (("there", tmp_path / "deep" / "file"), ("relative", Path("deep/other"))):
        (link := tmp_path / name).symlink_to(target)
        (second := tmp_path / f"{name}2").symlink_to(link)
        for content in (b"new", b"again"):  # where the target is not there, and where it is
            atomic.prepare(second)
            atomic.write(second, [content])
            assert (tmp_path / target).read_bytes() == content
        assert link.is_symlink()
        assert second.is_symlink()
    assert sorted(os.listdir(tmp_path / "deep")) == ["file", "other"]
    (loop := tmp_path / "loop").symlink_to(loop)
    for call in (atomic.prepare, lambda path: atomic.write(path, [b""])):
        with pytest.raises(OSError, match="symbolic links"):
            call(loop)


def test_the_mode_stays(tmp_path: Path) -> None:
    """A new file's is the umask's; another's is there before the content."""
    (other := tmp_path / "other").touch()
    path = tmp_path / "file"
    atomic.write(path, [b"a"])
    assert mode(path) == mode(other)

    def parts() -> Iterator[bytes]:
        (part,) = tmp_path.glob("file.*.part")
        assert mode(part) == mode(path)
        yield b"b"

    for kept in (0o600, 0o640, 0o755):
        path.chmod(kept)
        atomic.write(path, parts())
        assert mode(path) == kept


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays(tmp_path: Path) -> None:
    (path := tmp_path / "file").touch()
    os.chown(path, 1234, 2345)
    atomic.write(path, [b"a"])
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_rights_of_a_group_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path := tmp_path / "file").touch()
    path.chmod(0o660)
    found = path.stat()
    another = os.stat_result((*found[:5], found.st_gid + 1, *found[6:10]))
    monkeypatch.setattr(atomic, "_writable", lambda _: another)
    monkeypatch.setattr(os, "chown", refuse)
    atomic.write(path, [b"a"])
    assert mode(path) == 0o600


def refuse(*_: object, **__: object) -> Any:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    (link := tmp_path / "link").symlink_to(pipe)
    with ThreadPoolExecutor() as pool:
        for path in (pipe, link):
            atomic.prepare(path)  # without waiting for a reader, or being one's end
            reader = pool.submit(pipe.read_bytes)
            atomic.write(path, [b"ab", memoryview(b"cd")])
            assert reader.result() == b"abcd"
    assert pipe.is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_device_is_written_to(tmp_path: Path) -> None:
    null, full = device(tmp_path / "null", 3), device(tmp_path / "full", 7)
    for path in (null, full):
        atomic.prepare(path)
    atomic.write(null, [b"a"])
    with pytest.raises(OSError, match="No space left"):
        atomic.write(full, [b"a"])
    assert null.is_char_device()
    assert full.is_char_device()


def test_a_directory_that_nobody_may_read(folder: Path) -> None:
    def work() -> None:
        folder.chmod(0o300)
        for content in (b"a", b"b"):
            atomic.prepare(folder / "file")
            atomic.write(folder / "file", [content])
            assert (folder / "file").read_bytes() == content

    as_a_user(work)


def test_a_file_that_is_write_protected(folder: Path) -> None:
    """Which open() would not write either."""

    def work() -> None:
        (path := folder / "file").write_bytes(b"a")
        path.chmod(0o444)
        for call in (atomic.prepare, lambda path: atomic.write(path, [b"b"])):
            with pytest.raises(PermissionError, match="Permission denied"):
                call(path)
        assert path.read_bytes() == b"a"
        assert os.listdir(folder) == ["file"]

    as_a_user(work)


@pytest.mark.parametrize("call", [atomic.prepare, lambda path: atomic.write(path, [b"a"])])
def test_another_run_begins_at_once(
    call: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And takes this one's temporary file for a dead writer's, before that is held."""
    path, lock, runs = tmp_path / "file", atomic._lock, iter(range(3))

    def late(*args: Any, **options: Any) -> None:
        if next(runs, 3) < 3:
            monkeypatch.setattr(atomic, "_lock", lock)
            atomic.prepare(path)
            monkeypatch.setattr(atomic, "_lock", late)
        lock(*args, **options)

    monkeypatch.setattr(atomic, "_lock", late)
    call(path)
    assert os.listdir(tmp_path) == (["file"] if path.exists() else [])


def test_many_runs_begin_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def run(i: int) -> None:
        atomic.prepare(path)
        atomic.write(path, [b"%d" % i])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(200)))
    assert os.listdir(tmp_path) == ["file"]
