"""``python -m benchmarks.report --out DIR``: tests (on a GPU), cases, epochs, accuracy, sweeps and host time.

DIR then holds report.json, table.md and the plots. Rows are saved as they come, and those that DIR holds from
the same machine and commit stay: ``--only``, ``--match`` and ``--budget`` can split a report over several
calls, and ``--resume`` measures only what is missing.
"""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from fastmlp import files
from fastmlp.costs.ceilings import Ceilings, measure_ceilings
from fastmlp.data import Images, load

from . import accuracy, cases, epochs, host, plots, sweeps, tables, targets, whole_net
from .cases import Case
from .gpu.process import Process, Stand, Talk
from .gpu.worker import Bench
from .host_cases import CASES
from .machine import describe
from .measure import QUICK, Effort, Row, measure, new_row
from .peers import COMPILING
from .store import Store
from .store import load as load_report

_ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "cases", "epochs", "accuracy", "sweeps", "host")
_ONLY = f"Only these parts: {', '.join(PARTS)}."
_STAGE = f"{__package__}.report:measured"
_PATIENCE = 240.0  # seconds; the longest that one peer may compile
_PIXEL = torch.zeros(1, dtype=torch.uint8)
#: Stands for Fashion-MNIST before it is read: as many images.
_UNREAD = Images(_PIXEL.expand(60_000, 28, 28), _PIXEL.long().expand(60_000), ("",), "Fashion-MNIST")
console = Console(stderr=True, highlight=False, soft_wrap=True)


def main(
    out: Path = typer.Option(..., help="Where the report goes."),
    device: str = typer.Option("", help="cpu or cuda; by default the GPU if there is one."),
    data: Path | None = typer.Option(None, help="Directory that holds FashionMNIST/raw; default: download."),
    only: list[str] = typer.Option([], help=_ONLY),
    match: str = typer.Option("", help="Only rows with this in their name."),
    quick: bool = typer.Option(False, help="Few rows, few rounds, nothing compiled: within a minute."),
    budget: float = typer.Option(1e9, help="Seconds after which no new row is started."),
    resume: bool = typer.Option(False, help="Keep the rows that are there; measure the others."),
) -> None:
    """Measure, and write the report."""
    unknown = set(only) - set(PARTS)
    if unknown:
        raise typer.BadParameter(f"--only {', '.join(unknown)}: expected {', '.join(PARTS)}")
    code = take(out, device, data, only, match, quick, budget, resume)
    finish(out)
    raise typer.Exit(code)


def take(
    out: Path,
    device: str = "",
    data: Path | None = None,
    only: Sequence[str] = (),
    match: str = "",
    quick: bool = False,
    budget: float = 1e9,
    resume: bool = False,
) -> int:
    """Measure into ``out``/report.json, with `main`'s options; the exit code, which is 1 if a row went wrong.

    A GPU's rows are measured in a process of their own, so that no crash takes all of them down.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    store = Store(out, describe(device))
    if store.dropped:
        console.print(f"{out} held a report that is damaged or of another machine or commit: {store.dropped}")
    store.save()
    asked: dict[str, Any] = {"only": [*only] or parts(device), "match": match, "quick": quick}
    recorder = _Recorder(store, out, device, data, asked)
    stand = Stand(done=[row["key"] for row in store.report["rows"]] if resume else [])
    end = time.time() + budget
    if device == "cuda":
        while Talk(recorder, _STAGE, stand, _PATIENCE).hold(end - time.time()):
            pass
        if stand.why:
            console.print(stand.why, markup=False)
    else:
        say = Talk(recorder, _STAGE, stand, _PATIENCE).take
        measured(Bench(say, budget, frozenset(stand.done), device, out=out, data=data, asked=asked))
    store.leave_out(stand.left_out)
    store.report["targets"] = targets.evaluate(store.report)
    store.save()
    counted = [
        row
        for row in store.report["rows"]
        if row.get("call") == recorder.call
        or (resume and row["part"] in asked["only"] and match in row["key"])
    ]
    return int(bool(stand.why) or any("error" in row for row in counted))


def parts(device: str) -> tuple[str, ...]:
    """The parts of a report by default; on a CPU the host's time would be a stubbed GPU's."""
    return tuple(part for part in PARTS if part != "host" or device == "cuda")


def finish(out: Path) -> None:
    """Table and plots beside report.json."""
    report = load_report(out)
    (out / "table.md").write_text(tables.full(report))
    plots.draw(report, out)
    console.print(f"written to {out}")


class _Recorder:
    """Writes a report's rows down, and shows them."""

    def __init__(
        self, store: Store, out: Path, device: str, data: Path | None, asked: dict[str, Any]
    ) -> None:
        self._store, self._out, self._asked = store, out, asked
        self._device, self._data, self.call = device, data, time.time()

    def start(self, stage: str, stand: Stand, seconds: float) -> Process:
        """A process that measures what is not done yet."""
        words = {
            "stage": stage, "seconds": seconds, "done": stand.done, "device": self._device,
            "out": self._out.resolve(), "data": self._data and self._data.resolve(), "asked": self._asked,
        }  # fmt: skip
        return Process(words, os.environ | {"PYTHONUNBUFFERED": "1"}, sys.stderr)

    def over(self, ready: float | None, seconds: float) -> bool:
        """Never: a row that was begun is finished."""
        return False

    def open(self, machine: dict[str, Any]) -> None:
        """Nothing to do: the machine was known before."""

    def put(self, stage: str, part: str, row: Row) -> int:
        """Add a row."""
        self._store.put(part, row | {"call": self.call})
        console.print(tables.line(row), markup=False)
        return 0

    def tell(self, facts: dict[str, dict[str, Any]]) -> None:
        """Add facts beside the rows."""
        self._store.tell(facts)
        self._store.save()

    def write(self, name: str, text: str) -> None:
        """Write a whole file beside the report."""
        files.write(self._out / name, [text.encode()])


def measured(bench: Bench) -> None:
    """Measure every part that is asked for."""
    _Session(bench).run()


class _Session:
    """Measures a report: on a GPU in a process of its own, on a CPU in this one."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._device = bench, bench.device
        self._only, self._match, self._quick = (bench.asked[name] for name in ("only", "match", "quick"))
        self._effort = replace(QUICK, without=COMPILING) if self._quick else Effort()
        self._before = {row["key"]: row for row in load_report(bench.out)["rows"]}

    def run(self) -> None:
        """Part by part."""
        parts = self._only
        if "tests" in parts and self._device == "cuda" and not self._quick:
            self._row("tests", "tests", self._tests)
        if "cases" in parts:
            seconds = sweeps.limits(self._device, self._quick).seconds
            small_nets = whole_net.cases(self._device, seconds)
            self._cases("cases", itertools.chain(cases.cases(self._device), small_nets))
        from_data = [part for part in ("epochs", "accuracy") if part in parts and self._is_asked(part)]
        if from_data:
            train, test = load(self._bench.data, console.print)
            if "epochs" in from_data:
                self._cases("epochs", epochs.cases(train, self._device, self._bench.data))
            if "accuracy" in from_data:
                self._accuracy(train, test)
        if "sweeps" in parts:
            for sweep in sweeps.SWEEPS:
                self._sweep(sweep)
        if "host" in parts:
            self._host()

    def _is_asked(self, part: str) -> bool:
        """Whether a row of this part, which needs data, matches; known before the data are read."""
        keys = [f"{accuracy.GROUP}: {recipe.name}" for recipe in accuracy.RECIPES]
        if part == "epochs":
            keys = [str(case) for case in epochs.cases(_UNREAD, self._device, None)]
        return any(self._match in key for key in keys)

    def _row(self, part: str, key: str, make: Callable[[], Row]) -> Row | None:
        """Measure a row unless it is there, or there is no time left."""
        if self._match not in key:
            return None
        if self._bench.has(key):
            return self._before[key]
        if self._bench.left() <= 0:
            self._bench.left_out(f"{part}: {key}")
            return None
        return self._bench.row(key, make, part)

    @functools.cached_property
    def _ceilings(self) -> Ceilings:
        ceilings = measure_ceilings(self._device, self._quick)
        self._bench.tell(ceilings=ceilings.json())
        return ceilings

    def _cases(self, part: str, found: Iterable[Case]) -> None:
        for case in found:
            if case.key or not self._quick:
                self._row(part, str(case), partial(self._measure, case, self._effort))

    def _measure(self, case: Case, effort: Effort) -> Row:
        return measure(case, self._device, self._ceilings, effort, self._noting(case))

    def _sweep(self, sweep: sweeps.Sweep) -> None:
        bounds = sweeps.limits(self._device, self._quick)
        before: tuple[Case, float] | None = None
        for x, case in sweeps.points(sweep, self._device, self._quick):
            stop = sweeps.too_much(case, before, bounds)
            if stop is not None:
                self._bench.tell(stops={sweep.name: f"{sweep.axis} {x}: {stop}"})
                break
            # Two lines may cross: the same case is a point of both.
            key = f"{sweep.name}: {case}"
            row = self._row("sweeps", key, partial(self._point, sweep.name, x, case))
            if row is not None and "error" not in row:
                before = case, sweeps.slower(row["seconds"])

    def _point(self, sweep: str, x: int, case: Case) -> Row:
        effort = replace(self._effort, rounds=15, seconds=self._effort.seconds / 3)
        row = self._measure(replace(case, memory=True), effort)
        return row | {"key": f"{sweep}: {case}", "sweep": sweep, "x": x}

    def _accuracy(self, train: Images, test: Images) -> None:
        seeds = accuracy.SEEDS[:1] if self._quick else accuracy.SEEDS
        for recipe in accuracy.RECIPES[:1] if self._quick else accuracy.RECIPES:
            make = partial(accuracy.measure, recipe, train, test, self._device, seeds)
            self._row("accuracy", f"{accuracy.GROUP}: {recipe.name}", make)

    def _host(self) -> None:
        for case in CASES:
            if case.must is not None or not self._quick:
                make = partial(host.measure, case, self._device, self._effort, self._noting(case))
                self._row("host", str(case), make)

    def _noting(self, case: object) -> Callable[[str], None]:
        return lambda what: self._bench.note(f"{case}: {what}")

    def _tests(self) -> Row:
        """The whole suite, natively on the GPU; its log is kept beside the report."""
        row = new_row("tests")
        if not (_ROOT / "tests").is_dir():
            return row | {"skipped": "the tests are in a clone of the project, and this is installed"}
        log = self._bench.out / "tests.log"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "tests"]
        until = time.time() + min(max(1.0, self._bench.left()), 3600)
        with log.open("w") as stream:
            tests = subprocess.Popen(command, cwd=_ROOT, stdout=stream, stderr=subprocess.STDOUT)
            while tests.poll() is None:
                time.sleep(1)
                self._bench.note(_last_line(log))
                if time.time() > until:
                    tests.kill()
                    return row | {"error": f"stopped for want of time at: {_last_line(log)}"}
        return row | {"error" if tests.returncode else "summary": _last_line(log)}


def _last_line(log: Path) -> str:
    return (log.read_text().strip().splitlines() or ["no output"])[-1]


if __name__ == "__main__":
    typer.run(main)
