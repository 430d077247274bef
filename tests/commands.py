"""The command line in this process, on little data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fastmlp import cli, data


def run(*arguments: object) -> Result:
    """``fastmlp ARGUMENTS``, 100 columns wide."""
    return CliRunner(env={"COLUMNS": "100"}).invoke(
        cli.app, [str(argument) for argument in arguments], prog_name="fastmlp"
    )


def run_json(*arguments: object) -> dict[str, Any]:
    """The object that it prints with --json, and nothing else on stdout."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def synthetic(train: int, test: int) -> Callable[..., tuple[data.Images, data.Images]]:
    """`fastmlp.data.named`, but for the synthetic set, which is so small."""
    others = data.named

    def named(name: str, root: Path | None, say: Callable[[str], object]) -> tuple[data.Images, data.Images]:
        return data.synthetic(0, train=train, test=test) if name == "synthetic" else others(name, root, say)

    return named


def assert_fails(result: Result, code: int, message: str) -> None:
    """One line on stderr that says ``message``, and that exit status."""
    assert result.exit_code == code, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert result.stderr.splitlines()[-1] == line
    assert "Traceback" not in result.output


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic set, at 600 examples."""
    monkeypatch.setattr(data, "named", synthetic(600, 100))
