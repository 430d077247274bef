"""One screen: how each stage ended, the headlines, the worst errors, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .. import formats, tables
from ..epochs import EPOCH
from ..measure import Row
from ..numerics import excess
from ..peers import COMPILED, EAGER, GRAPH, JAX, OURS
from ..targets import ratio

#: How a stage ended; `SHORT` if there was not enough time for it.
PASSED, FAILED, SHORT = "passed", "failed", "out of time"
UNREACHED, INTERRUPTED = "not reached", "interrupted"
_PEERS = {EAGER: "eager", GRAPH: "graph", COMPILED: "compile", JAX: "JAX"}
_HEAD = ("headline", "dtype", "fastmlp", "of floor", "foretold", *(f"vs {name}" for name in _PEERS.values()))
_WORST = 5
_WIDTH = 150  # of a line with an error in it


def text(report: dict[str, Any], out: Path, trouble: str = "") -> str:
    """The screen.

    Args:
        report: what report.json holds.
        out: its folder.
        trouble: what could not be written, and why.
    """
    rows = report["rows"]
    parts = [
        _machine(report),
        "\n".join(stage(name, stand) for name, stand in report["stages"].items()) or "no stage was begun",
        _headlines([row for row in rows if row.get("stage") == "headlines"]),
        _errors(rows),
        "\n".join(["next", *(f"- {line}" for line in _next(report, out, trouble))]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def stage(name: str, stand: dict[str, Any]) -> str:
    """A line for one of them."""
    counts = [f"{len(stand['done'])} rows"] if stand["done"] else []
    counts += [stand["note"]] if stand["note"] and name == "tests" else []
    counts += [f"{stand['failed']} failed"] if stand["failed"] else []
    counts += [f"{len(stand['left_out'])} not reached"] if stand["left_out"] else []
    counts += [stand["why"][:_WIDTH]] if stand["why"] else []
    return f"{name:10} {stand['state']:12} {stand['seconds']:6.1f} s  {', '.join(counts)}".rstrip()


def _machine(report: dict[str, Any]) -> str:
    if "machine" not in report:
        return "No process got far enough to say what machine this is."
    return tables.machine(report["machine"])


def _headlines(rows: Sequence[Row]) -> str:
    lines = [_headline(row) for row in rows if "seconds" in row]
    return columns([_HEAD, *lines]) if lines else ""


def _headline(row: Row) -> list[str]:
    """A wrong result has no time, however fast it was."""
    epochs = 10 if row["group"] == EPOCH else 1  # of the book
    group = "10 epochs" if epochs > 1 else row["group"].replace("forward + backward", "f + b")
    name = f"{group}, {row['label']}"
    if "error" in row or OURS not in row["seconds"]:
        return [name, row["dtype"], f"FAILED: {row.get('error', 'no time')}"[:_WIDTH]]
    foretold = row.get("foretold")
    return [
        name,
        row["dtype"],
        formats.seconds(epochs * row["seconds"][OURS]["median"]),
        tables.share(row),
        "-" if foretold is None else formats.seconds(epochs * foretold),
        *("-" if (times := ratio(row, peer)) is None else f"{times:.2f}×" for peer in _PEERS),
    ]


def _errors(rows: Sequence[Row]) -> str:
    """Those that come nearest to what is allowed, or go beyond it."""
    found = [row for row in rows if row.get("worst")]
    found.sort(key=lambda row: excess(row["worst"]), reverse=True)
    lines = [
        [
            row["key"],
            row["worst"]["what"],
            *(f"{float(row['worst'][name]):.2e}" for name in ("error", "allowed")),
        ]
        for row in found[:_WORST]
    ]
    return columns([("worst errors", "of", "error", "allowed"), *lines]) if lines else ""


def _next(report: dict[str, Any], out: Path, trouble: str) -> Iterable[str]:
    at, stages = shlex.quote(str(out)), report["stages"].items()
    again = f"python -m benchmarks.gpu --out {at}"
    if trouble:
        yield f"could not write {trouble}: what was measured is on this screen alone; make room, run it again"
    broken: dict[str, Row] = {}
    for row in report["rows"]:
        if "error" in row:
            broken.setdefault(row.get("stage", row["part"]), row)
    for name, row in broken.items():
        yield f"{name}: begin with «{row['key']}»: {row['error']}"[:_WIDTH]
    lost = [name for name, stand in stages if stand["why"]]
    for name in lost:
        yield f"{name}: mend the stage itself"
    if broken or lost:
        yield f"failed rows with their output: {at}/report.json; what the stages printed: {at}/log.txt"
        yield f"{again} --only {','.join({**broken, **dict.fromkeys(lost)})}    measures these stages anew"
    if any(stand["left_out"] or stand["state"] not in (PASSED, FAILED) for _, stand in stages):
        yield f"{again} --resume    goes on where this stopped"
    if report.get("machine", {}).get("rehearsal"):
        yield f"on a machine with a GPU: {again}"
    elif "machine" in report:
        yield f"python -m benchmarks.readme --add {at}    stores the report and draws the READMEs' picture"


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Cells in aligned columns; the last cell of a short line may be longer than its column."""
    widths = [
        max((len(line[i]) for line in lines if i < len(line) - 1), default=0) for i in range(len(lines[0]))
    ]
    widths[-1] = 0
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths)).rstrip() for line in lines
    )
