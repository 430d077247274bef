"""A stage's process: it measures, and reports on a pipe.

Its lines there are JSON: ``ready`` (the machine), ``begin`` and ``row``, ``note``, ``left_out``, ``report``
(what goes beside the rows) and ``file``. Whoever reads them writes the report, so a process that dies, hangs
or breaks the CUDA context costs the row that is under way.
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..machine import describe
from ..measure import Row, failed, reason

#: The exit code of a process that has reported an error and cannot go on: a CUDA error is permanent.
BROKEN = 3


class Bench:
    """What a stage is given: where it runs, how long, and where its rows go.

    Args:
        say: takes one message.
        seconds: until the end.
        done: keys of the rows that are there already.
        device: "cuda", or "cpu" in a rehearsal, where kernels are interpreted.
        toy: whether sizes and efforts are a rehearsal's.
        resumed: whether the stage goes on where an earlier run stopped.
        out: the report's folder, for a file that somebody else writes.
        data: where Fashion-MNIST is, if that is known.
        asked: options of this stage alone.
    """

    def __init__(
        self,
        say: Callable[[dict[str, Any]], None],
        seconds: float,
        done: frozenset[str] = frozenset(),
        device: str = "cuda",
        toy: bool = False,
        resumed: bool = False,
        out: Path = Path(),
        data: Path | None = None,
        asked: dict[str, Any] | None = None,
    ) -> None:
        self._say, self._end, self._done = say, time.time() + seconds, done
        self.device, self.toy, self.resumed, self.out, self.data = device, toy, resumed, out, data
        self.asked = asked or {}

    def left(self) -> float:
        """Seconds until the stage must be over."""
        return self._end - time.time()

    def has(self, key: str) -> bool:
        """Whether an earlier process of this run, or the one that is resumed, measured the row."""
        return key in self._done

    def row(self, key: str, make: Callable[[], Row], part: str | None = None) -> Row | None:
        """Measure and report a row; None if it is there already, or no time is left for it.

        What ``make`` raises is the row's error. ``part`` of the report is the stage's own unless it is named.
        A row that says that it is "unfinished" is measured again by a run that resumes this one.
        """
        if self.has(key):
            return None
        if self.left() <= 0:
            self.left_out(key)
            return None
        self._say({"begin": key, "part": part})
        began = time.time()
        try:
            row = make()
        except Exception as error:
            row = failed(key, reason(error))
        row = {"key": key, "took": round(time.time() - began, 3), **row}
        self._say({"row": row, "done": key, "part": part})
        if "error" in row:
            self._leave_if_broken()
        return row

    def left_out(self, key: str) -> None:
        """Name what there was no time for."""
        self._say({"left_out": key})

    def note(self, what: str) -> None:
        """Say what the row under way is at: it is named if that hangs, and counts as a sign of life."""
        self._say({"note": what})

    def tell(self, **report: dict[str, Any]) -> None:
        """Add facts beside the report's rows, such as the ceilings, to those that are there."""
        self._say({"report": report})

    def keep(self, name: str, text: str) -> None:
        """Write a whole file beside the report."""
        self._say({"file": name, "text": text})

    def _leave_if_broken(self) -> None:
        try:
            if self.device == "cuda":
                torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"{error}\ngoing on in a fresh process", file=sys.stderr)
            sys.exit(BROKEN)


def main(words: dict[str, Any]) -> None:
    """Run a stage; ``words`` name it and the pipe to write to, the others are `Bench`'s."""
    end_with_parent()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # where it hangs
    pipe, stage = os.fdopen(words.pop("pipe"), "w"), words.pop("stage")

    def say(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message, default=str) + "\n")
        pipe.flush()

    if words["device"] == "cuda":
        torch.zeros(1, device="cuda")
    say({"ready": describe(words["device"])})
    if stage:
        words |= {name: Path(words[name]) for name in ("out", "data") if words[name] is not None}
        words["done"] = frozenset(words["done"])
        module, _, function = stage.rpartition(":")  # a test's own stage is named in full
        found = importlib.import_module(module or f"{__package__}.{stage}")
        getattr(found, function if module else "run")(Bench(say, **words))


def end_with_parent() -> None:
    """A conductor that is killed leaves no process behind on the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    code: object = 0
    try:
        main(json.loads(sys.argv[1]))
    except SystemExit as leaving:
        code = leaving.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)  # tearing torch down takes seconds, and all is said
