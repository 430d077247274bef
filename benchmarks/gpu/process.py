"""A stage's process as its conductor sees it: messages and output as they come, and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_LOG = 12 << 20  # bytes
_TAIL = 60  # lines


class Log:
    """log.txt, what the stages printed: no longer than it may be, and given up where it cannot be written."""

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
    """It runs ``worker`` with ``words`` and the number of the pipe that it is to write its messages to."""

    def __init__(self, words: dict[str, Any], environment: dict[str, str], log: Log) -> None:
        ours, theirs = os.pipe()
        self._popen = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker", json.dumps(words | {"pipe": theirs})],
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
        """Where it is, by Python's threads."""
        self._tail.clear()
        self._popen.send_signal(signal.SIGUSR1)
        until = time.time() + 1
        while time.time() < until and self.listen(0.2) is not None:
            pass
        return self.last()

    def end(self) -> int:
        """Its exit code, negative where a signal ended it; what is left of it and its children is killed."""
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
