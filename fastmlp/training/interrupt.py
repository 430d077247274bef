"""Ctrl-C and SIGTERM while training: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupted(KeyboardInterrupt):
    """Training was stopped between two steps; the message says where, and what was saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        #: SIGINT or SIGTERM; a shell expects 128 more as the exit status.
        self.signal = number


class Signals:
    """Within it a first SIGINT or SIGTERM is noted in `received`; a second one does what it always does.

    Handlers that somebody has set are left alone, and so is everything outside the main thread.
    """

    _USUAL = ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL))

    def __init__(self) -> None:
        #: The first signal's number.
        self.received: int | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number, usual in self._USUAL:
                if signal.getsignal(number) == usual:
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, usual in self._USUAL:
            if signal.getsignal(number) == self._note:
                signal.signal(number, usual)
