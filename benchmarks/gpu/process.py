"""A measuring process as its parent sees it: messages and output as they come, and its end.

A process that aborts, hangs or breaks the CUDA context costs the row that is under way; another one goes on
with the next.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Protocol, TextIO

from ..measure import Row, failed
from . import summary
from .stages import START
from .worker import BROKEN

_ROOT = Path(__file__).parents[__package__.count(".") + 1]  # where the package is imported from
_LOG = 12 << 20  # bytes
_TAIL = 60  # lines
_WORDS = 4000  # characters of a lost process's output, or of where it hung


class Log:
    """log.txt, what the stages printed: bounded in size, and given up if it cannot be written."""

    def __init__(self, path: Path, resume: bool) -> None:
        self._path, self._left = path, _LOG
        with suppress(OSError):
            if not resume:
                path.unlink(missing_ok=True)
            elif path.exists():
                self._left -= path.stat().st_size

    def write(self, text: str) -> None:
        """Add to it."""
        self._left -= len(text)
        if self._left < 0:
            return
        with suppress(OSError), self._path.open("a") as file:  # the report says that the disk is full
            file.write(text)


class Process:
    """Runs ``worker`` with ``words`` and the number of the pipe that its messages go to."""

    def __init__(self, words: dict[str, Any], environment: dict[str, str], log: Log | TextIO) -> None:
        ours, theirs = os.pipe()
        told = json.dumps(words | {"pipe": theirs}, default=str)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", told],
            cwd=_ROOT, env=environment, pass_fds=[theirs], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        assert self._popen.stdout is not None
        self._log, self._partial = log, b""
        self._pipe, self._output = os.fdopen(ours, "rb", buffering=0), self._popen.stdout
        self._open = DefaultSelector()
        for stream in (self._pipe, self._output):
            self._open.register(stream, EVENT_READ)
        self._tail: deque[str] = deque(maxlen=_TAIL)  # of what it printed

    def listen(self, seconds: float) -> list[dict[str, Any]] | None:
        """The messages of the next ``seconds``; it returns at the first one, and None after the last."""
        if self._pipe not in [key.fileobj for key in self._open.get_map().values()]:
            return None
        for key, _ in self._open.select(max(0.0, seconds)):
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._open.unregister(key.fileobj)
            elif key.fileobj is self._output:
                text = data.decode(errors="replace")
                self._log.write(text)
                self._tail.extend(text.splitlines())
            else:
                *lines, self._partial = (self._partial + data).split(b"\n")
                return [json.loads(line) for line in lines]
        return []

    def last(self) -> str:
        """The end of what it printed."""
        return "\n".join(self._tail)

    def stack(self) -> str:
        """Where each of its Python threads is."""
        self._tail.clear()
        self._popen.send_signal(signal.SIGUSR1)
        until = time.time() + 1
        while time.time() < until and self.listen(0.2) is not None:
            pass
        return self.last()

    def end(self) -> int:
        """Kill what is left of it and its children; its exit code, negative if a signal ended it."""
        if self._output.closed:
            return self._popen.wait()
        if self.listen(0) is None:  # it closed the pipe, and is about to leave
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(5)
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        code = self._popen.wait()
        self._drain()
        for stream in (self._pipe, self._output):
            stream.close()
        return code

    def _drain(self) -> None:
        """Its last words."""
        os.set_blocking(self._output.fileno(), False)
        text = (self._output.read() or b"").decode(errors="replace")
        self._log.write(text)
        self._tail.extend(text.splitlines())


@dataclass
class Stand:
    """How far a stage has got, as the report says it."""

    state: str = summary.UNREACHED
    seconds: float = 0.0
    why: str = ""  # the stage itself failed, not only its rows
    note: str = ""  # what it said last
    failed: int = 0  # rows
    done: list[str] = field(default_factory=list)  # what need not be measured again
    left_out: list[str] = field(default_factory=list)


class Recorder(Protocol):
    """Starts the processes of a stage, and writes down what they say."""

    def start(self, stage: str, stand: Stand, seconds: float) -> Process: ...

    def over(self, ready: float | None, seconds: float) -> bool: ...

    def open(self, machine: dict[str, Any]) -> None: ...

    def put(self, stage: str, part: str, row: Row) -> int: ...

    def tell(self, facts: dict[str, dict[str, Any]]) -> None: ...

    def write(self, name: str, text: str) -> None: ...


class Talk:
    """A conversation with one process of a stage."""

    def __init__(self, recorder: Recorder, stage: str, stand: Stand, patience: float) -> None:
        self._recorder, self._stage, self._stand, self._patience = recorder, stage, stand, patience
        self._ready: float | None = None
        self._under_way: tuple[str, str] | None = None  # part and key
        self._rows = 0

    @property
    def measured(self) -> float:
        """Seconds since it was ready."""
        return 0.0 if self._ready is None else time.time() - self._ready

    def hold(self, seconds: float) -> bool:
        """Listen until it ends, hangs, or was ready for ``seconds``; whether another one should go on."""
        process = self._recorder.start(self._stage, self._stand, seconds)
        began = heard = time.time()
        try:
            while (messages := process.listen(0.5)) is not None:
                for message in messages:
                    heard = time.time()
                    self.take(message)
                silent = time.time() - heard
                if self._recorder.over(self._ready, seconds):
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

    def take(self, message: dict[str, Any]) -> None:
        """Act on a message of the process."""
        stand, part = self._stand, message.get("part") or self._stage
        match message:
            case {"ready": machine}:
                self._ready = time.time()
                self._recorder.open(machine)
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
                self._recorder.tell(facts)
            case {"file": name, "text": text}:
                self._recorder.write(name, text)

    def _keep(self, part: str, row: Row, key: str) -> None:
        self._rows += 1
        if not row.get("unfinished"):
            self._stand.done.append(key)
        self._stand.failed = self._recorder.put(self._stage, part, row)

    def _lost(self, why: str, words: str) -> bool:
        """The process is gone: the row under way failed, or, if there was none, the stage."""
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


def ending(code: int) -> str:
    """How a process ended."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    except ValueError:
        return f"by signal {-code}"
