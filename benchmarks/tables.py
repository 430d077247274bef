"""A report as Markdown: the whole of it for its folder, and the rows that a reader of the README needs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from . import accuracy, formats, targets
from .machine import named
from .measure import Row
from .peers import EAGER, OURS, OURS_PLANS, place
from .sweeps import SWEEPS

HEAD = ("work", "size", "dtype", OURS, EAGER, f"vs {EAGER}", "vs the fastest other", "floor / time")
RECIPES = ("recipe", "by", f"time to {accuracy.TARGET:.0%}", "time of all epochs", "test accuracy")
_BY_PLAN = {"eager": EAGER, **OURS_PLANS}


def full(report: dict[str, Any]) -> str:
    """table.md."""
    rows = report["rows"]
    parts = [
        machine(report["machine"]),
        "Medians (quartiles) of interleaved rounds. `×` is the peer's time over ours: above 1, fastmlp is "
        "faster. The floor is explained in `docs/benchmarks.md`.",
        _tests(rows),
        *_stages(report),
        "## Targets",
        _targets(report),
        "## Ceilings",
        _ceilings(report.get("ceilings")),
        "## Cases",
        _cases([row for row in rows if row["part"] in ("cases", "epochs")]),
        _plans([row for row in rows if row.get("plans")]),
        f"## {accuracy.TITLE}",
        _accuracy([row for row in rows if row["part"] == "accuracy"]),
        *_host([row for row in rows if row["part"] == "host"]),
        "## Sweeps",
        "Peak memory is what a run adds to its inputs: on a GPU by torch's allocator, on a CPU by the "
        "process' resident set (`benchmarks/memory.py`).",
        *_sweeps(report),
        "## Missing",
        _missing(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def short(report: dict[str, Any], picture: str) -> str:
    """The rows that matter, their picture, and the targets that were missed."""
    timed = [row for row in report["rows"] if row["part"] == "accuracy" and row.get("runs")]
    met, missed = _verdicts(report)
    parts = [
        machine(report["machine"]),
        f"![speed relative to eager PyTorch]({picture})",
        _table(HEAD, map(cells, _that_matter(report))),
        _accuracy(timed) if timed else "",
        "The table compares with eager PyTorch in the row's own dtype; a target names what it is over.",
        met + (f" Missed: {'; '.join(missed)}." if missed else ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme(report: dict[str, Any], folder: str) -> str:
    """Shorter still: the rows that matter, and where the others are."""
    parts = [
        machine(report["machine"]),
        _table(HEAD, map(cells, _that_matter(report))),
        f"{_verdicts(report)[0]} Every row, every peer and what was missed: "
        f"[{folder}/table.md]({folder}/table.md).",
    ]
    return "\n\n".join(parts) + "\n"


def _that_matter(report: dict[str, Any]) -> list[Row]:
    return [row for row in report["rows"] if row.get("important") and OURS in row["seconds"]]


def host(rows: Iterable[Row]) -> str:
    """What `benchmarks.host` measured, a line for each call."""
    rows = [row for row in rows if OURS in row["seconds"]]
    who = seen(rows)

    def time(row: Row, peer: str) -> str:
        timing = row["seconds"].get(peer)
        return "-" if timing is None else f"{formats.time(timing)}; {row['launches'][peer]}"

    lines = [
        [
            row["label"],
            *(time(row, peer) for peer in who),
            f"{row['seconds'][OURS]['median'] / row['seconds'][EAGER]['median']:.2f}",
            *(str(row[bound] or "") for bound in ("must", "stretch")),
        ]
        for row in rows
    ]
    head = ["call", *(f"{peer}; launches" for peer in who), f"{OURS} / {EAGER}", "must", "stretch"]
    return _table(head, lines)


def host_meaning(rows: Sequence[Row]) -> str:
    """What the times of `host` are."""
    added = {row["added"] for row in rows if "added" in row} - {0.0}
    if not added:
        return "The time of a call, in blocks of many between synchronised ends."
    return (
        "The host's time with the GPU stubbed, no GPU's: kernels are compiled for sm_90 and launched into "
        "nothing, eager's ops run on one element, and "
        f"{formats.seconds(max(added))} a launch are added to all."
    )


def cells(row: Row) -> list[str]:
    """A row in short, under `HEAD`: ours, eager, and the fastest of the others."""
    best = targets.fastest_other(row["seconds"])
    return [
        *_names(row),
        formats.time(row["seconds"][OURS]),
        formats.time(row["seconds"][EAGER]) if EAGER in row["seconds"] else "-",
        _ratio(row, EAGER),
        f"{_ratio(row, best)} ({best})" if best else "-",
        share(row),
    ]


def machine(facts: dict[str, Any]) -> str:
    """What the numbers were measured on, in a line."""
    versions = facts["versions"]
    names = {"torch": "torch", "triton": "Triton", "jax": "JAX"}
    installed = ", ".join(f"{shown} {versions[name]}" for name, shown in names.items() if versions.get(name))
    threads = f", {facts['threads']} threads" if facts["kind"] == "cpu" else ""
    code = f"commit {facts['commit']}" if facts["commit"] else f"fastmlp {versions['fastmlp']}"
    kind = "REHEARSAL, no GPU: its times say nothing. " if facts.get("rehearsal") else ""
    return f"{kind}{named(facts)}{threads}; {installed}, Python {facts['python']}; {code}, {facts['date']}."


def line(row: Row) -> str:
    """A row as the terminal shows it."""
    if row.get("skipped"):
        return f"{row['key']}: skipped, {row['skipped']}"
    if row.get("error"):
        return f"{row['key']}: ERROR {row['error']}"
    if row.get("summary"):
        return f"{row['key']}: {row['summary']}"
    if "runs" in row:
        return f"{row['key']}: " + ", ".join(f"{peer} {reached(runs)}" for peer, runs in row["runs"].items())
    times = ", ".join(f"{peer} {formats.time(timing)}" for peer, timing in row["seconds"].items())
    return f"{row['key']}: {times}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _tests(rows: Iterable[Row]) -> str:
    return "".join(f"Test suite, natively: {outcome(row)}." for row in rows if row["part"] == "tests")


def outcome(row: Row) -> str | None:
    """How the test suite ended."""
    return row.get("summary") or row.get("error") or row.get("skipped")


def _stages(report: dict[str, Any]) -> list[str]:
    """How the stages of `benchmarks.gpu` ended, and what failed in them."""
    if not report.get("stages"):
        return []
    lines = []
    for name, stand in report["stages"].items():
        counts = len(stand["done"]), stand["failed"], len(stand["left_out"])
        lines.append([name, stand["state"], *map(str, counts), stand["why"] or "-"])
    failed = [
        f"- {row['key']}: {row['error']}" for row in report["rows"] if row.get("stage") and row.get("error")
    ]
    table = _table(["stage", "", "rows", "failed", "not reached", "why"], lines)
    return ["## Stages", "Of `python -m benchmarks.gpu`.", table, "\n".join(failed)]


def _targets(report: dict[str, Any]) -> str:
    found = [
        [t["kind"], t["what"], t["wanted"], _number(t), t["where"] or "-", t["verdict"]]
        for t in targets.evaluate(report)
    ]
    return _table(["on a", "target", "wanted", "measured", "where", ""], found)


def _number(target: dict[str, Any]) -> str:
    measured = target["measured"]
    return "-" if measured is None else f"{measured:.2f} {target['unit']}".replace(" ×", "×")


def _verdicts(report: dict[str, Any]) -> tuple[str, list[str]]:
    """How many targets were met, and those that were missed."""
    here = [t for t in targets.evaluate(report) if t["kind"] == report["machine"]["kind"]]
    measured = [t for t in here if t["measured"] is not None]
    missed = [
        f"{t['what']} ({_number(t)} {t['where']}, wanted {t['wanted']})"
        for t in measured
        if t["verdict"] == "missed"
    ]
    return f"{len(measured) - len(missed)} of the {len(measured)} targets measured here are met.", missed


def _ceilings(found: dict[str, Any] | None) -> str:
    return "Not measured." if found is None else _table(["ceiling", "measured"], ceilings(found))


def ceilings(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What the machine reaches, each ceiling with its number."""
    copies, products = found["copy"].items(), found["matmul"].items()
    return [
        *((f"copy, {formats.size(int(size))}", f"{rate / 1e9:.3g} GB/s") for size, rate in copies),
        *((f"matmul, {dtype}", f"{rate / 1e9:,.0f} GFLOP/s") for dtype, rate in products),
        ("empty launch", formats.seconds(found["launch"])),
    ]


def _cases(rows: Sequence[Row]) -> str:
    """A line for each peer of each case: a column for each would not fit."""
    lines = []
    for row in rows:
        if row.get("error"):
            lines.append([*_names(row), "-", f"error: {row['error']}", "-", "-", ""])
        names, of_floor = _names(row), share(row)
        for peer in in_order(row["seconds"]):
            time, held = formats.time(row["seconds"][peer]), row.get("memory", {}).get(peer)
            taken = "" if held is None else formats.size(held)
            lines.append([*names, peer, time, _ratio(row, peer), of_floor, taken])
            names, of_floor = ["", "", ""], ""  # said once a case
    return _table(["work", "size", "dtype", "by", "time", "×", "floor / time", "peak memory"], lines)


def _plans(rows: Sequence[Row]) -> str:
    """What each plan costs by the cost model, beside the time of the peer that runs it."""
    lines = []
    for row in rows:
        names = _names(row)
        for plan, work in row["plans"].items():
            timing = row["seconds"].get(_BY_PLAN[plan])
            time = formats.time(timing) if timing else "not measured here"
            counts = [str(work["launches"]), f"{work['operations'] / 1e9:.3g}", formats.size(work["bytes"])]
            lines.append([*names, plan, *counts, formats.seconds(work["floor"]), time])
            names = ["", "", ""]
    head = ["work", "size", "dtype", "plan", "launches", "GFLOP", "through memory", "floor", "time"]
    text = "Counted by the cost model (docs/cost.md), with the ceilings measured above."
    return f"## Plans of small nets\n\n{text}\n\n{_table(head, lines)}" if rows else ""


def _host(rows: Sequence[Row]) -> list[str]:
    return ["## Host time of a call", host_meaning(rows), host(rows)] if rows else []


def _sweeps(report: dict[str, Any]) -> list[str]:
    parts = []
    for sweep in SWEEPS:
        rows = [row for row in report["rows"] if row["part"] == "sweeps" and row.get("sweep") == sweep.name]
        if not rows:
            continue
        peers = seen(rows)
        held = in_order({peer for row in rows for peer in row.get("memory", {})})
        head = [sweep.axis, *peers, *(f"vs {peer}" for peer in peers if peer != OURS), "floor / time"]
        lines = [
            [
                str(row["x"]),
                *(formats.time(row["seconds"][p]) if p in row["seconds"] else "missing" for p in peers),
                *(_ratio(row, p) for p in peers if p != OURS),
                share(row),
                *(formats.size(row["memory"][p]) if p in row.get("memory", {}) else "-" for p in held),
            ]
            for row in rows
        ]
        stop = report["stops"].get(sweep.name)
        parts += [
            f"### {sweep.title}, {rows[0]['dtype']}",
            _table([*head, *(f"{peer}, peak memory" for peer in held)], lines),
            f"Stopped before {stop}." if stop else "",
        ]
    return parts or ["Not measured."]


def _accuracy(rows: Sequence[Row]) -> str:
    if not rows:
        return "Not measured."
    if all(row.get("skipped") for row in rows):
        return f"Skipped: {rows[0]['skipped']}."
    return _table(RECIPES, recipes(rows))


def recipes(rows: Iterable[Row]) -> list[list[str]]:
    """Under `RECIPES`, a line for each recipe and each peer trained by it."""
    lines = []
    for row in rows:
        for peer, runs in row.get("runs", {}).items():
            seconds = formats.seconds(statistics.mean(run["seconds"][-1] for run in runs))
            last = [run["accuracy"][-1] for run in runs]
            accuracies = f"{statistics.mean(last):.4f} ({min(last):.4f}-{max(last):.4f})"
            lines.append([f"{row['label']}: {row['description']}", peer, reached(runs), seconds, accuracies])
    return lines


def reached(runs: Sequence[Row]) -> str:
    times = [accuracy.reached(run) for run in runs]
    found = [t for t in times if t is not None]
    if len(found) < len(times):
        return f"reached by {len(found)} of {len(times)} seeds"
    mean, low, high = (formats.seconds(f(found)) for f in (statistics.mean, min, max))
    return f"{mean} ({low}-{high})"


def _missing(report: dict[str, Any]) -> str:
    """Each peer that did not run with its reason, and every row that there was no time for."""
    lines = list(reasons(report["rows"]))
    lines += [f"not measured for want of time: {name}" for name in report["left_out"]]
    return "\n".join(f"- {text}" for text in lines) or "Nothing."


def reasons(rows: Iterable[Row]) -> list[str]:
    """``peer: why (in how many rows)``, each once."""
    found = Counter(missing for row in rows for missing in row.get("missing", {}).items())
    return [f"{peer}: {why} ({count} row{'s' * (count > 1)})" for (peer, why), count in sorted(found.items())]


def seen(rows: Iterable[Row]) -> list[str]:
    """The peers that any of the rows has a time of."""
    return in_order({peer for row in rows for peer in row["seconds"]})


def in_order(peers: Iterable[str]) -> list[str]:
    return sorted(peers, key=place)


def _names(row: Row) -> list[str]:
    return [row["group"], row["label"], row["dtype"]]


def _ratio(row: Row, peer: str) -> str:
    value = targets.ratio(row, peer)
    return "-" if value is None or peer == OURS else f"{value:.2f}×"


def share(row: Row) -> str:
    """How much of our time the floor is."""
    if OURS not in row["seconds"]:
        return "-"
    return f"{row['floor'] / row['seconds'][OURS]['median']:.0%}"
