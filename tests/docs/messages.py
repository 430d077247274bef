"""The messages that code returns or raises, read from its source: what a page may quote."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: What may stand where an f-string has a value.
_ANYTHING = ".*?"


def returned(path: str, *functions: str) -> list[str]:
    """Patterns of every string that these functions of a file return, the last of a tuple's included."""
    tree = ast.parse((ROOT / path).read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in functions]
    assert {node.name for node in found} == set(functions), f"{path}: {functions}"
    returns = (r.value for f in found for r in ast.walk(f) if isinstance(r, ast.Return) and r.value)
    return [pattern for value in returns for pattern in _strings(value)]


def reasons(path: str) -> list[str]:
    """Patterns of the reasons of every `Choice` that a file makes."""
    calls = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Call)]
    made = [call.args[1] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Choice"]
    return [pattern for value in made for pattern in _strings(value)]


def everything(*folders: str) -> list[str]:
    """A pattern of every string in the sources of some folders that might be a message."""
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {text for path in files for text in _texts(ast.parse(path.read_text()))}
    return sorted(text for text in found if len(literal(text)) > 7 and "\n" not in text)


def literal(pattern: str) -> str:
    """What a pattern says itself."""
    return re.sub(r"\.\*\?|\\", "", pattern)


def _strings(node: ast.expr) -> Iterator[str]:
    """The strings among what an expression may be: not those that are arguments of a call."""
    if isinstance(node, ast.Constant | ast.JoinedStr):
        pattern = _pattern(node)
        if pattern:
            yield pattern
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _strings(value)
    elif isinstance(node, ast.IfExp):
        yield from _strings(node.body)
        yield from _strings(node.orelse)


def _pattern(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return _of(node.value) if isinstance(node.value, str) else None
    assert isinstance(node, ast.JoinedStr)
    return "".join(_of(p.value) if isinstance(p, ast.Constant) else _ANYTHING for p in node.values)


def _of(text: str) -> str:
    """The pattern of a text, or of a template for `str.format`."""
    return re.escape(text).replace(r"\{\}", _ANYTHING)


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            pattern = _pattern(node)
            if pattern:
                yield pattern
