"""How heavy the house is, as a table, and the bounds that it is kept within.

``python tests/house.py`` prints lines by room, the functions with the most parameters, branches and lines,
the longest files, and the Python calls that a public function makes before its first launch. It fails where a
figure passes its bound. ``--static`` leaves the calls out, which need Triton and half a minute.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("fastmlp", "kernels", "benchmarks")
PARAMETERS = {"kernel": 20, "device function": 13, "function": 12}
COMPLEXITY = 15  # ruff's C901
FUNCTION = 80  # lines, of what is no kernel
FILE = 400  # lines, tests too
#: Functions that may have more parameters, and why.
EXCEPTIONS = {
    "fastmlp/training/fit.py:fit": "public: what a run may be told, each by its name",
    "fastmlp/cli/predict.py:predict": "a command: its parameters are its options",
}
MOST_EXCEPTIONS = 5
#: Lines of Python that a room may have: what it has now, rounded up. Who needs more says why in the commit.
LINES = {
    "benchmarks": 7350,
    "fastmlp": 650,
    "fastmlp/autograd": 1630,
    "fastmlp/backends": 2010,
    "fastmlp/cli": 3380,
    "fastmlp/costs": 1470,
    "fastmlp/data": 500,
    "fastmlp/engine": 2130,
    "fastmlp/functional": 1550,
    "fastmlp/modules": 1590,
    "fastmlp/ops": 700,
    "fastmlp/plots": 1150,
    "fastmlp/profiling": 950,
    "fastmlp/studies": 1100,
    "fastmlp/training": 3550,
    "kernels": 1000,
    "kernels/common": 970,
    "kernels/linear": 780,
    "kernels/loss": 910,
    "kernels/mlp": 710,
    "kernels/offline": 1090,
    "kernels/tiles": 570,
    "kernels/training": 920,
}
#: Python calls of a public function before its first launch.
CALLS = {
    "functional.linear_act, no grad": 16,
    "net 784-256-10 forward, no grad": 32,
    "net 784-256-10 forward, recording": 29,
    "functional.cross_entropy, no grad": 18,
    "cross-entropy forward + backward": 20,
    "net, loss, backward": 30,
    "net, loss, backward: tanh": 30,
    "net, loss, backward: GELU": 30,
    "net, loss, backward: PReLU": 30,
    "net, loss, backward: dropout": 31,
    "narrow net 64 (x 5)-10 forward, no grad": 32,
    "narrow net, loss, backward": 30,
    "squared error forward + backward": 20,
    "linear cross-entropy, 10 classes, forward + backward": 20,
    "linear cross-entropy, 1000 classes, forward + backward": 228,
    "training step with SGD, TrainStep": 69,
    "training step with SGD, engine eager": 66,
    "timm's Mlp 64-256-64 by fuse, no grad": 38,
    "timm's Mlp 64-256-64 by fuse, forward + backward": 35,
}


class Function(NamedTuple):
    """A function as the bounds see it."""

    where: str  # file:line
    name: str
    kind: str  # one of PARAMETERS
    parameters: int
    lines: int


def functions(source: str, file: str = "") -> Iterator[Function]:
    """Every function of a file, methods and those within others included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            of = node.args
            named = [a.arg for a in (*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg) if a]
            count = len(named) - (named[:1] in (["self"], ["cls"]))
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            yield Function(f"{file}:{node.lineno}", node.name, _kind(node), count, length)


def _kind(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    if not any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list):
        return "function"
    return "kernel" if function.name.endswith("_kernel") else "device function"


def files(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """Sources by their paths; fastmlp has links to the others, which not every Python follows."""
    found = sorted({path.resolve() for folder in folders for path in (root / folder).rglob("*.py")})
    return {path.relative_to(root.resolve()).as_posix(): path.read_text() for path in found}


def room_of(file: str) -> str:
    """The room that a product file stands in: a package of fastmlp or of kernels, or what is beside these."""
    parts = file.split("/")
    nested = parts[0] in ("fastmlp", "kernels") and len(parts) > 2
    return "/".join(parts[: 2 if nested else 1])


def lines_by_room(sources: dict[str, str]) -> Counter[str]:
    """Lines of Python, blank ones and comments too."""
    found: Counter[str] = Counter()
    for file, source in sources.items():
        found[room_of(file)] += source.count("\n")
    return found


def complexity(root: Path) -> list[tuple[int, str]]:
    """Of every function, the most complex first, as ruff counts: (complexity, ``file:line name``)."""
    words = [
        "check",
        "--isolated",
        "--select",
        "C901",
        "--config",
        "lint.mccabe.max-complexity=0",
        "--exit-zero",
    ]
    ruff = Path(sys.executable).with_name("ruff")
    command = [str(ruff) if ruff.exists() else "ruff", *words, "--output-format", "json", *PRODUCT, "tests"]
    told = json.loads(subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout)
    found = []
    for one in told:
        name, count = re.match(r"`(.*)` is too complex \((\d+) > 0\)", one["message"]).groups()  # type: ignore[union-attr]
        file = Path(one["filename"]).resolve().relative_to(root.resolve()).as_posix()
        found.append((int(count), f"{file}:{one['location']['row']} {name}"))
    return sorted(set(found), key=lambda pair: (-pair[0], pair[1]))


def parameter_problems(sources: dict[str, str]) -> list[str]:
    """What has too many parameters, and exceptions that are none."""
    found, over = [], set()
    for file, source in sources.items():
        for one in functions(source, file):
            limit, name = PARAMETERS[one.kind], f"{file}:{one.name}"
            if one.parameters <= limit:
                continue
            over.add(name)
            if name not in EXCEPTIONS:
                found.append(
                    f"{one.where}: {one.kind} {one.name} has {one.parameters} parameters, at most {limit}"
                )
    found += [f"{name}: is within its bound, no exception any more" for name in EXCEPTIONS.keys() - over]
    if len(EXCEPTIONS) > MOST_EXCEPTIONS:
        found.append(f"{len(EXCEPTIONS)} exceptions, at most {MOST_EXCEPTIONS}")
    return found


def length_problems(sources: dict[str, str]) -> list[str]:
    """Files and functions that are too long."""
    found = [
        f"{file}: {count} lines, at most {FILE}"
        for file, source in sources.items()
        if (count := source.count("\n")) > FILE
    ]
    for file, source in sources.items():
        found += [
            f"{one.where}: {one.name} has {one.lines} lines, at most {FUNCTION}"
            for one in functions(source, file)
            if one.kind == "function" and one.lines > FUNCTION
        ]
    return found


def over(found: dict[str, int], bounds: dict[str, int], unit: str) -> list[str]:
    """What has passed its bound, or has none, and bounds of what is not there."""
    problems = []
    for name in sorted(found.keys() | bounds.keys()):
        if name not in bounds:
            problems.append(f"{name}: has no bound on its {unit}")
        elif name not in found:
            problems.append(f"{name}: is not there any more, and has a bound on its {unit}")
        elif found[name] > bounds[name]:
            problems.append(f"{name}: {found[name]} {unit}, at most {bounds[name]}")
    return problems


def calls() -> dict[str, int]:
    """Python functions that each of the host's cases enters before its first launch, a GPU being stubbed."""
    from fastmlp.benchmarks import host, stub
    from fastmlp.benchmarks.host_cases import CASES

    found = {}
    with host.gpu("cpu"):
        for case in CASES:
            call = host.calls(replace(case, peers=(host.OURS,)), "cpu")[0].get(host.OURS)
            if call is None:  # needs a package that is not here
                continue
            call()
            found[case.label] = _entered(call, stub.launches)
    return found


def _entered(call: Callable[[], object], launches: Callable[[], int]) -> int:
    entered, before = 0, launches()

    def note(frame: object, event: str, called: object) -> None:
        nonlocal entered
        sys.setprofile(None)  # `launches` is no part of the call
        entered += event == "call" and launches() == before
        sys.setprofile(note)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


def table(title: str, rows: Iterable[tuple[object, ...]]) -> None:
    """Print rows: figures first, then what they are of."""
    print(f"\n{title}")
    for *figures, name in rows:
        print("".join(f"{figure!s:>8}" for figure in figures), f" {name}")


def main(argv: list[str] | None = None) -> int:
    """Print the table; 1 if a figure passes its bound."""
    parser = argparse.ArgumentParser("tests/house.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--static", action="store_true", help="not the Python calls before a launch")
    asked = parser.parse_args(argv)
    sources, tests = files(ROOT, PRODUCT), files(ROOT, ("tests",))
    every, lines, branches = sources | tests, lines_by_room(sources), complexity(ROOT)
    named = [one for file, source in sources.items() for one in functions(source, file)]
    table("lines of Python, at most", [(lines[room], LINES.get(room, "-"), room) for room in sorted(lines)])
    table("", [(sum(lines.values()), "product"), (sum(s.count("\n") for s in tests.values()), "tests")])
    table(f"files, at most {FILE} lines", longest((s.count("\n"), f) for f, s in every.items()))
    table(f"complexity, at most {COMPLEXITY}", branches[:8])
    table(f"functions, at most {FUNCTION} lines (no kernels)", longest(
        (one.lines, f"{one.where} {one.name}") for one in named if one.kind == "function"
    ))  # fmt: skip
    for kind, most in PARAMETERS.items():
        table(f"parameters of a {kind}, at most {most}", longest(
            ((one.parameters, f"{one.where} {one.name}") for one in named if one.kind == kind), 4
        ))  # fmt: skip
    problems = parameter_problems(sources) + length_problems(every) + over(lines, LINES, "lines of Python")
    problems += [
        f"{name}: complexity {count}, at most {COMPLEXITY}" for count, name in branches if count > COMPLEXITY
    ]
    if not asked.static:
        entered = calls()
        title = "Python calls before the first launch, at most"
        table(title, [(count, CALLS.get(name, "-"), name) for name, count in entered.items()])
        problems += over(entered, CALLS, "Python calls before the first launch")
    print("\n" + "\n".join(problems or ["Everything is within its bounds."]))
    return bool(problems)


def longest(figures: Iterable[tuple[int, str]], most: int = 8) -> list[tuple[int, str]]:
    """The largest figures."""
    return sorted(figures, key=lambda pair: (-pair[0], pair[1]))[:most]


if __name__ == "__main__":
    sys.exit(main())
