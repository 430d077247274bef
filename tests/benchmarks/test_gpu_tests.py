"""The suite as a GPU's machine runs it: unattended, with what is there."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.gpu import tests as stage
from benchmarks.gpu.worker import Bench

_FILES = {
    "test_last.py": "def test_in_time(): pass\n",
    "kernels/test_first.py": """
import os, time
def test_passes(): pass
def test_fails(): assert 1 == 2, "a number"
def test_hangs(): time.sleep(60)
def test_leaves(): os._exit(3)
def test_after(): pass
""",
    "kernels/test_lacks.py": "import a_package_that_is_not_here\ndef test_a(): pass\n",
    "kernels/test_broken.py": "import fastmlp.no_such_part\ndef test_a(): pass\n",
}


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of a few tests, run by two workers."""
    for name, text in _FILES.items():
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    monkeypatch.setenv("PYTHONPATH", str(Path(stage.__file__).resolve().parents[2]))
    monkeypatch.setattr(stage, "_ROOT", tmp_path)
    monkeypatch.setattr(stage, "_REHEARSED", ("tests",))
    monkeypatch.setattr(stage, "_PATIENCE", 4)
    return tmp_path


def _run(
    out: Path, seconds: float = 240, resumed: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    said: list[dict[str, Any]] = []
    bench = Bench(said.append, seconds, device="cpu", toy=True, resumed=resumed, out=out)
    stage.run(bench)
    for message in said:
        if "file" in message:
            (out / message["file"]).write_text(message["text"])
    (row,) = (message["row"] for message in said if "row" in message)
    return row, said


@pytest.mark.deep
def test_every_outcome_is_kept_whatever_a_test_does(suite: Path) -> None:
    row, said = _run(suite)
    outcomes = {
        test.removeprefix("tests/").partition(".py")[0] + test.rpartition(".py")[2]: one["outcome"]
        for test, one in json.loads((suite / "tests.json").read_text()).items()
    }
    assert outcomes["test_last::test_in_time"] == outcomes["kernels/test_first::test_after"] == "passed"
    assert outcomes["kernels/test_first::test_fails"] == "failed"
    assert (
        outcomes["kernels/test_first::test_hangs"] == outcomes["kernels/test_first::test_leaves"] == "failed"
    )
    assert outcomes["kernels/test_broken"] == "error"
    assert "kernels/test_lacks" not in outcomes  # skipped, not broken
    assert row["error"].startswith("3 passed, 3 failed, 1 error")
    assert not row["unfinished"]
    found = json.loads((suite / "tests.json").read_text())
    assert "a number" in found["tests/kernels/test_first.py::test_fails"]["text"]
    cases = ElementTree.fromstring((suite / "tests.xml").read_text())
    assert cases.attrib["failures"] == "3"
    assert any("a number" in (case.text or "") for case in cases.iter("failure"))
    assert any("note" in message for message in said)


@pytest.mark.deep
def test_without_xdist_a_test_that_takes_pytest_along_is_named(
    suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the others run all the same."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        stage.importlib.util, "find_spec", lambda name: None if name == "xdist" else found(name)
    )
    row, _ = _run(suite)
    outcomes = json.loads((suite / "tests.json").read_text())
    assert "code 3" in outcomes["tests/kernels/test_first.py::test_leaves"]["text"]
    assert "took pytest along" in outcomes["tests/kernels/test_first.py::test_hangs"]["text"]
    assert row["counts"]["passed"] == 3
    assert row["counts"]["failed"] == 3
    assert not row["unfinished"]


def test_junk_beside_the_report_is_no_outcome(tmp_path: Path) -> None:
    for text in ('{"a": 1}', "[1, 2]", "{", '{"a": {"outcome": "passed"}}'):
        (tmp_path / "tests.json").write_text(text)
        assert stage._known(tmp_path) == {}


def test_a_gpu_that_breaks_for_good_does_not_fill_the_disk() -> None:
    """Nor does what a test prints spoil the XML."""
    found: dict[str, dict[str, Any]] = {}
    text = "\x1b[31m" + 5000 * "long"
    told = [{"test": f"test_{i}[\x00]", "outcome": "failed", "text": text, "took": 0.1} for i in range(2000)]
    stage._add(found, (json.dumps(one).encode() for one in told))
    assert len(json.dumps(found)) < 8 << 20
    assert all(one["text"].endswith("long") for one in found.values())
    found["test_escape"] = {"outcome": "failed", "text": "\x1b[31m red", "took": 0.1}
    written = stage.junit(found)
    assert len(written) < 16 << 20
    assert len(list(ElementTree.fromstring(written))) == 2001


@pytest.mark.deep
def test_time_runs_out_and_what_is_known_is_not_asked_again(suite: Path) -> None:
    known = {"tests/kernels/test_first.py::test_hangs": {"outcome": "failed", "text": "hung", "took": 90.0}}
    (suite / "tests.json").write_text(json.dumps(known))
    (suite / "tests" / "kernels" / "test_broken.py").unlink()
    row, said = _run(suite, seconds=stage._STOPPING + 1e-3, resumed=True)
    assert row["unfinished"]
    assert any("left_out" in message for message in said)
    row, _ = _run(suite, resumed=True)
    assert row["counts"] == {"passed": 3, "failed": 3}
    assert (
        json.loads((suite / "tests.json").read_text())["tests/kernels/test_first.py::test_hangs"]["text"]
        == "hung"
    )
