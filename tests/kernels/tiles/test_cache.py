"""What was measured on this machine, in small JSON files."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastmlp import files as atomic
from fastmlp.kernels.tiles import cache


@pytest.fixture(autouse=True)
def _directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "deep" / "down"))


def test_add_and_read() -> None:
    assert cache.read("some.json") == {}
    cache.add("some.json", {"a": 1})
    file = cache.add("some.json", {"b": [2]})
    assert cache.read("some.json") == {"a": 1, "b": [2]}
    assert sorted(path.name for path in file.parent.iterdir()) == ["some.json", "some.json.lock"]


@pytest.mark.parametrize("data", [b"{", b"[1]", b"", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000])
def test_a_damaged_file_is_said(data: bytes) -> None:
    """No JSON, no object, no UTF-8, nested too deeply: ignored, and the next entry replaces it."""
    file = cache.add("some.json", {"a": 1})
    file.write_bytes(data)
    with pytest.warns(UserWarning, match="some.json: ignored, not a JSON object"):
        assert cache.read("some.json") == {}
    with pytest.warns(UserWarning, match="ignored"):
        cache.add("some.json", {"b": 2})
    assert cache.read("some.json") == {"b": 2}


def test_entries_of_any_kind() -> None:
    """What no error of a damaged entry gets past."""
    entries = {str(i): entry for i, entry in enumerate((None, 1, "a", [], ["x"], {}, {"x": "y"}, {"x": 4}))}
    with pytest.warns(UserWarning, match=r"f: ignored '[0-6]', not a half \(.*\); delete it"):
        assert cache.parsed(entries, lambda _, entry: int(entry["x"]) / 2, "a half", Path("f")) == {"7": 2.0}


def test_what_is_planted_is_not_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither by a temporary file's name, here guessed right, nor by the lock's."""
    (victim := tmp_path / "victim").write_text("mine")
    cache.path("some.json").parent.mkdir(parents=True)
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda count: "0" * 2 * count)
    for name in ("some.json.00000000.part", "other.json.lock"):
        cache.path(name).symlink_to(victim)
    with pytest.raises(FileExistsError):
        cache.add("some.json", {"a": 1})
    cache.add("other.json", {"a": 1})
    assert cache.read("other.json") == {"a": 1}
    assert victim.read_text() == "mine"


def _add(start: int, count: int) -> None:
    for i in range(start, start + count):
        cache.add("some.json", {str(i): i})


def test_nothing_is_lost_between_threads_and_processes() -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_add, args=(start, 25)) for start in (0, 25)]
    for child in children:
        child.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(_add, range(50, 150, 25), [25] * 4))
    for child in children:
        child.join()
    assert cache.read("some.json") == {str(i): i for i in range(150)}
