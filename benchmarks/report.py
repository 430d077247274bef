"""``python -m benchmarks.report --out DIR``: tests (on a GPU), cases, epochs, accuracy, sweeps and host time.

DIR then holds report.json, table.md and the plots. Rows are kept as they come, and what DIR holds of the
same machine and commit stays: ``--only``, ``--match`` and ``--budget`` split a report over several calls,
``--resume`` measures only what is not there yet.
"""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from fastmlp.data import Images, load

from . import accuracy, cases, epochs, host, plots, sweeps, tables, targets, whole_net
from .cases import Case
from .floors import Ceilings, measure_ceilings
from .host_cases import CASES
from .machine import describe
from .measure import QUICK, Effort, Row, measure
from .peers import COMPILING, EAGER
from .store import Store
from .store import load as load_report
from .supervisor import BROKEN, supervise

_ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "cases", "epochs", "accuracy", "sweeps", "host")
_ONLY = f"Only these parts: {', '.join(PARTS)}."
_PATIENCE = 240.0  # seconds; the longest that one row may compile
_PIXEL = torch.zeros(1, dtype=torch.uint8)
#: As many images as Fashion-MNIST has, before they are read.
_UNREAD = Images(_PIXEL.expand(60_000, 28, 28), _PIXEL.long().expand(60_000), ("",), "Fashion-MNIST")
console = Console(stderr=True, highlight=False, soft_wrap=True)


def main(
    out: Path = typer.Option(..., help="Where the report goes."),
    device: str = typer.Option("", help="cpu or cuda; by default the GPU if there is one."),
    data: Path | None = typer.Option(None, help="Directory that holds FashionMNIST/raw; default: download."),
    only: list[str] = typer.Option([], help=_ONLY),
    match: str = typer.Option("", help="Only the rows that have this in their name."),
    quick: bool = typer.Option(False, help="Few rows, few rounds, nothing compiled: within a minute."),
    budget: float = typer.Option(1e9, help="Seconds after which no row is started any more."),
    resume: bool = typer.Option(False, help="Keep the rows that are there, measure the others."),
    call: float = typer.Option(0.0, hidden=True, help="Of a measuring process: when its report was started."),
) -> None:
    """Measure, and write the report."""
    unknown = set(only) - set(PARTS)
    if unknown:
        raise typer.BadParameter(f"--only {', '.join(unknown)}: expected {', '.join(PARTS)}")
    code = take(out, device, data, only, match, quick, budget, resume, call)
    if not call:
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
    call: float = 0.0,
) -> int:
    """Measure into ``out``/report.json, with `main`'s options; the exit code, which is 1 if a row went wrong.

    A GPU's rows are measured by a process of their own, so that none takes the others with it.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    store = Store(out, describe(device))
    if store.dropped:
        console.print(f"{out} held a report that is damaged or of another machine or commit: {store.dropped}")
    if device == "cuda" and not call:
        store.save()
        call = time.time()
        options = {"--out": out, "--device": device, "--match": match, "--budget": budget, "--call": call}
        command = [sys.executable, "-m", f"{__package__}.report"]
        command += [str(word) for option in options.items() for word in option]
        command += [word for part in only for word in ("--only", part)]
        command += ["--data", str(data)] if data else []
        command += ["--quick"] * quick + ["--resume"] * resume
        code = supervise(command, store, out, call, _PATIENCE)
    else:
        call = call or time.time()
        code = Session(store, out, device, quick, match, call, budget, resume).run(
            only or parts(device), data
        )
    close(store)
    return code


def parts(device: str) -> tuple[str, ...]:
    """What a report has that is asked for nothing; on a CPU the host's time would be a stubbed GPU's."""
    return tuple(part for part in PARTS if part != "host" or device == "cuda")


def close(store: Store) -> None:
    """Targets from what was measured."""
    store.reload()
    store.report.pop("now", None)
    store.report["targets"] = targets.evaluate(store.report)
    store.save()


def finish(out: Path) -> None:
    """Table and plots beside report.json."""
    report = load_report(out)
    (out / "table.md").write_text(tables.full(report))
    plots.draw(report, out)
    console.print(f"written to {out}")


class Session:
    """One measuring process."""

    def __init__(
        self,
        store: Store,
        out: Path,
        device: str,
        quick: bool,
        match: str,
        call: float,
        budget: float,
        resume: bool,
    ) -> None:
        self._store, self._out, self._device, self._quick = store, out, device, quick
        self._match, self._call, self._end, self._resume = match, call, call + budget, resume
        self._effort = QUICK if quick else Effort()
        self._without = COMPILING if quick else ()
        self._failed = False

    def run(self, parts: Any, data: Path | None) -> int:
        """Every part that is asked for; the exit code."""
        if "tests" in parts and self._device == "cuda" and not self._quick:
            self._row("tests", "tests", self._tests)
        if "cases" in parts:
            seconds = sweeps.limits(self._device, self._quick).seconds
            small_nets = whole_net.cases(self._device, seconds)
            self._cases("cases", itertools.chain(cases.cases(self._device), small_nets))
        from_data = [part for part in ("epochs", "accuracy") if part in parts and self._is_asked(part)]
        if from_data:
            train, test = load(data, console.print)
            if "epochs" in from_data:
                self._cases("epochs", epochs.cases(train, self._device, data))
            if "accuracy" in from_data:
                self._accuracy(train, test)
        if "sweeps" in parts:
            for sweep in sweeps.SWEEPS:
                self._sweep(sweep)
        if "host" in parts:
            self._host()
        self._store.save()
        return int(self._failed)

    def _is_asked(self, part: str) -> bool:
        """Whether a row that needs data has the words that are looked for, known before there is any."""
        keys = [f"{accuracy.GROUP}: {recipe.name}" for recipe in accuracy.RECIPES]
        if part == "epochs":
            keys = [str(case) for case in epochs.cases(_UNREAD, self._device, None)]
        return any(self._match in key for key in keys)

    def _row(self, part: str, key: str, make: Callable[[], Row]) -> Row | None:
        """Measure a row unless it is there, or there is no time left."""
        if self._match not in key:
            return None
        there = self._store.get(part, key)
        if there is not None and (self._resume or there.get("call") == self._call):
            self._failed |= "error" in there
            return there
        if time.time() > self._end:
            self._store.leave_out(part, key)
            return None
        self._store.begin(part, key)
        row = make() | {"key": key, "call": self._call}
        self._store.put(part, row)
        console.print(tables.line(row), markup=False)
        if "error" in row:
            self._failed = True
            self._leave_if_broken()
        return row

    def _leave_if_broken(self) -> None:
        """After some CUDA errors nothing works in the process any more."""
        try:
            if self._device == "cuda":
                torch.cuda.synchronize()
        except RuntimeError as error:
            console.print(f"{error}\ngoing on in a fresh process", markup=False)
            sys.exit(BROKEN)

    @functools.cached_property
    def _ceilings(self) -> Ceilings:
        ceilings = measure_ceilings(self._device, self._quick)
        self._store.report["ceilings"] = ceilings.json()
        self._store.save()
        return ceilings

    def _cases(self, part: str, found: Iterator[Case]) -> None:
        effort = Effort(self._effort.rounds, self._effort.seconds, self._without)
        for case in found:
            if case.key or not self._quick:
                self._row(part, str(case), partial(self._measure, case, effort, case.memory))

    def _measure(self, case: Case, effort: Effort, with_memory: bool = False) -> Row:
        return measure(case, self._device, self._ceilings, effort, with_memory)

    def _sweep(self, sweep: sweeps.Sweep) -> None:
        bounds = sweeps.limits(self._device, self._quick)
        effort = Effort(15, self._effort.seconds / 3, self._without)
        before: tuple[Case, float] | None = None
        for x, case in sweeps.points(sweep, self._device, self._quick):
            stop = sweeps.too_much(case, before, bounds)
            if stop is not None:
                self._store.report["stops"][sweep.name] = f"{sweep.axis} {x}: {stop}"
                break
            # Two lines may cross: the same case is a point of both.
            row = self._row(
                "sweeps", f"{sweep.name}: {case}", partial(self._point, sweep.name, x, case, effort)
            )
            if row is not None and "error" not in row:
                before = case, sweeps.slower(row["seconds"], EAGER)

    def _point(self, sweep: str, x: int, case: Case, effort: Effort) -> Row:
        return self._measure(case, effort, with_memory=True) | {"sweep": sweep, "x": x}

    def _accuracy(self, train: Images, test: Images) -> None:
        seeds = accuracy.SEEDS[:1] if self._quick else accuracy.SEEDS
        for recipe in accuracy.RECIPES[:1] if self._quick else accuracy.RECIPES:
            make = partial(accuracy.measure, recipe, train, test, self._device, seeds)
            self._row("accuracy", f"{accuracy.GROUP}: {recipe.name}", make)

    def _host(self) -> None:
        effort = Effort(self._effort.rounds, self._effort.seconds, self._without)
        for case in CASES:
            if case.must is not None or not self._quick:
                self._row("host", str(case), partial(host.measure, case, self._device, effort))

    def _tests(self) -> Row:
        """The whole suite, natively on the GPU; its log is kept beside the report."""
        row: Row = {"group": "tests", "label": "", "dtype": "", "seconds": {}, "missing": {}}
        if not (_ROOT / "tests").is_dir():
            return row | {"skipped": "the tests are in a clone of the project, and this is installed"}
        log = self._out / "tests.log"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "", "tests"]
        left = min(max(1.0, self._end - time.time()), 3600)
        with log.open("w") as stream:
            try:
                done = subprocess.run(
                    command, cwd=_ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=left
                )
            except subprocess.TimeoutExpired:
                return row | {"error": f"stopped for want of time at: {_last_line(log)}"}
        return row | ({"error": _last_line(log)} if done.returncode else {"summary": _last_line(log)})


def _last_line(log: Path) -> str:
    return (log.read_text().strip().splitlines() or ["no output"])[-1]


if __name__ == "__main__":
    typer.run(main)
