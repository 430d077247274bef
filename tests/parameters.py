"""No function has many parameters: what travels together is one argument.

``python tests/parameters.py`` names every function that has too many. Ruff's PLR0913 has one bound for all of
them; ours are by what calls a function: the host, a launch, or a kernel.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("kernels", "fastmlp", "benchmarks")
LIMITS = {"kernel": 20, "device function": 13, "function": 12}
MOST_EXCEPTIONS = 5
EXCEPTIONS = {
    "fastmlp/training/fit.py:fit": "public: what a run may be told, each by its name",
    "fastmlp/cli/predict.py:predict": "a command: its parameters are its options",
}


class Function(NamedTuple):
    """A function as the bounds see it."""

    name: str
    kind: str  # one of LIMITS
    parameters: int
    line: int


def functions(source: str) -> Iterator[Function]:
    """Every function of a file, methods and those within others included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            of = node.args
            named = [a.arg for a in (*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg) if a]
            count = len(named) - (named[:1] in (["self"], ["cls"]))
            yield Function(node.name, _kind(node), count, node.lineno)


def _kind(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if not any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list):
        return "function"
    return "kernel" if function.name.endswith("_kernel") else "device function"


def problems(root: Path = ROOT) -> list[str]:
    """What is over its bound below ``root``, and exceptions that are none."""
    found, over = [], set()
    # fastmlp has links to the other two, which one Python follows and another does not.
    files = sorted({path.resolve() for folder in FOLDERS for path in (root / folder).rglob("*.py")})
    for path in files:
        where = path.relative_to(root.resolve()).as_posix()
        for one in functions(path.read_text()):
            limit, name = LIMITS[one.kind], f"{where}:{one.name}"
            if one.parameters <= limit:
                continue
            over.add(name)
            if name not in EXCEPTIONS:
                said = f"{one.kind} {one.name} has {one.parameters} parameters, at most {limit}"
                found.append(f"{where}:{one.line}: {said}")
    found += [f"{name}: is within its bound, no exception any more" for name in EXCEPTIONS.keys() - over]
    if len(EXCEPTIONS) > MOST_EXCEPTIONS:
        found.append(f"{len(EXCEPTIONS)} exceptions, at most {MOST_EXCEPTIONS}")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or None)
