"""The report, on one small case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.cases import EAGER, OURS, plans
from benchmarks.timing import interleave


def test_report_of_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON, table and plots; a peer that cannot run is named with its reason."""
    from benchmarks import cases

    def no_compiler(function: object) -> object:
        def run(*_: object) -> None:
            raise RuntimeError("no C++ compiler")

        return run

    monkeypatch.setattr(cases.torch, "compile", no_compiler)
    report.main(out=tmp_path, device="cpu", match="batch 1,", rounds=3, tests=True, readme=False)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["machine"]["versions"]["torch"]
    (row,) = data["rows"]
    assert set(row["seconds"]) == {OURS, EAGER}
    assert row["missing"] == {"torch.compile": "RuntimeError: no C++ compiler"}
    table = (tmp_path / "table.md").read_text()
    assert "| inference | 784-256-10, batch 1 | float32 |" in table
    assert "Missing: torch.compile: RuntimeError: no C++ compiler" in table
    for name in ("speedup.png", "speedup.svg", "inference.png", "inference.svg"):
        assert (tmp_path / name).stat().st_size > 1000


def test_readme_is_rewritten_between_its_markers(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report._BEGIN}\nold\n{report._END}\nafter\n")
    report.update_readme(path, "new\n")
    assert path.read_text() == f"before\n{report._BEGIN}\nnew\n{report._END}\nafter\n"


def test_cases_cover_the_issue() -> None:
    groups = {plan.group for plan in plans("cpu")}
    assert groups == {
        "linear + bias + ReLU forward",
        "linear + bias + ReLU forward + backward",
        "cross-entropy forward + backward",
        "training step (SGD)",
        "inference",
    }
    batches = [plan.label for plan in plans("cuda") if plan.group == "inference"]
    assert {label.rsplit(" ", 1)[1] for label in batches} == {"1", "32", "256", "4096"}


def test_interleaved_timings_are_ordered() -> None:
    import time

    timings = interleave({"fast": lambda: None, "slow": lambda: time.sleep(2e-3)}, "cpu", rounds=5)
    assert timings["slow"].median > 1e-3 > timings["fast"].median
    assert timings["slow"].low <= timings["slow"].median <= timings["slow"].high
