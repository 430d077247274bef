"""mypy and pyright check a user's program, with fastmlp from a wheel as with an editable install."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.installs import run

pytestmark = pytest.mark.deep  # wheels, environments and type checkers take minutes

PROGRAM = Path(__file__).with_name("program.py")
PACKAGES = ("", ".data", ".functional", ".plots", ".profiling", ".studies", ".training")
CHECKERS = {
    "mypy": ["-m", "mypy", "--strict", "--cache-dir", "cache", "--python-executable"],
    "pyright": ["-m", "pyright", "--warnings", "--pythonpath"],
}


def every_name() -> str:
    """A program that takes each public function and class for what can be called, however it is imported.

    Many have the name of the module that they are in.
    """
    lines = ["from collections.abc import Callable"]
    for package in (f"fastmlp{name}" for name in PACKAGES):
        lines.append(f"import {package}")
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            if callable(getattr(module, name)):
                alias = f"{package}.{name}".replace(".", "_")
                lines.append(f"from {package} import {name} as {alias}")
                lines += [
                    f"{alias}_{i}: Callable[..., object] = {n}"
                    for i, n in enumerate((alias, f"{package}.{name}"))
                ]
    return "\n".join([*sorted(lines, key=lambda line: " = " in line), ""])


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_program(checker: str, from_wheel: Path, editable: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM.read_text())
    (tmp_path / "names.py").write_text(every_name())
    (tmp_path / "wrong.py").write_text('import fastmlp\n\nnet: int = fastmlp.MLP(4, [3, "2"])\n')
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    for python in (from_wheel, editable):  # one after the other: mypy reads torch once for both
        done = run([sys.executable, *CHECKERS[checker], python, "program.py", "names.py"], tmp_path)
        assert done.returncode == 0, f"{python}:\n{done.stdout}{done.stderr}"
        done = run([sys.executable, *CHECKERS[checker], python, "wrong.py"], tmp_path)
        assert done.returncode == 1
        assert len([line for line in done.stdout.splitlines() if "error:" in line]) == 2, done.stdout


def test_the_program_runs(from_wheel: Path, tmp_path: Path) -> None:
    done = run([from_wheel, PROGRAM], tmp_path)
    assert done.returncode == 0, done.stderr
