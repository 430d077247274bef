"""Imports run downwards, from cli to kernels: never from a layer to one above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_LAYERS = [
    *("cli", "benchmarks", "studies", "plots", "profiling", "training", "engine", "modules", "functional"),
    *("ops", "autograd", "backends", "costs", "kernels"),
]
#: What every layer may use, down to the one named: files, the table of activations, what work costs, data.
_SHARED = {
    "activations": "backends",
    "files": "kernels",
    "compiling": "costs",
    "errors": "backends",
    "markup": "backends",
    "profiler_ranges": "backends",
    "data": "training",
}
#: Packages that stand at the top of the tree.
_TOP = ("benchmarks", "kernels")
_FILES = sorted(path for folder in ("fastmlp", *_TOP) for path in (_ROOT / folder).rglob("*.py"))


def layer_of(parts: tuple[str, ...]) -> str:
    """The layer that a module path below fastmlp belongs to."""
    return parts[0].removesuffix(".py") if parts else ""


def imported(path: Path) -> set[str]:
    """The parts of fastmlp that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastmlp":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", _FILES, ids=lambda p: str(p.relative_to(_ROOT)))
def test_imports_run_downwards(path: Path) -> None:
    relative = path.relative_to(_ROOT).parts
    layer = relative[0] if relative[0] in _TOP else layer_of(relative[1:])
    for other in imported(path) - {layer}:
        if layer in _LAYERS and other in _LAYERS:
            assert _LAYERS.index(other) > _LAYERS.index(layer), f"{layer} imports {other}"
        elif layer in _LAYERS and other in _SHARED:
            assert _LAYERS.index(layer) <= _LAYERS.index(_SHARED[other]), f"{layer} imports {other}"
        elif layer in _SHARED:
            assert other in _SHARED, f"{layer} imports {other}"


def test_the_check_sees_imports() -> None:
    assert "kernels" in imported(_ROOT / "fastmlp" / "backends" / "triton_backend.py")
    assert "backends" in imported(_ROOT / "fastmlp" / "functional" / "linear.py")


def from_imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of each `from module import name`."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [(node.module or "", alias.name) for node in nodes for alias in node.names]


@pytest.mark.parametrize("path", _FILES, ids=lambda p: str(p.relative_to(_ROOT)))
def test_a_function_named_as_its_module_is_imported_from_there(path: Path) -> None:
    """Of `from fastmlp.training import fit` within the package mypy may take the module fit.py."""
    for module, name in from_imports(path):
        package = _ROOT.joinpath(*module.split("."), "__init__.py")
        if module.startswith("fastmlp") and package.exists():
            assert (f"{module}.{name}", name) not in from_imports(package), f"from {module}.{name}, please"


def test_importing_does_not_import_the_compiler() -> None:
    """Which takes longer than all the rest, torch apart."""
    code = "import sys, fastmlp; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=_ROOT).returncode == 0


def test_every_package_is_installed() -> None:
    """An editable install finds a folder that the package list forgets; a wheel does not."""
    listed = set(
        re.findall(r'^    "(fastmlp[\w.]*)",$', (_ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    )
    folders = {path.parent for path in (_ROOT / "fastmlp").rglob("__init__.py")}
    found = {".".join(folder.relative_to(_ROOT).parts) for folder in folders} | {
        "fastmlp.benchmarks",
        "fastmlp.benchmarks.gpu",
        "fastmlp.kernels",
        *(f"fastmlp.kernels.{path.parent.name}" for path in (_ROOT / "kernels").glob("*/__init__.py")),
    }
    assert listed == found
