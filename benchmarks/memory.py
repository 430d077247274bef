"""The most memory that a run takes on top of what was there.

On a GPU this is the caching allocator's peak; on a CPU the process's peak resident set, which Linux resets
on demand and which counts everything: weights, workspaces and the buffers of libraries.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from fastmlp.backends import pages

from .timing import Run, finish

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(factory: Callable[[], Run], device: str) -> int | None:
    """Bytes that building the run and calling it twice take; None where that cannot be known."""
    gc.collect()
    pages.release()  # what earlier calls left for this one counts as well
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _twice(factory, device)
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed pages count as resident until they are given back
        _RESET.write_text("5")
        before = _status("VmRSS")
        _twice(factory, device)
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _twice(factory: Callable[[], Run], device: str) -> None:
    run = factory()
    for _ in range(2):
        run.call()
    finish(run, device)


def _status(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")
