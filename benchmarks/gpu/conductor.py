"""Runs the stages in turn, each in a process of its own, and writes down what they say as they say it.

Nothing of a GPU is touched here. A stage that aborts, hangs or breaks the CUDA context costs the row that is
under way; another process goes on with the next.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastmlp import files

from ..measure import Row
from ..store import Store
from ..supervisor import failed
from . import summary
from .process import Log, Process
from .stages import NAMES, STAGES, START, Stage
from .worker import BROKEN

_GRACE = 5.0  # seconds for the row that is under way at a stage's end
_LAST = 5.0  # seconds for the last words
_WORDS = 4000  # characters of a lost process's output, or of where it hung


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


@dataclass
class Stand:
    """How far a stage is; what the report says of it."""

    state: str = summary.UNREACHED
    seconds: float = 0.0
    why: str = ""  # it failed beside its rows
    note: str = ""  # what it said last
    failed: int = 0  # rows
    done: list[str] = field(default_factory=list)  # what need not be measured again
    left_out: list[str] = field(default_factory=list)


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
        self._store: Store | None = None  # from when a process has said which machine this is
        self._stands: dict[str, Stand] = {}
        self._begun: Stand | None = None  # the last one
        self._trouble = ""  # what could not be written, and why

    def run(self) -> int:
        """All stages that are asked for; the exit code, as `__main__` says it."""
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
        """Processes of the stage until one comes to its end, or the time is over."""
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
            stand.state, began = summary.SHORT, time.time()  # until it has come to its end
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
        """A process of ``stage``, for as many seconds."""
        options = self._options
        words = {
            "stage": stage, "seconds": min(seconds, self._end - time.time()), "done": stand.done,
            "device": "cpu" if options.toy else "cuda", "toy": options.toy, "resumed": options.resume,
            "out": str(options.out.resolve()),
            "data": None if options.data is None else str(options.data.resolve()),
        }  # fmt: skip
        return Process(words, environment(stage, options.toy), self._log)

    def over(self, ready: float | None, seconds: float) -> bool:
        """Whether a stage that has ``seconds`` since it was ``ready`` must end now."""
        end = self._end if ready is None else min(ready + seconds + _GRACE, self._end)
        return time.time() > end

    def open(self, machine: dict[str, Any]) -> None:
        """Now it is known which machine this is: its report is gone on with, another's put aside."""
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

    def put(self, part: str, row: Row) -> int:
        """Add a row; how many of its stage have failed."""
        rows = self._report()["rows"]
        if self._store is not None:
            self._store.add(part, row)
            self.save()
        return sum("error" in one for one in rows if one.get("stage") == row["stage"])

    def tell(self, facts: dict[str, Any]) -> None:
        """Add what stands beside the rows."""
        if self._store is not None:
            self._store.report.update(facts)
            self.save()

    def save(self) -> dict[str, Any]:
        """Write the report, if there is one yet; what it says."""
        report = self._report()
        report["stages"] |= {name: asdict(stand) for name, stand in self._stands.items()}
        if self._store is not None:
            try:
                self._store.save()
            except OSError as error:
                self._cannot_write(error)
        return report

    def write(self, name: str, text: str) -> None:
        """A whole file beside the report."""
        try:
            files.write(self._options.out / name, [text.encode()])
        except OSError as error:
            self._cannot_write(error)

    def _report(self) -> dict[str, Any]:
        report = {"rows": []} if self._store is None else self._store.report
        report.setdefault("stages", {})
        return report

    def _cannot_write(self, error: OSError) -> None:
        """It goes on: what is measured is shown at the end all the same."""
        if not self._trouble:
            self._trouble = f"{error.filename or self._options.out}: {error.strerror or error}"
            print(f"cannot write {self._trouble}", file=sys.stderr, flush=True)


class Talk:
    """With one process of a stage."""

    def __init__(self, conductor: Conductor, stage: str, stand: Stand, patience: float) -> None:
        self._conductor, self._stage, self._stand, self._patience = conductor, stage, stand, patience
        self._ready: float | None = None
        self._under_way: tuple[str, str] | None = None  # part and key
        self._rows = 0

    @property
    def measured(self) -> float:
        """Seconds since it was ready."""
        return 0.0 if self._ready is None else time.time() - self._ready

    def hold(self, seconds: float) -> bool:
        """Until it ends, hangs, or ``seconds`` after it was ready; whether another one should go on."""
        process = self._conductor.start(self._stage, self._stand, seconds)
        began = heard = time.time()
        try:
            while (messages := process.listen(0.5)) is not None:
                for message in messages:
                    heard = time.time()
                    self._take(message)
                silent = time.time() - heard
                if self._conductor.over(self._ready, seconds):
                    return self._out_of_time()
                if silent > (START if self._ready is None else self._patience):
                    return self._lost(f"hung: not a word for {silent:.0f} s", process.stack())
            code = process.end()
            if code == 0 or (code == BROKEN and self._rows):
                return code == BROKEN
            return self._lost(f"ended {ending(code)} after {time.time() - began:.0f} s", process.last())
        except KeyboardInterrupt:
            self._out_of_time()
            raise
        finally:
            process.end()

    def _take(self, message: dict[str, Any]) -> None:
        """What the process says."""
        stand, part = self._stand, message.get("part") or self._stage
        match message:
            case {"ready": machine}:
                self._ready = time.time()
                self._conductor.open(machine)
            case {"begin": key}:
                self._under_way, stand.note = (part, key), ""
            case {"note": note}:
                stand.note = note
            case {"row": row, "done": key}:
                self._under_way = None
                self._keep(part, row, key)
            case {"left_out": key}:
                stand.left_out.append(key)
            case {"report": facts}:
                self._conductor.tell(facts)
            case {"file": name, "text": text}:
                self._conductor.write(name, text)

    def _keep(self, part: str, row: Row, key: str) -> None:
        self._rows += 1
        if not row.get("unfinished"):
            self._stand.done.append(key)
        self._stand.failed = self._conductor.put(part, row | {"stage": self._stage})

    def _lost(self, why: str, words: str) -> bool:
        """The process is no more: the row under way failed, or, outside of any, the stage."""
        if self._stand.note:
            why += f", at: {self._stand.note}"
        if self._under_way is None:
            self._stand.why = f"{why}: {words.strip().splitlines()[-1]}" if words.strip() else why
            return False
        part, key = self._under_way
        self._keep(part, failed(key, why) | {"output": words[-_WORDS:]}, key)
        return True

    def _out_of_time(self) -> bool:
        self._stand.left_out.append("the rest" if self._under_way is None else self._under_way[1])
        return False


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


def ending(code: int) -> str:
    """How a process ended."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    except ValueError:
        return f"by signal {-code}"


def environment(stage: str, toy: bool) -> dict[str, str]:
    """Of a stage's process: in a rehearsal it sees no GPU, and interprets kernels but for the host's time."""
    found = os.environ | {"PYTHONUNBUFFERED": "1"}
    if toy:
        found["CUDA_VISIBLE_DEVICES"] = ""
        found.pop("TRITON_INTERPRET", None)
        if stage != "host":
            found |= {"TRITON_INTERPRET": "1", "FASTMLP_BACKEND": "triton"}
    return found
