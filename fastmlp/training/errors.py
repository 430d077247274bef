"""What stops training, worded so that a user knows what to do."""

from __future__ import annotations

import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from fastmlp.engine import Loop

#: How torch says out of memory where it has no type for it: a CPU's allocator, cuBLAS, older CUDA.
_WORDS = ("DefaultCPUAllocator", "not enough memory", "ALLOC_FAILED", "out of memory")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stopped."""


class OutOfMemoryError(TrainingError, torch.OutOfMemoryError):
    """A step or a test wants more memory than there is."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped between two steps; the message says where, and what was saved."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        #: SIGINT or SIGTERM; a shell expects 128 more as the exit status.
        self.signal = number


@contextmanager
def out_of_memory(loop: Loop, epoch: int, batch_size: int, saved: Callable[[], str]) -> Iterator[None]:
    """Turn any kind of out of memory in ``epoch``, from 1, into an `OutOfMemoryError`.

    Its message says where it was, at which batch size, and what became of the parameters, and ends with
    ``saved()``: what there is to go on from.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The frames hold the step's activations, whose memory whoever catches this may need.
        traceback.clear_frames(error.__traceback__)
        step = f", step {loop.done + 1}" if loop.done else ""
        intact = (
            "the step had begun to update the parameters, so go on from a checkpoint"
            if loop.executor.updating
            else "parameters and optimizer state are as the step before left them"
        )
        raise OutOfMemoryError(
            f"out of memory in epoch {epoch}{step} at batch size {batch_size} ({first_line(error)}); "
            f"a smaller batch size takes less; {intact}{saved()}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there is no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def first_line(error: BaseException) -> str:
    """The first line of an error; of a CPU allocator's, which names its source, how much was asked for."""
    asked = re.search(r"DefaultCPUAllocator: .* tried to allocate (\d+) bytes", str(error))
    if asked:
        return f"{int(asked[1]):,} bytes asked for"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Signals:
    """Inside the ``with`` block, a first SIGINT or SIGTERM is noted in `received`; a second acts as usual.

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

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, usual in self._USUAL:
            if signal.getsignal(number) == self._note:
                signal.signal(number, usual)
