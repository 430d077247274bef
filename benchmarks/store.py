"""report.json: rows by part and key, rewritten after each, so that none is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastmlp import atomic

from .machine import same
from .measure import Row


class Store:
    """The report in a folder.

    What is there already stays, if it comes from the same machine, versions and commit; a row that is
    measured again takes the old one's place.
    """

    def __init__(self, out: Path, machine: dict[str, Any]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._out, self._path = out, out / "report.json"
        self.report: dict[str, Any] = {"machine": machine, "rows": [], "stops": {}, "left_out": []}
        self.dropped = False  # an older report was there, and another machine's or commit's
        if self._path.exists():
            before = load(out)
            self.dropped = not same(before["machine"], machine)
            if not self.dropped:
                self.report = before | {"machine": machine}

    def reload(self) -> None:
        """Take over what another process wrote."""
        self.report = load(self._out)

    def get(self, part: str, key: str) -> Row | None:
        """The row, if there is one."""
        return next((r for r in self.report["rows"] if (r["part"], r["key"]) == (part, key)), None)

    def begin(self, part: str, key: str) -> None:
        """Say what is being measured, in case that the process does not survive it."""
        self.report["now"] = {"part": part, "key": key}
        self.save()

    def put(self, part: str, row: Row) -> None:
        """Add the row, or replace the one of its name."""
        row = {"part": part, **row}
        rows = self.report["rows"]
        place = next(
            (i for i, r in enumerate(rows) if (r["part"], r["key"]) == (part, row["key"])), len(rows)
        )
        rows[place : place + 1] = [row]
        self.report.pop("now", None)
        self.save()

    def leave_out(self, part: str, key: str) -> None:
        """Name a row that there was no time for."""
        if self.get(part, key) is None and f"{part}: {key}" not in self.report["left_out"]:
            self.report["left_out"].append(f"{part}: {key}")

    def save(self) -> None:
        """Write the file whole or not at all."""
        self.report["left_out"] = [
            name for name in self.report["left_out"] if self.get(*name.split(": ", 1)) is None
        ]
        atomic.write(self._path, [json.dumps(self.report, indent=1).encode(), b"\n"])


def load(out: Path) -> dict[str, Any]:
    """A stored report."""
    return json.loads((out / "report.json").read_text())
