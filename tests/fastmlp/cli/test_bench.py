"""``fastmlp bench``: a quick run of one small case, stored reports, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fastmlp import benchmarks, cli
from fastmlp.benchmarks import report as measuring
from fastmlp.benchmarks.peers import EAGER, OURS
from fastmlp.costs.ceilings import Ceilings
from tests.benchmarks.stored import report, row, timing

_SMALL = ("--device", "cpu", "--only", "cases", "--match", "inference, 784-256-10, batch 1, float32")


@pytest.fixture(autouse=True)
def _known_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings({1 << 20: 1e10}, {"float32": 1e11, "bfloat16": 1e11}, 1e-6)
    monkeypatch.setattr(measuring, "measure_ceilings", lambda device, quick: ceilings)
    monkeypatch.setattr(cli.common._console, "width", 120)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder with a report."""
    folder = tmp_path / "stored"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report()))
    return folder


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["bench", *map(str, arguments)])


def test_a_quick_run_prints_a_table() -> None:
    result = bench(*_SMALL)
    assert result.exit_code == 0, result.output
    for word in (OURS, EAGER, f"vs {EAGER}", "vs the fastest", "floor", "\ninference\n"):
        assert word in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if "784-256-10, batch 1, fp32" in line]
    assert line.count("×") == 2
    assert line.rstrip().endswith("%")


def test_json_is_the_report_alone() -> None:
    result = bench(*_SMALL, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (measured,) = found["rows"]
    assert {OURS, EAGER} <= measured["seconds"].keys()
    assert found["targets"]
    assert found["machine"]["kind"] == "cpu"


def test_a_page_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    out = tmp_path / "out"
    assert bench(*_SMALL, "--html", out).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["index.html", "report.json"]
    before = json.loads((out / "report.json").read_text())
    assert bench(*_SMALL, "--html", out, "--resume").exit_code == 0
    assert json.loads((out / "report.json").read_text())["rows"] == before["rows"]


def test_a_row_of_ours_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmlp.benchmarks import cases

    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(cases.fastmlp, "fuse", broken)
    result = bench(*_SMALL)
    assert result.exit_code == 1
    assert "ERROR fastmlp: RuntimeError: broken" in result.stderr


def test_from_a_stored_report(stored: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    for path in (stored, stored / "report.json"):
        result = bench("--from", path)
        assert result.exit_code == 0, result.output
        assert "784-256-10, batch 256, fp32" in result.stdout
        assert "2.00×" in result.stdout
        assert "training step (SGD), over batch" in result.stdout
        assert "1.05 s (1 s-1.1 s)" in result.stdout
    narrowed = json.loads(bench("--from", stored, "--match", "256 x 10", "--json").stdout)
    assert [found["label"] for found in narrowed["rows"]] == ["256 x 10"]
    out = tmp_path / "page"
    assert bench("--from", stored, "--html", out).exit_code == 0
    assert json.loads((out / "report.json").read_text()) == report() | {"machine": narrowed["machine"]}
    assert bench("--from", stored, "--html", stored, "--match", "256 x 10").exit_code == 0
    assert len(json.loads((stored / "report.json").read_text())["rows"]) == 7  # what is shown is not cut
    assert (stored / "index.html").exists()


def test_another_report_is_not_written_over(stored: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    other = tmp_path / "report.json"
    other.write_text(json.dumps(report() | {"machine": report()["machine"] | {"commit": "other"}}))
    before = other.read_bytes()
    result = bench("--from", stored, "--html", tmp_path)
    assert result.exit_code == 1
    assert "holds another report" in result.stderr
    assert other.read_bytes() == before


def test_two_reports_beside_each_other(stored: Path, tmp_path: Path) -> None:
    faster = report()
    first, second = faster["rows"][:2]
    first["seconds"][OURS] = timing(0.5e-3)
    second["seconds"][OURS] = timing(1.95e-3)  # within the spread of 2 ms
    faster["rows"].append(row("cases", "something", "new"))
    after = tmp_path / "after.json"
    after.write_text(json.dumps(faster))
    result = bench("--compare", stored, after)
    assert result.exit_code == 0, result.output
    assert ["2.00×", "faster"] in [line.split()[-2:] for line in result.stdout.splitlines()]
    assert "1.03×  no clear change" in result.stdout
    assert "rows of one report alone: 0 before, 1 after" in result.stdout
    found = json.loads(bench("--compare", stored, after, "--json").stdout)
    assert [(r["speedup"], r["clear"]) for r in found["rows"][:2]] == [
        (2.0, True),
        (pytest.approx(1.0256, rel=1e-3), False),
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "everything"], "--only everything: expected tests, cases"),
        (["--device", "tpu"], "--device tpu: expected cpu, cuda"),
        (["--full"], "--full: expected --html DIR"),
        (["--resume"], "--resume: expected --html DIR"),
        (["--from", "x", "--full", "--resume"], "--from measures nothing: without --full, --resume"),
        (["--from", "x", "--compare", "x", "y"], "--from, --compare: expected one of them"),
        (["--compare", "x", "y", "--only", "cases"], "--compare: without --only"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("{", "no JSON"),
        ("[]", "expected a report of fastmlp bench"),
        ('{"machine": {}, "rows": []}', "expected a report of fastmlp bench"),
    ],
)
def test_no_report(text: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    result = bench("--from", path)
    assert result.exit_code == 1
    assert f"error: --from {path}: " in result.stderr
    assert said in result.stderr


def test_no_such_row(stored: Path) -> None:
    result = bench("--from", stored, "--match", "nothing of the kind")
    assert (result.exit_code, result.stderr.strip()) == (
        1,
        "error: --match nothing of the kind: there is no such row",
    )


def test_a_row_that_is_not_there_needs_no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded or measured to find that out."""
    for name in ("load", "measure_ceilings"):
        monkeypatch.setattr(measuring, name, lambda *_: pytest.fail("it is called"))
    result = bench("--device", "cpu", "--match", "zzz")
    assert (result.exit_code, result.stderr) == (1, "error: --match zzz: there is no such row\n")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    file = tmp_path / "file"
    file.write_text("")
    result = bench(*_SMALL, "--html", file)
    assert result.exit_code == 1
    assert f"error: {file}: File exists" in result.stderr


def test_what_the_page_needs_is_asked_for_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    result = bench(*_SMALL, "--html", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr == "error: --html needs plotly: pip install 'fastmlp[bench]'\n"
    assert not (tmp_path / "out").exists()


def test_what_the_benchmarks_need_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(benchmarks, "report")
    monkeypatch.setitem(sys.modules, measuring.__name__, None)  # as where what it imports is missing
    result = bench(*_SMALL)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: bench needs more (")
    assert "pip install 'fastmlp[bench]'" in result.stderr


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    pytest.importorskip("plotly")
    monkeypatch.setattr(measuring, "take", interrupted)
    result = bench(*_SMALL, "--html", tmp_path)
    assert result.exit_code == 130
    assert f"interrupted; the same command with --resume goes on from {tmp_path}" in result.stderr
