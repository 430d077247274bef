"""The editable install that the README makes is found from anywhere, and so is a clone on the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.installs import run

pytestmark = pytest.mark.deep  # wheels, environments and type checkers take minutes

PROGRAM = """
import importlib.util
import fastmlp, fastmlp.benchmarks.cases, fastmlp.kernels.tiles.configs

assert fastmlp.MLP(4, [3, 2]).__module__.startswith("fastmlp.")
print(fastmlp.__file__)
"""


@pytest.mark.parametrize("how", ["script", "command", "module"])
def test_a_program_beside_a_clone_named_fastmlp(editable: Path, how: str) -> None:
    """The clone's folder, as a package without code, must not come before what is installed."""
    beside = editable.parents[2]
    (beside / "program.py").write_text(PROGRAM)
    command = {"script": ["program.py"], "command": ["-c", PROGRAM], "module": ["-m", "program"]}[how]
    done = run([editable, *command], beside)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(beside / "fastmlp" / ".src" / "fastmlp" / "__init__.py")


def test_nothing_but_fastmlp_can_be_imported(editable: Path, tmp_path: Path) -> None:
    """A program's own `kernels`, `benchmarks` or `tests` without an __init__.py would lose to ours."""
    names = ("kernels", "benchmarks", "tests", "docs", "examples")
    code = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    assert run([editable, "-c", code], tmp_path).stdout.strip() == "[]"


def test_a_clone_needs_no_install(editable: Path, tmp_path: Path) -> None:
    clone = editable.parents[2] / "fastmlp"
    done = run([editable, "-c", PROGRAM], tmp_path, PYTHONPATH=str(clone))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(clone / "fastmlp" / "__init__.py")
