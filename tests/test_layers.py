"""Imports run downwards, from cli to kernels: never from a layer to one above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_LAYERS = [
    *("cli", "benchmarks", "studies", "plots", "profiling", "training", "engine", "modules", "functional"),
    *("ops", "autograd", "backends", "costs", "kernels"),
]
#: What every layer may use, down to the one named: files, the table of activations, what work costs, data.
_SHARED = {
    "activations": "costs",
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


@cache
def from_imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of each `from module import name`, anywhere in a file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [(node.module or "", alias.name) for node in nodes for alias in node.names]


def imported(path: Path) -> set[str]:
    """The parts of fastmlp that a file imports."""
    found = set()
    for module, name in from_imports(path):
        top, *parts = module.split(".")
        if top == "fastmlp":
            found.add(parts[0] if parts else name)
    return found


def upwards(path: Path) -> list[str]:
    """What a file imports and must not."""
    relative = path.relative_to(_ROOT).parts
    layer = relative[0] if relative[0] in _TOP else layer_of(relative[1:])
    found = []
    for other in imported(path) - {layer}:
        if layer in _LAYERS and other in _LAYERS:
            allowed = _LAYERS.index(other) > _LAYERS.index(layer)
        elif layer in _LAYERS and other in _SHARED:
            allowed = _LAYERS.index(layer) <= _LAYERS.index(_SHARED[other])
        else:
            allowed = layer not in _SHARED or other in _SHARED
        if not allowed:
            found.append(f"{path.relative_to(_ROOT)} imports {other}")
    return found


def test_imports_run_downwards() -> None:
    assert [found for path in _FILES for found in upwards(path)] == []


def test_the_check_sees_imports() -> None:
    assert "kernels" in imported(_ROOT / "fastmlp" / "backends" / "triton_backend.py")
    assert "backends" in imported(_ROOT / "fastmlp" / "functional" / "linear.py")


def test_a_function_named_as_its_module_is_imported_from_there() -> None:
    """Of `from fastmlp.training import fit` within the package mypy may take the module fit.py."""
    of_package = {path.parent: from_imports(path) for path in _FILES if path.name == "__init__.py"}
    found = [
        f"{path.relative_to(_ROOT)}: from {module}.{name}, please"
        for path in _FILES
        for module, name in from_imports(path)
        if (f"{module}.{name}", name) in of_package.get(_ROOT.joinpath(*module.split(".")), [])
    ]
    assert found == []


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
