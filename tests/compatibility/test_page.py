"""docs/compatibility.md is the tests' own: what stands in it, and how it is made."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.compatibility.page import FAILS, Page, render

_numbers = itertools.count()
_PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"


def test_every_feature_is_a_row(request: pytest.FixtureRequest) -> None:
    """Of those that are collected with this test: a new one is to be written into the page."""
    markers = [item.get_closest_marker("feature") for item in request.session.items]
    features = {marker.args for marker in markers if marker is not None}
    found, group = set(), ""
    for line in _PAGE.read_text().splitlines():
        if line.startswith("## "):
            group = line.removeprefix("## ")
        elif line.startswith("| "):
            found.add((group, line.split(" | ")[0].removeprefix("| ")))
    assert features <= found, f"run pytest tests/compatibility --compatibility {_PAGE.name}"


def test_nothing_fails() -> None:
    assert FAILS not in _PAGE.read_text()


def report(outcome: str, when: str = "teardown", **cell: Any) -> Any:
    """A phase of a test with a feature."""
    full = {"group": "G", "feature": "f", "backend": "triton", "dtype": "float32"} | cell
    full = {"kernels": False, "refused": False} | full
    return SimpleNamespace(
        nodeid=f"test {next(_numbers)}",
        user_properties=[("compatibility", full)],
        when=when,
        passed=outcome == "passed",
        failed=outcome == "failed",
        skipped=outcome == "skipped",
    )


def row(page: Page) -> list[str]:
    """The cells of the only row."""
    (line,) = [ln for ln in render(page.cells, "here").splitlines() if ln.startswith("| f |")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_cells(tmp_path: Path) -> None:
    """The first of eight columns is the kernels' float32; a failure hides all else, a skip nothing."""
    page = Page(tmp_path / "page.md")
    page.pytest_runtest_logreport(report("passed", kernels=True))
    assert row(page) == ["kernels", *[""] * 7]
    page.pytest_runtest_logreport(report("passed", dtype="any"))
    assert row(page) == ["kernels, torch", "torch", "torch", "torch", *[""] * 4]
    page.pytest_runtest_logreport(report("skipped", when="setup", backend="any", dtype="float16"))
    assert row(page) == ["kernels, torch", "torch", "torch", "torch", "", "not run", "", ""]
    page.pytest_runtest_logreport(report("passed", backend="torch", dtype="float64", refused=True))
    page.pytest_runtest_logreport(report("failed", when="call"))
    page.pytest_runtest_logreport(report("passed", kernels=True))
    assert row(page) == [FAILS, "torch", "torch", "torch", "", "not run", "", "refused"]
    page.pytest_sessionfinish()
    assert page.path.read_text() == render(page.cells, page.device())


def test_what_follows_a_skip_proves_nothing(tmp_path: Path) -> None:
    page = Page(tmp_path / "page.md")
    skipped, teardown = report("skipped", when="call"), report("passed")
    teardown.nodeid = skipped.nodeid
    for phase in (skipped, teardown):
        page.pytest_runtest_logreport(phase)
    assert row(page) == ["not run", *[""] * 7]


def test_what_is_no_feature_is_no_cell(tmp_path: Path) -> None:
    page = Page(tmp_path / "page.md")
    page.pytest_runtest_logreport(SimpleNamespace(user_properties=[], when="teardown", passed=True))
    assert page.cells == {}
