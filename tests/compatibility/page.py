"""docs/compatibility.md, from test results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

#: The columns of the page: backends, and dtypes within each.
BACKENDS = ("triton", "torch")
DTYPES = ("float32", "float16", "bfloat16", "float64")
#: What a cell may say. Many tests may stand behind one; a failure of any is all that it says.
FAILS, KERNELS, TORCH, REFUSED, SKIPPED = "**FAILS**", "kernels", "torch", "refused", "not run"
_ORDER = (FAILS, KERNELS, TORCH, REFUSED, SKIPPED)

#: (group, feature) to (backend, dtype) to outcomes; "any" where a feature does not depend on it.
Cells = dict[tuple[str, str], dict[tuple[str, str], set[str]]]

_HEAD = """# Compatibility with PyTorch

A row is a feature; a cell is the outcome of the tests of `tests/compatibility` that are marked with it, which
compare with torch's own modules and functions. The tests write this page:

<!-- not run: these are the tests themselves -->
```sh
.venv/bin/pytest -n auto tests/compatibility --compatibility docs/compatibility.md
```

- **kernels**: passes, and the tests saw Triton kernels launched;
- **torch**: passes on torch's own ops: under `triton` the fallback for what no kernel does;
- **refused**: an error says why, before anything is written, and the tests check that it does;
- **not run**: this device cannot run the test;
- empty: the feature has no such case.

"""


class Refusal:
    """``pytest.raises`` that marks its test's cell as refused."""

    def __init__(self, node: pytest.Item) -> None:
        self._node = node

    @contextmanager
    def __call__(
        self, error: type[BaseException] | tuple[type[BaseException], ...], match: str
    ) -> Iterator[pytest.ExceptionInfo[Any]]:
        """Expect ``error`` with a message that matches."""
        with pytest.raises(error, match=match) as info:
            yield info
        self._node.refused = True  # type: ignore[attr-defined]


class Page:
    """Gathers the cells of a run, from every worker, and writes them when it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: Cells = {}
        self._told: set[str] = set()  # tests whose teardown has nothing to add

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a test's outcome: its teardown's, by when all is known, or the phase's that went wrong."""
        cell = dict(report.user_properties).get("compatibility")
        if not isinstance(cell, dict) or (report.passed and report.when != "teardown"):
            return
        if report.passed and report.nodeid in self._told:  # skipped, or failed: what follows proves nothing
            return
        self._told.add(report.nodeid)
        row = self.cells.setdefault((cell["group"], cell["feature"]), {})
        row.setdefault((cell["backend"], cell["dtype"]), set()).add(_outcome(report, cell))

    def pytest_sessionfinish(self) -> None:
        """Write the page."""
        self.path.write_text(render(self.cells, self.device()))

    @staticmethod
    def device() -> str:
        """What ran the tests."""
        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
        return "a CPU, the kernels in Triton's interpreter"


def _outcome(report: pytest.TestReport, cell: dict[str, Any]) -> str:
    if report.failed:
        return FAILS
    if report.skipped:
        return SKIPPED
    if cell["refused"]:
        return REFUSED
    return KERNELS if cell["kernels"] else TORCH


def render(cells: Cells, device: str) -> str:
    """The page."""
    lines = [f"Ran on {device}, torch {torch.__version__.split('+')[0]}.", ""]
    for group in sorted({group for group, _ in cells}):
        rows = {feature: row for (g, feature), row in sorted(cells.items()) if g == group}
        lines += [f"## {group}", ""]
        lines += [*_table(rows), ""]
    return _HEAD + "\n".join(lines).rstrip() + "\n"


def _table(rows: dict[str, dict[tuple[str, str], set[str]]]) -> list[str]:
    head = ["feature", *(f"{backend} {dtype}" for backend in BACKENDS for dtype in DTYPES)]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for feature, row in rows.items():
        found = [_cell(row, backend, dtype) for backend in BACKENDS for dtype in DTYPES]
        lines.append("| " + " | ".join([feature, *found]) + " |")
    return lines


def _cell(row: dict[tuple[str, str], set[str]], backend: str, dtype: str) -> str:
    """All outcomes of the tests that are of this backend and dtype, or of any."""
    outcomes = set[str]()
    for (of_backend, of_dtype), found in row.items():
        if of_backend in (backend, "any") and of_dtype in (dtype, "any"):
            outcomes |= found
    if FAILS in outcomes:
        return FAILS
    if len(outcomes) > 1:
        outcomes.discard(SKIPPED)
    return ", ".join(outcome for outcome in _ORDER if outcome in outcomes)
