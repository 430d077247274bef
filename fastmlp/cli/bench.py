"""``fastmlp bench``."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from typer import Option

from fastmlp import files
from fastmlp.cli.common import device_of, emit, errors, errors_of, fail, start, table_of
from fastmlp.cli.options import AsJson

EXAMPLE = "Example: fastmlp bench --match inference --html out/"
PARTS = ("tests", "cases", "epochs", "accuracy", "sweeps", "host")
_FOREVER = 1e9
_READ = (
    "median (quartiles); vs: the other's time over fastmlp's; floor: the least possible time over fastmlp's"
)
Report = dict[str, Any]
Groups = dict[str, list[list[str]]]  # the lines of a table by what they have in common


def bench(
    full: Annotated[
        bool, Option("--full", help="Every case with every peer, however long it takes; needs --html.")
    ] = False,
    only: Annotated[list[str] | None, Option(help=f"Only this part: {', '.join(PARTS)}; repeatable.")] = None,
    match: Annotated[str, Option(help="Only rows whose name contains this, such as 'inference'.")] = "",
    device: Annotated[str, Option(help="cpu or cuda; default: the GPU if there is one.")] = "",
    data: Annotated[Path | None, Option(help="Folder with FashionMNIST/raw; default: download.")] = None,
    budget: Annotated[
        float, Option(min=0, help="Start no row after this many seconds.", show_default=False)
    ] = _FOREVER,
    resume: Annotated[
        bool, Option("--resume", help="Keep the rows that --html holds, and measure the others.")
    ] = False,
    html: Annotated[
        Path | None,
        Option(metavar="DIR", help="Write the report here: report.json, and index.html to look at it."),
    ] = None,
    stored: Annotated[
        Path | None,
        Option("--from", metavar="DIR", help="Measure nothing: show the report in this folder or file."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        Option(metavar="BEFORE AFTER", help="Measure nothing: two stored reports side by side."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure fastmlp beside eager PyTorch and others: a minute on a CPU, with --full all there is.

    Peers take turns in blocks of calls; a time is the median of the rounds, its spread their quartiles. The
    floor is the least time that the work can take under the bandwidth and the rates measured in the same run.
    --html writes one page that needs no network. docs/benchmarks.md says how to read it.

    Exit status: 0 done, 1 a row of ours failed, 2 wrong usage, 130 interrupted.
    """
    console, only = start(as_json), only or []
    unknown = sorted(set(only) - set(PARTS))
    if unknown:
        fail(f"--only {', '.join(unknown)}: expected {', '.join(PARTS)}", 2)
    measuring = {
        "--full": full,
        "--device": device,
        "--data": data,
        "--budget": budget < _FOREVER,
        "--resume": resume,
    }
    _check_stored(stored, compare, [option for option, value in measuring.items() if value])
    if compare is not None:
        if html or only:
            fail(f"--compare: without {'--html' if html else '--only'}", 2)
        return _compare(console, *compare, match, as_json)
    if html is not None and importlib.util.find_spec("plotly") is None:
        fail("--html needs plotly: pip install 'fastmlp[bench]'")
    if stored is not None:
        report, code = _narrowed(_load(stored, "--from"), only, match), 0
    else:
        if html is None and (full or resume):
            fail(f"--{'full' if full else 'resume'}: expected --html DIR, where the report is kept", 2)
        where = device_of(device)
        if where.index:
            fail(f"--device {device}: expected cpu or cuda", 2)
        options = {
            "device": where.type, "data": data, "only": only, "match": match, "quick": not full,
            "budget": budget, "resume": resume,
        }  # fmt: skip
        report, code = _measured(html, full, options)
    if not report["rows"]:
        fail(f"--match {match}: there is no such row" if match else "there is no such row")
    if html is not None:
        _write_page(report, stored, html)
    if as_json:
        emit(report)
    else:
        _print(console, report)
    raise typer.Exit(code)


def _check_stored(stored: Path | None, compare: tuple[Path, Path] | None, given: list[str]) -> None:
    """See that what measures nothing is told nothing of measuring."""
    if stored is not None and compare is not None:
        fail("--from, --compare: expected one of them", 2)
    if given and (stored is not None or compare is not None):
        name = "--from" if stored is not None else "--compare"
        fail(f"{name} measures nothing: without {', '.join(given)}", 2)


def _measured(html: Path | None, full: bool, options: dict[str, Any]) -> tuple[Report, int]:
    """A new report and its exit code; in a folder that is thrown away unless there is one to keep it."""
    from fastmlp.data import DataError

    try:
        from fastmlp.benchmarks import report, store
    except ImportError as error:
        fail(f"bench needs more ({error}): pip install 'fastmlp[bench]'")

    with tempfile.TemporaryDirectory(prefix="fastmlp-bench-") as scratch:
        out = html or Path(scratch)
        again = f"; the same command with --resume goes on from {out}" if html else ""
        try:
            code = report.take(out, **options)
            if full:
                report.finish(out)
            return store.load(out), code
        except KeyboardInterrupt:
            fail(f"interrupted{again}", 130)
        except DataError as error:
            fail(f"{error}{again}")
        except OSError as error:
            fail(f"{error.filename or out}: {error.strerror or error}")


def _load(path: Path, option: str) -> Report:
    """The report that a folder or a file holds."""
    file = _file(path)
    try:
        with errors_of(f"{option} {file}"):
            report = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        fail(f"{option} {file}: no JSON ({error})")
    if not _is_report(report):
        fail(f"{option} {file}: expected a report of fastmlp bench")
    return report


def _file(path: Path) -> Path:
    return path / "report.json" if path.is_dir() else path


def _is_report(found: Any) -> bool:
    facts = {"device", "kind", "cores", "threads", "python", "versions", "commit", "date"}
    return (
        isinstance(found, dict)
        and isinstance(found.get("machine"), dict)
        and facts <= found["machine"].keys()
        and isinstance(found.get("rows"), list)
        and all(isinstance(row, dict) and {"part", "key", "group"} <= row.keys() for row in found["rows"])
    )


def _narrowed(report: Report, only: Sequence[str], match: str) -> Report:
    rows = [row for row in report["rows"] if row["part"] in (only or PARTS) and match in row["key"]]
    return report | {"rows": rows}


def _write_page(report: Report, stored: Path | None, out: Path) -> None:
    """The page, and beside it report.json, unless that is what is shown or has just been written."""
    from fastmlp.benchmarks import page

    file = out / "report.json"
    with errors_of(f"--html {out}"):
        if stored is not None and not (file.exists() and file.samefile(_file(stored))):
            if file.exists() and _load(file, "--html")["machine"] != report["machine"]:
                fail(f"--html {out}: holds another report")
            files.write(file, [json.dumps(report, indent=1).encode() + b"\n"])
        path = page.write(report, out)
    errors.print(f"written: {path}")


def _print(console: Console, report: Report) -> None:
    from fastmlp.benchmarks import formats, tables
    from fastmlp.benchmarks.peers import EAGER, OURS

    console.print(f"{tables.machine(report['machine'])}\n")
    rows = [row for row in report["rows"] if OURS in row.get("seconds", {})]
    groups: Groups = {}
    for row in rows:
        _, label, dtype, ours, eager, *others = tables.cells(row)
        # Eager's spread is on the page, and a mode of torch.compile is known by its own name.
        others[1] = others[1].replace("torch.compile max", "max").replace("torch.compile reduce", "reduce")
        line = [f"{label}, {formats.precision(dtype)}", ours, eager.partition(" (")[0], *others]
        groups.setdefault(_group(row), []).append(line)
    if rows:
        _table(console, ["", OURS, EAGER, f"vs {EAGER}", "vs the fastest", "floor"], groups)
    trained: Groups = {}
    for recipe, *line in tables.recipes(row for row in report["rows"] if row["part"] == "accuracy"):
        trained.setdefault(recipe, []).append(line)
    if trained:
        console.print()
        _table(console, ["", *tables.RECIPES[2:]], trained)
    for row in report["rows"]:
        if row.get("error") or row.get("skipped"):
            errors.print(tables.line(row), style="red" if row.get("error") else "yellow")
    if rows:
        console.print(f"\n{_READ}", style="dim")


def _group(row: dict[str, Any]) -> str:
    from fastmlp.benchmarks import sweeps

    return f"{row['group']}, over {sweeps.axis(row['sweep'])}" if row.get("sweep") else row["group"]


def _compare(console: Console, before: Path, after: Path, match: str, as_json: bool) -> None:
    from fastmlp.benchmarks import compare, formats, tables

    one, other = (_load(path, "--compare") for path in (before, after))
    found = compare.compare(one, other, match)
    if as_json:
        emit(found)
        return
    console.print(f"before: {tables.machine(found['before'])}")
    console.print(f"after:  {tables.machine(found['after'])}")
    if found["before"]["device"] != found["after"]["device"]:
        errors.print("these are two machines: the speed-up is the machines' as well", style="yellow")
    groups: Groups = {}
    for row in found["rows"]:
        _, label, dtype, *others = compare.cells(row)
        groups.setdefault(_group(row), []).append([f"{label}, {formats.precision(dtype)}", *others])
    console.print()
    _table(console, ["", *compare.HEAD[3:]], groups)
    left = len(found["only_before"]), len(found["only_after"])
    console.print(f"\nrows of one report alone: {left[0]} before, {left[1]} after", style="dim")


def _table(console: Console, head: Sequence[str], groups: Groups) -> None:
    """Lines under the name of what they have in common: on a terminal there is no room to repeat it."""
    every = [head, *(line for lines in groups.values() for line in lines)]
    widths = [max(map(len, column)) for column in zip(*every)]
    gap = 2 if console.width >= 90 else 1
    left = console.width - sum(widths[1:]) - gap * len(widths) - 2
    widths[0] = max(10, min(widths[0], left))  # what a narrow terminal makes shorter is the first column
    for group, lines in {"": [], **groups}.items():
        table = table_of(head, lines, padding=(0, gap, 0, 0), header_style="bold", show_header=not group)
        for column, width in zip(table.columns, widths):
            column.width, column.overflow = width, "fold"
        if group:
            console.print(f"\n{group}", style="bold")
        console.print(Padding(table, (0, 0, 0, 2)))
