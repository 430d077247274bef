"""Wheel, sdist and editable install, each made once for all tests."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

import pytest

from tests.installs import clone, closure, link, python, run, see_this_environment, site
from tests.once import once

#: What torch asks for and a CPU build of it comes without, and what it asks for only optionally.
LEFT_OUT = {"triton", "numpy"}
#: Of the extra "train", without what the command line imports only where it is used.
COMMAND_LINE = ("numpy", "rich", "safetensors", "tomli-w", "typer")


def build(folder: Path) -> None:
    """The wheel and the sdist of a clean copy of the tree; and in "again" the wheel of the sdist."""
    source = clone(folder / "source")
    tool = [sys.executable, "-m", "build", "--no-isolation"]  # with this environment's setuptools: no network
    for command in ([*tool, "--sdist", "--wheel", "--outdir", folder], [*tool, "--outdir", folder / "again"]):
        done = run([*command, source], folder)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "packages", build)


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def sdist(built: Path) -> Path:
    (path,) = built.glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The bin/ of a Python that has the wheel, torch without Triton, and what torch needs."""

    def make(folder: Path) -> None:
        link(closure("torch") - LEFT_OUT, site(python(folder, wheel)))

    return once(tmp_path_factory, "bare", make) / "bin"


@pytest.fixture(scope="session")
def from_wheel(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A Python that has the wheel beside all that is installed here."""
    return (
        once(tmp_path_factory, "from-wheel", lambda folder: see_this_environment(python(folder, wheel)))
        / "bin"
        / "python"
    )


@pytest.fixture(scope="session")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with a clone, named fastmlp, installed by `pip install -e`, in the folder of that clone."""

    def make(folder: Path) -> None:
        venv.create(folder / ".venv", with_pip=False)
        see_this_environment(folder / ".venv" / "bin" / "python")  # setuptools, which builds it
        source = clone(folder / "fastmlp")
        python(folder / ".venv", source, "--no-build-isolation", "-e")

    return once(tmp_path_factory, "editable", make) / ".venv" / "bin" / "python"


@pytest.fixture(scope="session")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> str:
    """For PYTHONPATH: what the command line needs besides."""

    def make(folder: Path) -> None:
        folder.mkdir()
        link(closure(*COMMAND_LINE), folder)

    return str(once(tmp_path_factory, "command-line", make))
