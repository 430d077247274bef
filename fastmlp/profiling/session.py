"""``with fastmlp.profile(net) as prof:`` and what it finds."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity

from fastmlp import backends, markup
from fastmlp import files as atomic
from fastmlp.costs.ceilings import Ceilings, ceilings_of
from fastmlp.profiling import memory as memories
from fastmlp.profiling import rows as tables
from fastmlp.profiling.naming import Names, annotated, noted, opened
from fastmlp.profiling.rows import Row
from fastmlp.profiling.trace import WHOLE, Launched, Trace


class profile:  # noqa: N801 - used as a function, as torch.profiler.profile
    """Profile what runs inside the ``with`` block: a row for each kernel in each layer.

        with fastmlp.profile(net, trace="trace.json") as prof:
            step(x, y)
        print(prof)

    On a GPU the kernels are those that CUPTI saw, on a CPU torch's own ops (and, in Triton's interpreter, our
    kernels). What runs, and its results, are the same as with nobody looking; it takes longer: ops are
    recorded with their shapes. The block begins and ends with the device idle.

    Args:
        model: whose layers are named; `watch` adds others.
        trace: a file for chrome://tracing or https://ui.perfetto.dev, its ranges named as the layers.
        memory: a file. On a GPU a snapshot of the allocator for https://pytorch.org/memory_viz; where there
            is none, a JSON object of every allocation with the op and layer that made it.
        nvtx: open the ranges for NVIDIA's tools too, where there is a GPU.
        kernels: False for no table and no trace, ranges alone: for another profiler around the process, two
            of which cannot listen to one GPU.
        ceilings: what the device reaches; by default measured at the first look at `rows`.

    Raises:
        ValueError: ``trace`` without ``kernels``; ``memory`` without both kernels and a GPU.
        OSError: a file cannot be written; said before anything runs where that is known then.
        RuntimeError: it is entered while another profile runs.
    """

    _running = False

    def __init__(
        self,
        model: nn.Module | None = None,
        *,
        trace: str | os.PathLike[str] | None = None,
        memory: str | os.PathLike[str] | None = None,
        nvtx: bool = True,
        kernels: bool = True,
        ceilings: Ceilings | None = None,
    ) -> None:
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
        gpu = torch.cuda.is_available()
        if not kernels and trace is not None:
            raise ValueError("trace: expected kernels=True, without which there is none")
        if not kernels and memory is not None and not gpu:
            raise ValueError(
                "memory: expected kernels=True, whose events it is made of where there is no GPU"
            )
        self._trace_path = None if trace is None else Path(trace)
        self._memory_path = None if memory is None else Path(memory)
        for path in (self._trace_path, self._memory_path):
            if path is not None:
                atomic.prepare(path)
        self._nvtx, self._kernels, self._gpu = nvtx and gpu, kernels, gpu
        self._ceilings = ceilings
        self._rows: list[Row] | None = None
        self._names = Names()
        self._thread = threading.local()
        self._launches: list[Launched] = []
        self._captured: list[Launched] = []
        self._found: Trace | None = None
        self._stack = ExitStack()
        if model is not None:
            self.watch(model)

    def watch(self, model: nn.Module, prefix: str = "") -> profile:
        """Name the layers of ``model`` too, by ``named_modules(prefix=prefix)``."""
        self._names.add(model, prefix)
        return self

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Note the launches inside: a CUDA graph captured there and replayed in the profile is known then."""
        with self._watched(self._captured):
            yield

    def __enter__(self) -> profile:
        """Begin."""
        if profile._running:
            raise RuntimeError("another fastmlp.profile runs in this process")
        profile._running = True
        self._launches, self._found, self._rows = [], None, None
        stack = self._stack = ExitStack()
        stack.callback(setattr, profile, "_running", False)
        try:
            self._synchronize()
            if self._memory_path is not None and self._gpu:
                stack.enter_context(memories.recorded(self._memory_path))
            self._profiler = stack.enter_context(self._torch_profiler()) if self._kernels else None
            stack.enter_context(self._watched(self._launches))
            stack.enter_context(annotated(WHOLE, self._nvtx))
            stack.callback(self._synchronize)
        except BaseException:
            stack.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        """End; the files are written."""
        self._stack.__exit__(*error)
        if self._profiler is None:
            return
        text = exported(self._profiler)
        self._profiler = None
        events = json.loads(text)["traceEvents"]
        if self._trace_path is not None:
            atomic.write(self._trace_path, [text])
        if self._memory_path is not None and not self._gpu:
            atomic.write(self._memory_path, [json.dumps(memories.of_events(events)).encode()])
        self._found = Trace(events, self._launches, self._captured)
        if self._gpu and self._launches and not self._found.on_device:
            warnings.warn(
                "no kernel of the GPU was seen, and the host's times stand in the table: another profiler "
                "listens to it, or its driver lets nobody (NVreg_RestrictProfilingToAdminUsers)",
                stacklevel=2,
            )

    def _torch_profiler(self) -> Any:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._gpu else [])]
        held = self._memory_path is not None and not self._gpu
        return torch.profiler.profile(activities=activities, record_shapes=True, profile_memory=held)

    def _synchronize(self) -> None:
        if self._gpu:
            torch.cuda.synchronize()

    @contextmanager
    def _watched(self, launches: list[Launched]) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(opened(self._names, self._range))
            if self._gpu or backends.requested() == "triton" or "fastmlp.kernels.launch" in sys.modules:
                with suppress(ImportError):  # no Triton: nothing of ours will be launched
                    stack.enter_context(noted(launches, self._names, self._range))
            yield

    @contextmanager
    def _range(self, name: str, metrics: dict[str, float] | None = None) -> Iterator[None]:
        """The range ``name``, unless it is this thread's innermost one already."""
        within = getattr(self._thread, "range", "")
        if name == within:
            yield
            return
        self._thread.range = name
        try:
            with annotated(name, self._nvtx, metrics):
                yield
        finally:
            self._thread.range = within

    @property
    def found(self) -> Trace:
        """The kernels one by one.

        Raises:
            RuntimeError: nothing is profiled yet, or with ``kernels=False``.
        """
        if self._found is None:
            raise RuntimeError("nothing is profiled yet: the with block has not ended, or kernels=False")
        return self._found

    @property
    def ceilings(self) -> Ceilings:
        """What the device reaches."""
        if self._ceilings is None:
            self._ceilings = ceilings_of(torch.device("cuda" if self._gpu else "cpu"))
        return self._ceilings

    @property
    def rows(self) -> list[Row]:
        """A row for each kernel in each layer, the longest first."""
        if self._rows is None:
            self._rows = tables.rows(self.found.kernels, self.ceilings)
        return self._rows

    @property
    def seconds(self) -> float:
        """From the beginning of the block to its end, the device idle again."""
        return self.found.seconds

    @property
    def busy(self) -> float:
        """Seconds in which a kernel ran; the rest is the host's: Python, dispatch, gaps."""
        return self.found.busy

    @property
    def floor(self) -> float:
        """Seconds below which those kernels cannot be whose work is known."""
        return sum(row.floor * row.launches for row in self.rows if row.floor is not None)

    def table(self, sort: str = "time", limit: int | None = 20, width: int | None = None) -> Any:
        """The rows as a ``rich.table.Table``; see `fastmlp.profiling.rows.table`."""
        return tables.table(self.rows, sort, limit, width)

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data; times in seconds, bytes and operations a launch."""
        return {
            "seconds": self.seconds,
            "busy": self.busy,
            "floor": self.floor,
            "ceilings": self.ceilings.json(),
            "rows": [row.to_json() for row in self.rows],
        }

    def __repr__(self) -> str:
        # Not the rows: those may have to measure what the device reaches.
        if self._found is None:
            return "<fastmlp.profile: nothing is profiled yet>"
        return (
            f"<fastmlp.profile: {len(self._found.kernels):,} kernels in {tables.duration(self.seconds)}, "
            f"{tables.duration(self.busy)} of it busy>"
        )

    def _repr_html_(self) -> str | None:
        if self._found is None:
            return None
        head, *lines = tables.texts(self.rows)
        return markup.table(repr(self).strip("<>"), head, lines, texts=len(tables.TEXTS))

    def __str__(self) -> str:
        """The table as text; see `table`."""
        return tables.text(self.rows)


def exported(profiler: Any) -> bytes:
    """The Chrome trace of a ``torch.profiler.profile``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return file.read_bytes()
