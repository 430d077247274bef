"""Out of memory, said so that a user knows what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from fastmlp.engine import Loop
from fastmlp.training.history import TrainingError

#: How torch says it where it has no type for it: a CPU's allocator, cuBLAS, older CUDA.
_WORDS = ("DefaultCPUAllocator", "not enough memory", "ALLOC_FAILED", "out of memory")


class OutOfMemoryError(TrainingError, torch.OutOfMemoryError):
    """A step or a test wants more memory than there is."""


@contextmanager
def explained(loop: Loop, number: int, batch_size: int, left: Callable[[], str]) -> Iterator[None]:
    """Turn any kind of out of memory in epoch ``number`` into an `OutOfMemoryError`.

    Args:
        loop: what runs.
        number: of the epoch, from 1.
        batch_size: of the steps.
        left: says what there is to go on from, to end the message with.

    Raises:
        OutOfMemoryError: with where it was, the batch size, and what became of the parameters.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The frames hold the step's activations, which whoever catches this may need the room of.
        traceback.clear_frames(error.__traceback__)
        step = f", step {loop.done + 1}" if loop.done else ""
        intact = (
            "the step had begun to update the parameters, so go on from a checkpoint"
            if loop.executor.updating
            else "parameters and optimizer state are as the step before left them"
        )
        raise OutOfMemoryError(
            f"out of memory in epoch {number}{step} at batch size {batch_size} ({said(error)}); "
            f"a smaller batch size takes less; {intact}{left()}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there is no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def said(error: BaseException) -> str:
    """The first line of an error; of a CPU's allocator, which names its source's, how much it was to give."""
    asked = re.search(r"DefaultCPUAllocator: .* tried to allocate (\d+) bytes", str(error))
    if asked:
        return f"{int(asked[1]):,} bytes asked for"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
