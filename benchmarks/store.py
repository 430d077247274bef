"""report.json: rows by part and key, rewritten after each, so that none is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastmlp import files

from .machine import same
from .measure import Row


class Store:
    """The report in a folder.

    What is there already stays, if it comes from the same machine, versions and commit; a row that is
    measured again takes the old one's place.
    """

    def __init__(self, out: Path, machine: dict[str, Any]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "report.json"
        self.report: dict[str, Any] = {"machine": machine, "rows": [], "stops": {}, "left_out": []}
        self.dropped: Path | None = None  # what was there: damaged, or another machine's or commit's
        if self._path.exists():
            before = _readable(out)
            if before is None or not same(before["machine"], machine):
                self.dropped = self._path.rename(self._path.with_name("report.before.json"))
            else:
                self.report = before | {"machine": machine}

    def get(self, part: str, key: str) -> Row | None:
        """The row, if there is one."""
        return next((r for r in self.report["rows"] if (r["part"], r["key"]) == (part, key)), None)

    def put(self, part: str, row: Row) -> None:
        """`add`, and save."""
        self.add(part, row)
        self.save()

    def add(self, part: str, row: Row) -> None:
        """Add the row, or replace the one of its name."""
        row = {"part": part, **row}
        rows = self.report["rows"]
        place = next(
            (i for i, r in enumerate(rows) if (r["part"], r["key"]) == (row["part"], row["key"])), len(rows)
        )
        rows[place : place + 1] = [row]

    def tell(self, facts: dict[str, dict[str, Any]]) -> None:
        """Add facts beside the rows, such as the ceilings, to those that are there."""
        for name, more in facts.items():
            self.report[name] = (self.report.get(name) or {}) | more

    def leave_out(self, names: Iterable[str]) -> None:
        """Name rows that there was no time for, as ``part: key``."""
        self.report["left_out"] = list(dict.fromkeys([*self.report["left_out"], *names]))

    def save(self) -> None:
        """Write the file whole or not at all."""
        self.report["left_out"] = [
            name for name in self.report["left_out"] if self.get(*name.split(": ", 1)) is None
        ]
        write(self._path, self.report)


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the file whole or not at all, in strict JSON: a number that is not finite is a string, "inf"."""
    files.write(path, [json.dumps(_finite(report), indent=1, allow_nan=False).encode(), b"\n"])


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def load(out: Path) -> dict[str, Any]:
    """A stored report."""
    return json.loads((out / "report.json").read_text())


def _readable(out: Path) -> dict[str, Any] | None:
    """A stored report; None where it is damaged."""
    try:
        report = load(out)
        rows = all({"part", "key"} <= row.keys() for row in report["rows"])
        lists = isinstance(report["rows"], list) and isinstance(report["left_out"], list)
        tables = all(isinstance(report.get(name, {}), dict) for name in ("machine", "stages", "stops"))
        return report if rows and lists and tables and "machine" in report else None
    except (AttributeError, ValueError, LookupError, TypeError, RecursionError):
        return None
