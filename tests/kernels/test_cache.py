"""What was measured on this machine, in small JSON files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmlp.kernels import cache


@pytest.fixture(autouse=True)
def _directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path / "deep" / "down"))


def test_add_and_read() -> None:
    assert cache.read("some.json") == {}
    cache.add("some.json", {"a": 1})
    file = cache.add("some.json", {"b": [2]})
    assert cache.read("some.json") == {"a": 1, "b": [2]}
    assert [path.name for path in file.parent.iterdir()] == ["some.json"]


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_file_is_said(text: str) -> None:
    file = cache.add("some.json", {"a": 1})
    file.write_text(text)
    with pytest.warns(UserWarning, match="ignored, not a JSON object"):
        assert cache.read("some.json") == {}
