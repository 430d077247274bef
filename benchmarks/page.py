"""A report as one page that needs no network: ``index.html`` with its data, its scripts and plotly.js inside.

The text (tables, targets, machine) is written here, with every name escaped; ``web/page.js`` draws the
pictures from the numbers that `payload` takes from the report.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastmlp import files as atomic

from . import accuracy, formats, palette, sweeps, tables, targets
from .measure import LEFT_OUT, Row
from .peers import EAGER, OF_OURS, OURS, PEERS
from .sweeps import SWEEPS, Sweep

NAME = "index.html"
_WEB = Path(__file__).resolve().parent / "web"
#: Parts of `benchmarks.gpu` without times; what fails in them is among the errors.
_NO_TIMES = ("tests", "facts", "smoke", "engines", "tune")
_PARTS = {"cases": "cases", "epochs": "epochs", "accuracy": "time to accuracy", "sweeps": "sweeps"}


def write(report: dict[str, Any], out: Path) -> Path:
    """Put the page into the folder ``out``, whole or not at all.

    Raises:
        ImportError: plotly, which brings plotly.js, is not installed.
    """
    text = html(report)
    path = out / NAME
    atomic.write(path, [text.encode()])
    return path


def html(report: dict[str, Any]) -> str:
    """The page."""
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_WEB), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        style=(_WEB / "page.css").read_text(),
        script=(_WEB / "page.js").read_text(),
        plotly=get_plotlyjs(),
        payload=payload(report),
        **texts(report),
    )


def payload(report: dict[str, Any]) -> dict[str, Any]:
    """What the pictures are drawn from: the report's own numbers, and the text of each point."""
    rows = _timed(report["rows"])
    return {
        "ours": OURS,
        "eager": EAGER,
        "peers": [_peer(name) for name in tables.seen(rows)],
        "headline": [
            _point(row) | {"name": _name(row)}
            for row in rows
            if row.get("important") and row["part"] != "sweeps"
        ],
        "sweeps": [found for sweep in SWEEPS if (found := _sweep(sweep, report))],
        "roofline": _roofline(report, rows),
        "accuracy": accuracy.curves(report["rows"]),
        "target": accuracy.TARGET,
    }


def texts(report: dict[str, Any]) -> dict[str, Any]:
    """What the template puts into words and tables."""
    facts, rows = report["machine"], _timed(report["rows"])
    found = targets.evaluate(report)
    parts = [row["part"] for row in report["rows"]]
    return {
        "title": f"fastmlp on {facts['device']}",
        "facts": facts,
        "machine": tables.machine(facts),
        "versions": {name: version for name, version in facts["versions"].items() if version},
        "tiles": _tiles(rows, found, facts["kind"]),
        "lines": [line for row in report["rows"] for line in _lines(row)],
        "targets_here": [t for t in found if t["kind"] == facts["kind"]],
        "targets_elsewhere": [t for t in found if t["kind"] != facts["kind"]],
        "ceilings": tables.ceilings(report["ceilings"]) if report.get("ceilings") else [],
        "recipe_head": tables.RECIPES,
        "recipes": tables.recipes(row for row in report["rows"] if row["part"] == "accuracy"),
        "skipped": [f"{row['key']}: {row['skipped']}" for row in report["rows"] if row.get("skipped")],
        "tests": next((tables.outcome(row) for row in report["rows"] if row["part"] == "tests"), None),
        "quick": any(LEFT_OUT in row.get("missing", {}).values() for row in report["rows"]),
        "missing": tables.reasons(report["rows"]),
        "unknown": _unknown(report["rows"]),
        "errors": [f"{row['key']}: {row['error']}" for row in report["rows"] if row.get("error")],
        "left_out": report.get("left_out", []),
        "no_parts": [name for part, name in _PARTS.items() if part not in parts],
        "no_sweeps": [
            sweep.title
            for sweep in SWEEPS
            if "sweeps" in parts and not any(row.get("sweep") == sweep.name for row in report["rows"])
        ],
        "has_memory": any(row.get("memory") for row in rows),
    }


def _timed(rows: Iterable[Row]) -> list[Row]:
    """Those that have a time of ours."""
    return [row for row in rows if OURS in row.get("seconds", {})]


def _peer(name: str) -> dict[str, Any]:
    colour = palette.COLOURS.get(name, palette.OTHER)
    return {
        "name": name,
        "light": colour,
        "dark": palette.on_dark(colour),
        "symbol": palette.symbol(name),
        "ours": name in OF_OURS,
    }


def _point(row: Row) -> dict[str, Any]:
    """A row's times, each with its text."""
    return {
        "seconds": {
            peer: {**{end: timing[end] for end in ("median", "low", "high")}, "text": formats.time(timing)}
            for peer, timing in row["seconds"].items()
        },
        "floor": row["floor"],
        "floorText": formats.seconds(row["floor"]),
    }


def _name(row: Row) -> str:
    """A case in short: training step, 784-256-10, batch 256, fp32."""
    group = row["group"].replace(" (SGD)", "").replace(" forward + backward", " fwd + bwd")
    group = group.replace(", data on the device", "").replace(", from image files", " from image files")
    label = row["label"].replace(", batch 256, 60000 images", "")
    return f"{group}, {label}, {formats.precision(row['dtype'])}"


def _sweep(sweep: Sweep, report: dict[str, Any]) -> dict[str, Any] | None:
    rows = [row for row in _timed(report["rows"]) if row.get("sweep") == sweep.name]
    if not rows:
        return None
    return {
        "name": sweep.name,
        "title": f"{sweep.title}, {rows[0]['dtype']}",
        "axis": sweep.axis,
        "stop": report.get("stops", {}).get(sweep.name, ""),
        "points": [
            _point(row)
            | {
                "x": row["x"],
                "tick": formats.count(row["x"]),
                "memory": {
                    peer: {"bytes": taken, "text": formats.size(taken)}
                    for peer, taken in row.get("memory", {}).items()
                    if taken  # none at all has no place on a logarithmic axis
                },
            }
            for row in rows
        ],
    }


def _roofline(report: dict[str, Any], rows: Sequence[Row]) -> dict[str, Any] | None:
    """Operations a second over operations a byte, of the cases that multiply matrices; and the ceilings."""
    ceilings = report.get("ceilings")
    points = [
        _point(row)
        | {"name": _name(row), "dtype": row["dtype"]}
        | {count: row["work"][count] for count in ("operations", "bytes")}
        for row in rows
        if row["part"] != "sweeps" and row.get("work", {}).get("operations")
    ]
    if not ceilings or not points:
        return None
    copies = {int(size): rate for size, rate in ceilings["copy"].items()}
    fastest, largest = max(copies, key=lambda size: copies[size]), max(copies)
    roofs = {size: copies[size] for size in (largest, fastest)}  # the same one where no cache is faster
    return {
        "points": points,
        "copy": [{"rate": rate, "text": f"copy of {formats.size(size)}"} for size, rate in roofs.items()],
        "matmul": [
            {"dtype": dtype, "rate": rate}
            for dtype, rate in ceilings["matmul"].items()
            if any(point["dtype"] == dtype for point in points)
        ],
    }


def _lines(row: Row) -> list[dict[str, Any]]:
    """A row of the report as the long table shows it: a line for each peer, numbers beside their text."""
    if "seconds" not in row or row["part"] in _NO_TIMES:
        return []
    part = _PARTS.get(row["part"], row["part"])
    if row.get("sweep"):
        part = f"sweep over {sweeps.axis(row['sweep'])}"
    names = {"part": part, "group": row["group"], "label": row["label"], "dtype": row["dtype"]}
    lines = []
    if row.get("error"):
        lines.append(names | {"error": row["error"]})
    for peer in tables.in_order(row["seconds"]):
        timing, held = row["seconds"][peer], row.get("memory", {}).get(peer)
        measured = {
            "error": "",
            "peer": peer,
            "median": timing["median"],
            "text": formats.seconds(timing["median"]),
            "spread": formats.time(timing).partition("(")[2].rstrip(")"),
            "rounds": timing["rounds"],
            "ratio": None if peer == OURS else targets.ratio(row, peer),
            "floor": row["floor"] / timing["median"],
            "memory": held,
            "memory_text": "" if held is None else formats.size(held),
        }
        lines.append(names | measured)
    return lines


def _tiles(rows: Sequence[Row], found: Sequence[dict[str, Any]], kind: str) -> list[dict[str, str]]:
    """The headline in four numbers, by rules that do not depend on how they turn out."""
    cases = [row for row in rows if row.get("important") and EAGER in row["seconds"]]
    tiles = []
    if cases:
        ratios = [targets.ratio(row, EAGER) or 1.0 for row in cases]
        best = [targets.fastest_other(row["seconds"]) for row in cases]
        ahead = sum((targets.ratio(row, peer) or 0.0) >= 1 for row, peer in zip(cases, best) if peer)
        mean, count = math.exp(statistics.fmean(map(math.log, ratios))), len(cases)
        tiles = [
            (
                f"{mean:.2f}×",
                f"as fast as eager PyTorch: the geometric mean of {count} case{'s' * (count != 1)}",
            ),
            (
                f"{sum(ratio >= 1 for ratio in ratios)} of {count}",
                "cases in which fastmlp is at least as fast as eager",
            ),
            (f"{ahead} of {count}", "cases in which it is at least as fast as every other peer that ran"),
        ]
    here = [t for t in found if t["kind"] == kind and t["measured"] is not None]
    if here:
        met = sum(t["verdict"] == "met" for t in here)
        tiles.append((f"{met} of {len(here)}", "targets that were measured here are met"))
    return [{"number": number, "text": text} for number, text in tiles]


def _unknown(rows: Iterable[Row]) -> list[str]:
    """Peers that the report does not mention: it is older than they are, or has no work for them."""
    named = {peer for row in rows for kind in ("seconds", "missing") for peer in row.get(kind, {})}
    return [peer for peer in PEERS if peer not in named]
