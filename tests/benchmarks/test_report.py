"""The report as a whole, on small cases; what it keeps, skips and survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import host, report
from benchmarks.gpu import summary
from benchmarks.gpu.process import Process
from benchmarks.machine import describe
from benchmarks.peers import COMPILED, EAGER, OURS
from benchmarks.store import Store, load
from tests.benchmarks.stored import CEILINGS


@pytest.fixture(autouse=True)
def _known_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "measure_ceilings", lambda device, quick: CEILINGS)


def _run(out: Path, code: int = 0, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "device": "cpu", "data": None, "only": ["cases"], "match": "inference, 784-256-10, batch 1, float32",
        "quick": True, "budget": 1e9, "resume": False,
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


@pytest.mark.deep
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
        report.main(out=tmp_path, device="cpu", only=["everything"])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Its processes see no GPU; what they are told."""
    told: list[dict[str, Any]] = []

    def process(words: dict[str, Any], *where: Any) -> Process:
        told.append(words)
        return Process(words | {"device": "cpu"}, *where)

    monkeypatch.setattr(report, "describe", lambda device: describe("cpu"))
    monkeypatch.setattr(report, "Process", process)
    return told


@pytest.mark.deep
def test_a_gpus_rows_are_measured_by_a_process_that_is_told_the_same(
    tmp_path: Path, gpu: list[dict[str, Any]]
) -> None:
    match = "cross-entropy forward + backward, 256 x 10, float32"
    options: dict[str, Any] = {"data": tmp_path, "only": ["cases"], "match": match, "quick": True}
    assert report.take(tmp_path / "out", "cuda", **options, budget=500.0) == 0
    (words,) = gpu
    assert words["device"] == "cuda"
    assert words["data"] == tmp_path
    assert 499 < words["seconds"] <= 500
    assert words["asked"] == {"only": ["cases"], "match": match, "quick": True}
    (row,) = load(tmp_path / "out")["rows"]
    assert row["seconds"].keys() >= {OURS, EAGER}
    assert report.take(tmp_path / "out", "cuda", **options, resume=True) == 0
    assert gpu[1]["done"] == [row["key"]]
    assert load(tmp_path / "out")["rows"] == [row]


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


@pytest.mark.few(1)
@pytest.mark.parametrize(("stage", "code"), [("aborts", 1), ("hangs", 1), ("outside", 1), ("fine", 0)])
def test_a_row_that_kills_or_hangs_its_process_costs_only_itself(
    stage: str, code: int, tmp_path: Path, gpu: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_STAGE", f"tests.benchmarks.gpu_stages:{stage}")
    monkeypatch.setattr(report, "_PATIENCE", 2.0)
    assert report.take(tmp_path, "cuda") == code
    found = {row["key"]: row.get("error") for row in load(tmp_path)["rows"]}
    expected = {
        "aborts": {
            "before": None,
            "aborts": "ended by SIGABRT",
            "leaves": "ended with code 7",
            "after": None,
        },
        "hangs": {"hangs": "hung: not a word for 2 s, at: launching epoch_kernel", "after": None},
        "outside": {"before": None},
        "fine": {"fine": None},
    }[stage]
    assert found.keys() == expected.keys()
    assert all((found[key] or "").startswith(why or "") for key, why in expected.items())
    assert len(gpu) == 1 + sum(why is not None for why in expected.values())


@pytest.mark.parametrize("number", [float("inf"), float("nan"), -float("inf")])
def test_a_report_is_strict_json(number: float, tmp_path: Path) -> None:
    """What is not finite is a string there, which is a number again to whoever wants one."""
    store = Store(tmp_path, describe("cpu"))
    store.put(
        "smoke",
        {"key": "a", "worst": {"what": "dW", "error": number, "allowed": 0.5}, "losses": [number, 1.0]},
    )

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "report.json").read_text()
    (row,) = json.loads(text, parse_constant=refuse)["rows"]
    assert row["losses"] == [str(number), 1.0]
    assert str(float(row["worst"]["error"])) == str(number)
    assert f"{number:.2e}" in summary.text({"rows": [row], "stages": {}}, tmp_path)
