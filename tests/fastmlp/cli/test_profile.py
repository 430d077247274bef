"""``fastmlp profile`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from fastmlp import cli
from fastmlp.cli import nets, workload
from fastmlp.costs import ceilings as measuring
from fastmlp.costs.ceilings import Ceilings
from fastmlp.training import save
from tests.reached import CEILINGS

SMALL = ("--hidden", "16", "--batch-size", "8", "--steps", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """No ceilings are measured, and no second goes into timing."""
    asked: list[bool] = []

    def ceilings(device: torch.device, again: bool = False) -> Ceilings:
        asked.append(again)
        return CEILINGS

    monkeypatch.setattr(measuring, "ceilings_of", ceilings)
    monkeypatch.setattr(workload, "_TIMED", 1e-3)
    return asked


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["profile", *arguments])


def test_the_table() -> None:
    result = run(*SMALL)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("784-16-10, training step, batch 8, float32, engine cpu: 2 steps on ")
    assert lines[2].split()[:4] == ["kernel", "layer", "time", "share"]
    assert any(line.startswith("aten::addmm_ ") for line in lines)
    last = next(line for line in lines if line.startswith("a step takes "))
    for word in ("in the profile", "kernels", "the host", "Floor of what is counted"):
        assert word in last


@pytest.mark.parametrize(
    ("options", "engine", "work"),
    [
        (("--engine", "eager", "--optimizer", "adamw"), "eager", "training step"),
        (("--inference", "--activation", "gelu"), "modules", "inference"),
        (("--dtype", "bfloat16", "--optimizer", "momentum"), "cpu", "training step"),
        (("--hidden", "", "--optimizer", "adam"), "cpu", "training step"),
    ],
)
def test_json(options: tuple[str, ...], engine: str, work: str) -> None:
    result = run(*SMALL, *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["engine"], found["work"], found["steps"]) == (engine, work, 2)
    assert found["step"]["kernels"] == pytest.approx(found["busy"] / 2)
    assert found["step"]["seconds"] > 0
    assert found["rows"]
    assert any(row["operations"] for row in found["rows"])
    assert found["ceilings"]["launch"] == CEILINGS.launch
    if "--hidden" in options:
        assert found["net"] == "784-10"


def test_files(tmp_path: Path) -> None:
    trace, memory = tmp_path / "t.json", tmp_path / "m.json"
    result = run(*SMALL, "--trace", str(trace), "--memory", str(memory))
    assert result.exit_code == 0, result.output
    names = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"fastmlp.profile", "layer 0", "layer 2"} <= names
    assert f"trace: {trace}; open it in https://ui.perfetto.dev or chrome://tracing" in result.stdout
    if not torch.cuda.is_available():
        assert json.loads(memory.read_text())["events"]
        assert f"memory: {memory}; JSON" in result.stdout


def test_a_saved_net(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    about = {"widths": [12, 8, 3], "activation": "tanh", "classes": ["a", "b", "c"]}
    save(nets.build(about["widths"], "tanh"), path, about)
    result = run(str(path), "--batch-size", "8", "--steps", "1", "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["net"] == "12-8-3"
    assert any("tanh" in row["name"] for row in found["rows"])


def test_ranges_alone_measure_nothing(quick: list[bool]) -> None:
    result = run(*SMALL, "--ranges")
    assert (result.exit_code, result.stdout, quick) == (0, "", [])


def test_ceilings_are_measured_again(quick: list[bool]) -> None:
    """Under either name; when and how busy the machine was is said."""
    result = run(*SMALL, "--remeasure")
    assert f"\n{CEILINGS.said}; --remeasure does it again" in result.stdout
    assert run(*SMALL, "--measure").exit_code == 0
    assert quick == [True, True]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (("--activation", "rely"), "--activation rely: expected one of none, relu", 2),
        (("--hidden", "a"), "--hidden a: expected positive widths", 2),
        (("--ranges", "--json"), "--ranges: expected no --trace, --memory or --json", 2),
        (("--engine", "graph", "--device", "cpu"), "engine: 'graph' cannot run this", 2),
        (("missing.safetensors",), "missing.safetensors", 1),
        (("--steps", "0"), "Invalid value for '--steps'", 2),
        (("--trace", "/proc/nowhere/t.json"), "--trace /proc/nowhere", 1),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str, code: int) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output
