"""``fastmlp plot roofline`` as a user meets it; `profile` has tests of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fastmlp import cli
from fastmlp.cli import workload
from fastmlp.costs import ceilings
from tests.reached import CEILINGS


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "ceilings_of", lambda device, again: CEILINGS)
    monkeypatch.setattr(workload, "NETS", (((12, 16, 16, 4), 8),))
    monkeypatch.setattr(workload, "LOGITS", (8, 5))
    monkeypatch.setattr(workload, "_STEPS", 2)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["plot", "roofline", *arguments])


def test_the_picture_and_its_points(tmp_path: Path) -> None:
    out = tmp_path / "new" / "roofline.svg"
    result = run("--out", str(out), "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["picture"] == str(out)
    assert out.stat().st_size > 5000
    points = found["points"]
    assert {point["dtype"] for point in points} == {"float32", "bfloat16"}
    assert {point["kind"] for point in points} == {
        "forward",
        "backward",
        "backward with update",
        "cross-entropy",
    }
    forward = {p["label"]: p for p in points if p["kind"] == "forward" and p["dtype"] == "float32"}
    assert set(forward) == {"12→16", "16→16", "16→4"}
    assert forward["16→16"]["operations"] == 2 * 8 * 16 * 16
    assert all(point["seconds"] > 0 and point["bytes"] > 0 for point in points)


def test_a_name_without_a_kind(tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "roofline.gif"), "--device", "cpu")
    assert result.exit_code == 2
    assert "expected a name that ends in .png" in result.output


def test_a_line_says_where_it_is(tmp_path: Path) -> None:
    result = run("--out", str(tmp_path / "r.png"), "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].endswith(f"saved to {tmp_path / 'r.png'}")
    assert result.stdout.splitlines()[1].startswith("ceilings measured ")
