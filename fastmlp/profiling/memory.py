"""Who holds memory: the CUDA allocator's own snapshot, or on a CPU the allocations that the profiler saw."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastmlp import files
from fastmlp.profiling.trace import HOST, LAYER, WHOLE, Event

_MOST = 1_000_000  # allocations that a snapshot remembers


@contextmanager
def recorded(path: Path) -> Iterator[None]:
    """Record what the CUDA allocator does inside, and write its snapshot for https://pytorch.org/memory_viz."""
    torch.cuda.memory._record_memory_history(max_entries=_MOST)
    try:
        yield
        files.write(path, [pickle.dumps(torch.cuda.memory._snapshot())])
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)


def of_events(events: Iterable[Event]) -> dict[str, Any]:
    """A trace's memory events: each with the innermost op and the innermost layer around it.

    ``bytes`` below 0 are given back; ``held`` is what is held after it, beside what was held before all.
    """
    found: list[dict[str, Any]] = []
    open_: dict[Any, list[Event]] = defaultdict(list)
    held = peak = 0
    first: float | None = None
    # Where an op begins and memory is had at once, the op is first.
    relevant = (e for e in events if e.get("cat") in (*HOST, "cpu_instant_event"))
    for event in sorted(relevant, key=lambda e: (e["ts"], -e.get("dur", -1.0))):
        stack, at = open_[event["tid"]], event["ts"]
        first = at if first is None else first
        while stack and at >= stack[-1]["ts"] + stack[-1]["dur"]:
            stack.pop()
        if event["ph"] == "X":
            stack.append(event)
        elif event["name"] == "[memory]":
            held += event["args"]["Bytes"]
            peak = max(peak, held)
            names = [e["name"] for e in reversed(stack) if e["name"] != WHOLE]
            ops = [e["name"] for e in reversed(stack) if e["cat"] == "cpu_op"]
            layers = [name.removeprefix(LAYER) for name in names if name.startswith(LAYER)]
            found.append(
                {
                    "seconds": (at - first) * 1e-6,
                    "bytes": event["args"]["Bytes"],
                    "held": held,
                    "address": event["args"]["Addr"],
                    "op": (ops or names or [""])[0],
                    "layer": (layers or [""])[0],
                }
            )
    return {"of": "a CPU's allocations, as torch.profiler saw them", "peak": peak, "events": found}
