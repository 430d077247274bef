"""The report as a whole, on small cases; what it keeps, skips and survives."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from benchmarks import host, report, supervisor
from benchmarks.floors import Ceilings
from benchmarks.machine import describe
from benchmarks.peers import COMPILED, EAGER, OURS
from benchmarks.store import Store, load


@pytest.fixture(autouse=True)
def _known_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    ceilings = Ceilings({1 << 20: 1e10}, {"float32": 1e11, "bfloat16": 1e11}, 1e-6)
    monkeypatch.setattr(report, "measure_ceilings", lambda device, quick: ceilings)


def _run(out: Path, code: int = 0, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "device": "cpu", "data": None, "only": ["cases"], "match": "inference, 784-256-10, batch 1, float32",
        "quick": True, "budget": 1e9, "resume": False, "call": 0.0,
    }  # fmt: skip
    with pytest.raises(typer.Exit) as stopped:
        report.main(out=out, **defaults | options)
    assert stopped.value.exit_code == code
    return load(out)


def test_report_of_one_case(tmp_path: Path) -> None:
    """JSON, table and plot; a peer that did not run is named with its reason."""
    data = _run(tmp_path)
    (row,) = data["rows"]
    assert {OURS, EAGER} <= set(row["seconds"])
    assert row["missing"][COMPILED] == "left out of a quick report"
    assert "now" not in data
    assert any(t["verdict"] == "not measured here" for t in data["targets"])
    assert "| inference | 784-256-10, batch 1 | float32 | fastmlp |" in (tmp_path / "table.md").read_text()
    for name in ("speedup.png", "speedup.svg"):
        assert (tmp_path / name).stat().st_size > 1000


def test_calls_add_up_and_resume(tmp_path: Path) -> None:
    first = _run(tmp_path)["rows"][0]
    data = _run(tmp_path, match="cross-entropy forward + backward, 256 x 10")
    assert len(data["rows"]) == 2
    kept = _run(tmp_path, match="", resume=True, budget=-1.0)
    assert kept["rows"][0] == first
    assert any("training step" in name for name in kept["left_out"])
    again = _run(tmp_path)
    assert len(again["rows"]) == 2
    assert again["rows"][0]["call"] > first["call"]


def test_a_failing_case_is_recorded_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import cases

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken\nat length")

    monkeypatch.setattr(cases.fastmlp, "CrossEntropyLoss", broken)
    data = _run(tmp_path, code=1, match="256 x 10")
    (row,) = data["rows"]
    assert row["error"] == "fastmlp: RuntimeError: broken"
    assert EAGER in row["seconds"]
    assert "error: fastmlp: RuntimeError: broken" in (tmp_path / "table.md").read_text()


def test_sweeps_stop_and_accuracy_needs_the_real_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import sweeps
    from fastmlp.data import synthetic

    monkeypatch.setattr(sweeps, "_QUICK", sweeps.Limits(10.0, 4 << 20))
    monkeypatch.setattr(sweeps, "SWEEPS", sweeps.SWEEPS[:2])
    monkeypatch.setattr(report, "load", lambda data, say: synthetic(train=300, test=10))
    monkeypatch.setattr(report.plots, "draw", lambda *_: None)  # five pictures take seconds
    data = _run(tmp_path, only=["sweeps", "accuracy"], match="")
    assert "GiB" in data["stops"]["batch"]
    swept = {row["sweep"] for row in data["rows"] if row["part"] == "sweeps"}
    assert swept == {sweep.name for sweep in sweeps.SWEEPS}
    (skipped,) = (row for row in data["rows"] if row["part"] == "accuracy")
    assert skipped["skipped"].startswith("needs Fashion-MNIST")
    assert "Skipped: needs Fashion-MNIST" in (tmp_path / "table.md").read_text()


def test_host_time_is_asked_for_where_there_is_no_gpu(tmp_path: Path) -> None:
    """And skipped where kernels are interpreted, as here."""
    found = _run(tmp_path, only=["host"], match="cross_entropy")["rows"]
    assert [row["skipped"] for row in found] == [host.problem("cpu")]
    assert "host" not in report.parts("cpu")
    assert report.parts("cuda") == report.PARTS


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="expected tests, cases"):
        report.main(out=tmp_path, device="cpu", only=["everything"], call=0.0)


def test_a_gpus_rows_are_measured_by_a_process_that_is_told_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(report, "describe", lambda device: describe("cpu"))
    monkeypatch.setattr(report, "supervise", lambda command, *_: commands.append(command) or 0)
    options = {
        "data": tmp_path, "only": ["cases", "sweeps"], "match": "a b", "quick": True, "budget": 5.0,
        "resume": True,
    }  # fmt: skip
    assert report.take(tmp_path / "out", "cuda", **options) == 0
    ((python, _, module, *words),) = commands
    assert (python, module) == (sys.executable, report.__name__)
    told: dict[str, Any] = {}
    monkeypatch.setattr(report, "take", lambda *values: told.update(zip(names, values)) or 0)
    names = ("out", "device", "data", "only", "match", "quick", "budget", "resume", "call")
    app = typer.Typer()
    app.command()(report.main)
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert told.pop("call") > 0
    assert told == options | {"out": tmp_path / "out", "device": "cuda"}


def test_another_commits_rows_are_dropped(tmp_path: Path) -> None:
    machine = describe("cpu")
    store = Store(tmp_path, machine)
    store.put("cases", {"key": "a"})
    assert Store(tmp_path, machine).get("cases", "a") is not None
    other = Store(tmp_path, machine | {"commit": "other"})
    assert other.dropped
    assert other.get("cases", "a") is None


def test_a_row_is_replaced_in_its_place(tmp_path: Path) -> None:
    store = Store(tmp_path, describe("cpu"))
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        store.put("cases", {"key": key, "value": value})
    assert [(row["key"], row["value"]) for row in store.report["rows"]] == [("a", 3), ("b", 2)]
    store.put("sweeps", {"key": "a", "value": 4})
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 3


_WORKER = """
import json, sys, time
path = sys.argv[1] + "/report.json"
for key in ("work, dies, float32", "work, hangs, float32", "work, runs, float32"):
    report = json.load(open(path))
    if any(row["key"] == key for row in report["rows"]):
        continue
    report["now"] = {"part": "cases", "key": key}
    json.dump(report, open(path, "w"))
    if "dies" in key:
        sys.exit(-9)
    if "hangs" in key:
        time.sleep(60)
    report["rows"].append({"part": "cases", "key": key})
    json.dump(report, open(path, "w"))
"""


def test_a_row_that_kills_or_hangs_its_process_costs_only_itself(tmp_path: Path) -> None:
    store = Store(tmp_path, describe("cpu"))
    store.save()
    command = [sys.executable, "-c", _WORKER, str(tmp_path)]
    code = supervisor.supervise(command, store, tmp_path, time.time(), patience=1.5)
    assert code == 0
    store.reload()
    errors = {row["label"]: row.get("error") for row in store.report["rows"] if "label" in row}
    assert errors["hangs"] == "nothing happened for 2 s"
    assert errors["dies"].startswith("the process ended with code")
    assert store.get("cases", "work, runs, float32") is not None
