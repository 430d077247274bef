"""Runs the stages in turn, each in a process of its own, and writes down what they say as they say it.

This process never touches the GPU. A stage that aborts, hangs or breaks the CUDA context costs the row that
is under way; another process goes on with the next.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmlp import files

from ..measure import Row
from ..store import Store
from . import summary
from .process import Log, Process, Stand, Talk
from .stages import NAMES, STAGES, START, Stage

_GRACE = 5.0  # seconds for the row that is under way at a stage's end
_LAST = 5.0  # seconds for the last words


@dataclass
class Options:
    """What the command was asked for."""

    out: Path
    seconds: float = 540.0
    only: tuple[str, ...] = NAMES
    resume: bool = False
    toy: bool = False  # a rehearsal
    data: Path | None = None
    stages: tuple[Stage, ...] = STAGES


class Conductor:
    """One run.

    Raises:
        OSError: the folder cannot be written to, or another run is writing there.
    """

    def __init__(self, options: Options) -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        self._alone = _lock(options.out)
        files.prepare(options.out / "report.json")
        self._options, self._end = options, time.time() + options.seconds - _LAST
        self._log = Log(options.out / "log.txt", options.resume)
        self._store: Store | None = None  # set once a process has said which machine this is
        self._stands: dict[str, Stand] = {}
        self._begun: Stand | None = None  # the last one
        self._trouble = ""  # what could not be written, and why

    def run(self) -> int:
        """Run all stages that are asked for; the exit code, as `__main__` lists it."""
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        code = 0
        try:
            if self._options.resume:  # is the report of this machine and commit?
                Talk(self, "", Stand(), START).hold(START)
            for stage in self._options.stages:
                if stage.name in self._options.only:
                    self._stage(stage)
        except KeyboardInterrupt:
            code = 130
            if self._begun is not None and self._begun.state == summary.SHORT:
                self._begun.state = summary.INTERRUPTED
        finally:
            signal.signal(signal.SIGTERM, before)
        report = self.save()
        os.close(self._alone)
        text = summary.text(report, self._options.out, self._trouble)
        self.write("summary.txt", text)
        print(text, end="", flush=True)
        states = {stage["state"] for stage in report["stages"].values()}
        if code == 0 and (summary.FAILED in states or self._trouble):
            return 1
        return code or (0 if states == {summary.PASSED} else 3)

    def _stage(self, stage: Stage) -> None:
        """Run processes of the stage until one finishes it, or time is up."""
        stored = self._report()["stages"].get(stage.name, {}) if self._options.resume else {}
        stand = self._stands[stage.name] = _stand(stored)
        if stand.state in (summary.PASSED, summary.FAILED) and not stand.left_out:
            return
        print(f"{stage.name}: {stage.answers}", file=sys.stderr, flush=True)
        self._log.write(f"\n== {stage.name}\n")
        stand.left_out.clear()
        spent, again = 0.0, True
        self._begun = stand
        while again and spent < stage.seconds and time.time() < self._end:
            stand.state, began = summary.SHORT, time.time()  # until it has finished
            talk = Talk(self, stage.name, stand, stage.patience)
            try:
                again = talk.hold(stage.seconds - spent)
            finally:
                stand.seconds += time.time() - began
                spent += talk.measured
        if stand.failed or stand.why:
            stand.state = summary.FAILED
        elif not again and not stand.left_out:
            stand.state = summary.PASSED
        self.save()
        print(summary.stage(stage.name, asdict(stand)), file=sys.stderr, flush=True)

    def start(self, stage: str, stand: Stand, seconds: float) -> Process:
        """A process of ``stage``, for that many seconds."""
        options = self._options
        words = {
            "stage": stage, "seconds": min(seconds, self._end - time.time()), "done": stand.done,
            "device": "cpu" if options.toy else "cuda", "toy": options.toy, "resumed": options.resume,
            "out": options.out.resolve(), "data": options.data and options.data.resolve(),
        }  # fmt: skip
        return Process(words, environment(stage, options.toy), self._log)

    def over(self, ready: float | None, seconds: float) -> bool:
        """Whether a stage that has ``seconds`` since it was ``ready`` must end now."""
        end = self._end if ready is None else min(ready + seconds + _GRACE, self._end)
        return time.time() > end

    def open(self, machine: dict[str, Any]) -> None:
        """Now that the machine is known, go on with its report, and put another's aside."""
        if self._store is not None:
            return
        options = self._options
        self._store = Store(options.out, machine | {"rehearsal": True} if options.toy else machine)
        if self._store.dropped:
            print(f"what was in {options.out} is now {self._store.dropped}", file=sys.stderr)
        if not options.resume:
            report = self._store.report
            for name in options.only:
                report.get("stages", {}).pop(name, None)
            report["rows"] = [row for row in report["rows"] if row.get("stage") not in options.only]

    def put(self, stage: str, part: str, row: Row) -> int:
        """Add a row; how many of its stage have failed."""
        rows = self._report()["rows"]
        if self._store is not None:
            self._store.add(part, row | {"stage": stage})
            self.save()
        return sum("error" in one for one in rows if one.get("stage") == stage)

    def tell(self, facts: dict[str, dict[str, Any]]) -> None:
        """Add facts beside the rows."""
        if self._store is not None:
            self._store.tell(facts)
            self.save()

    def save(self) -> dict[str, Any]:
        """Write the report, if there is one yet, and return it."""
        report = self._report()
        report["stages"] |= {name: asdict(stand) for name, stand in self._stands.items()}
        if self._store is not None:
            try:
                self._store.save()
            except OSError as error:
                self._cannot_write(error)
        return report

    def write(self, name: str, text: str) -> None:
        """Write a whole file beside the report."""
        try:
            files.write(self._options.out / name, [text.encode()])
        except OSError as error:
            self._cannot_write(error)

    def _report(self) -> dict[str, Any]:
        report = {"rows": []} if self._store is None else self._store.report
        report.setdefault("stages", {})
        return report

    def _cannot_write(self, error: OSError) -> None:
        """Say so once and go on: what is measured is shown at the end all the same."""
        if not self._trouble:
            self._trouble = f"{error.filename or self._options.out}: {error.strerror or error}"
            print(f"cannot write {self._trouble}", file=sys.stderr, flush=True)


def _lock(out: Path) -> int:
    """Held while the process lives: two runs would write over each other's rows, and disturb their times."""
    folder = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise BlockingIOError(errno.EWOULDBLOCK, "another run is writing there", str(out)) from None
    return folder


def _stand(stored: dict[str, Any]) -> Stand:
    """Where a stored run stopped; the beginning, where that makes no sense."""
    stand = Stand()
    fits = stored.keys() == vars(stand).keys() and all(
        type(stored[name]) is type(value) for name, value in vars(stand).items()
    )
    return Stand(**stored) if fits else stand


def environment(stage: str, toy: bool) -> dict[str, str]:
    """A stage's process's: in a rehearsal it sees no GPU, and interprets kernels except for host times."""
    found = os.environ | {"PYTHONUNBUFFERED": "1"}
    if toy:
        found["CUDA_VISIBLE_DEVICES"] = ""
        found.pop("TRITON_INTERPRET", None)
        if stage != "host":
            found |= {"TRITON_INTERPRET": "1", "FASTMLP_BACKEND": "triton"}
    return found
