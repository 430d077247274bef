"""Two reports side by side: what became faster, what slower, and whether the quartiles say so too."""

from __future__ import annotations

from typing import Any

from . import formats
from .measure import Row
from .peers import OURS

HEAD = ("work", "size", "dtype", "before", "after", "speed-up", "")


def compare(before: dict[str, Any], after: dict[str, Any], match: str = "") -> dict[str, Any]:
    """Ours in the rows that both have; ``speedup`` above 1 means that ``after`` is faster.

    A difference is ``clear`` where the quartiles of the two do not overlap.
    """
    one, other = _rows(before, match), _rows(after, match)
    rows = []
    for key, row in one.items():
        if key in other:
            a, b = row["seconds"][OURS], other[key]["seconds"][OURS]
            rows.append(
                {
                    **{name: row[name] for name in ("part", "key", "group", "label", "dtype")},
                    "sweep": row.get("sweep"),
                    "before": a,
                    "after": b,
                    "speedup": a["median"] / b["median"],
                    "clear": a["low"] > b["high"] or b["low"] > a["high"],
                }
            )
    return {
        "before": before["machine"],
        "after": after["machine"],
        "rows": rows,
        "only_before": [key for part, key in one if (part, key) not in other],
        "only_after": [key for part, key in other if (part, key) not in one],
    }


def cells(row: Row) -> list[str]:
    """A compared row's cells, under `HEAD`."""
    verdict = ("faster" if row["speedup"] > 1 else "slower") if row["clear"] else "no clear change"
    times = [formats.time(row[name]) for name in ("before", "after")]
    return [row["group"], row["label"], row["dtype"], *times, f"{row['speedup']:.2f}×", verdict]


def _rows(report: dict[str, Any], match: str) -> dict[tuple[str, str], Row]:
    return {
        (row["part"], row["key"]): row
        for row in report["rows"]
        if OURS in row.get("seconds", {}) and match in row["key"]
    }
