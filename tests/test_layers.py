"""Imports run downwards, from cli to kernels: never from a layer to one above it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_PAGE = (_ROOT / "docs" / "architecture.md").read_text()
#: Packages that stand at the top of the tree.
_TOP = ("benchmarks", "kernels")
_FILES = sorted(path for folder in ("fastmlp", *_TOP) for path in (_ROOT / folder).rglob("*.py"))
_FILES = [
    path for path in _FILES if path.resolve() == path
]  # fastmlp has links, which not every Python follows


def table(column: str) -> dict[str, set[str]]:
    """What imports what, from the page's tables whose first column has that name, from the top down."""
    found = {}
    for block in re.findall(rf"^\| {column} \|.*\n\|.*\n((?:\|.*\n)*)", _PAGE, re.MULTILINE):
        for row in block.splitlines():
            name, _, imports = (cell.strip() for cell in row.strip("|").split("|"))
            found[name] = set(imports.split())
    return found


def imported(path: Path, package: str = "fastmlp") -> set[str]:
    """The parts of a package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}."):
            rest = (node.module or "")[len(package) + 1 :]
            found |= {rest.split(".")[0]} if rest else {alias.name for alias in node.names}
    return found


def imports(folder: Path, package: str = "fastmlp") -> dict[str, set[str]]:
    """What each part of a folder, a package or a module, imports of the package's other parts."""
    found: dict[str, set[str]] = {}
    for path in _FILES:
        if path.is_relative_to(folder):
            part = path.relative_to(folder).parts[0].removesuffix(".py")
            found.setdefault(part, set()).update(imported(path, package) - {part})
    return found


def test_the_page_says_what_is_imported() -> None:
    found = imports(_ROOT / "fastmlp")
    for name in _TOP:
        found[name] = set().union(
            *(imported(path) for path in _FILES if path.is_relative_to(_ROOT / name))
        ) - {name}
    for name in ("__init__", "__main__", "choice", "devices"):  # the public names, by the ways to them
        del found[name]
    assert found == table("room") | table("module")


def test_the_page_says_what_kernels_import() -> None:
    found = imports(_ROOT / "kernels", "fastmlp.kernels")
    del found["__init__"]
    assert found == table("folder")


@pytest.mark.parametrize("column", ["room", "folder"])
def test_imports_run_downwards(column: str) -> None:
    """A room imports rooms that stand below it, and modules that every room may import."""
    rooms = table(column)
    order = list(rooms)
    for room, others in rooms.items():
        for other in others & set(order):
            assert order.index(other) > order.index(room), f"{room} imports {other}"
    assert not set().union(*table("module").values())


def test_the_picture_has_the_rooms() -> None:
    """In the order of the table."""
    picture = _PAGE.split("```")[1]
    shown = re.findall(r"[a-z]+", "".join(re.findall("│(.*?)│", picture)))
    assert set(shown) == set(table("room")) | {"data"}
    rows = [set(re.findall(r"[a-z]+", row)) for row in re.findall("│(.*?)│", picture)]
    level = {room: i for i, row in enumerate(rows) for room in row}
    for room, others in table("room").items():
        assert all(level[room] <= level[other] for other in others & set(level)), room


def from_imports(path: Path) -> list[tuple[str, str]]:
    """(module, name) of each `from module import name`."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return [(node.module or "", alias.name) for node in nodes for alias in node.names]


def test_a_function_named_as_its_module_is_imported_from_there() -> None:
    """Of `from fastmlp.training import fit` within the package mypy may take the module fit.py."""
    exported = {path: set(from_imports(path)) for path in _FILES if path.name == "__init__.py"}
    for path in _FILES:
        for module, name in from_imports(path):
            package = _ROOT.joinpath(*module.split("."), "__init__.py")
            if module.startswith("fastmlp") and package in exported:
                assert (f"{module}.{name}", name) not in exported[package], (
                    f"{path}: from {module}.{name}, please"
                )


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
