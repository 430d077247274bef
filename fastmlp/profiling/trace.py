"""The kernels of a trace: which ran, for how long, in which layer's range, by which launch or op.

A trace is what ``torch.profiler`` exports for chrome://tracing: the table is made of the very events that
the picture shows. On a GPU a kernel is tied to the op and the ranges around its launch by CUPTI's correlation
number; on a CPU an op that computes itself is the kernel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastmlp.costs import aten
from fastmlp.costs.floors import Work

Event = dict[str, Any]
#: The range around everything that is profiled.
WHOLE = "fastmlp.profile"
#: In front of a layer's qualified name.
LAYER = "layer "
#: Categories of what the host did.
HOST = ("cpu_op", "user_annotation")
_CALLS = ("cuda_runtime", "cuda_driver")
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Launched:
    """What was noted of a launch of one of our kernels as it was made."""

    name: str
    grid: tuple[int, int, int]
    work: Work | None
    dtype: str
    layer: str


@dataclass(frozen=True)
class Kernel:
    """One kernel that ran."""

    name: str
    layer: str  # or another range that it ran in, such as an optimizer's step; "" for none
    start: float  # seconds
    seconds: float
    work: Work | None  # None: not known
    dtype: str  # that its products run in


@dataclass
class _Node:
    event: Event
    children: list[_Node] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """Where the walk down a thread's ranges and ops is."""

    layer: str = ""
    launched: Launched | None = None
    op: _Node | None = None  # the outermost of torch's own that is a kernel


class Trace:
    """The kernels of a trace, and the time from its beginning to its end.

    Args:
        events: ``traceEvents``.
        launches: of our own kernels, in their order.
        captured: what CUDA graphs may hold of them.
    """

    def __init__(
        self, events: Iterable[Event], launches: Sequence[Launched] = (), captured: Sequence[Launched] = ()
    ) -> None:
        complete = [event for event in events if event.get("ph") == "X"]
        host = [e for e in complete if e.get("cat") in HOST + _CALLS]
        #: Seconds from beginning to end; 0 where nothing was profiled.
        self.seconds = next((_seconds(e["dur"]) for e in host if e["name"] == WHOLE), 0.0)
        self._launches = _launches_of(host, launches)
        self._captured = _by_grid(captured)
        self._device: dict[int, list[Event]] = defaultdict(list)  # by correlation
        for event in complete:
            if event.get("cat") in _DEVICE:
                self._device[event["args"].get("correlation", -1)].append(event)
        #: Whether a GPU's kernels are in it; else the host's ops are the kernels.
        self.on_device = bool(self._device)
        roots = _nested(host)
        self._layers = _layers_of_sequences(roots)
        kernels = [kernel for root in roots for kernel in self._walk(root, _Place())]
        for left in self._device.values():  # whose call is not in the trace: it ran all the same
            kernels += [self._ran(event, _Place()) for event in left]
        self.kernels = sorted(kernels, key=lambda kernel: kernel.start)

    def __repr__(self) -> str:
        return f"<Trace: {len(self.kernels):,} kernels in {self.seconds:.3g} s>"

    @property
    def busy(self) -> float:
        """Seconds in which a kernel ran; several at a time count once."""
        total, end = 0.0, float("-inf")
        for kernel in self.kernels:
            stop = kernel.start + kernel.seconds
            total += max(0.0, stop - max(end, kernel.start))
            end = max(end, stop)
        return total

    def _walk(self, node: _Node, place: _Place) -> Iterator[Kernel]:
        event = node.event
        name, args = event["name"], event.get("args", {})
        if event["cat"] in _CALLS:
            for ran in self._device.pop(args.get("correlation", -1), []):
                yield self._ran(ran, place)
            return
        if event["cat"] == "user_annotation":
            place = self._annotated(event, place)
            if place.launched is not None and not self.on_device:  # Triton's interpreter: run as launched
                yield _kernel(event, name, place.layer, place.launched.work, place.launched.dtype)
                return
        else:
            if args.get("Fwd thread id"):  # a backward: its forward's layer
                place = replace(place, layer=self._layers.get(args["Sequence number"], place.layer))
            if place.op is None and aten.is_kernel(name, args):
                place = replace(place, op=node)
                if not self.on_device:
                    yield _kernel(event, name, place.layer, *aten.count(name, args))
                    return
        for child in node.children:
            yield from self._walk(child, place)

    def _annotated(self, event: Event, place: _Place) -> _Place:
        name, launched = event["name"], self._launches.get(id(event))
        if launched is not None:
            return _Place(launched.layer or place.layer, launched)
        if name.startswith(LAYER):
            return replace(place, layer=name.removeprefix(LAYER))
        return place if place.layer or name == WHOLE else replace(place, layer=name)

    def _ran(self, event: Event, place: _Place) -> Kernel:
        """A kernel on the device, whose call was at ``place``."""
        name, args = event["name"], event["args"]
        if event["cat"] != "kernel":
            moved = args.get("bytes")
            return _kernel(event, name, place.layer, moved and Work(0, moved, 1, moved), "")
        launched = place.launched
        if launched is None or not name.startswith(launched.name):
            launched = self._captured.get((name, *args.get("grid", ())))
        if launched is not None:
            return _kernel(event, name, place.layer or launched.layer, launched.work, launched.dtype)
        if place.op is None:
            return _kernel(event, name, place.layer, None, "")
        counted = aten.count(place.op.event["name"], place.op.event["args"])
        # What an op of several kernels takes is not known of each.
        work = counted.work if _calls_of_kernels(place.op) == 1 else None
        return _kernel(event, name, place.layer, work, counted.dtype)


def _kernel(event: Event, name: str, layer: str, work: Work | None, dtype: str) -> Kernel:
    return Kernel(name, layer, _seconds(event["ts"]), _seconds(event["dur"]), work, dtype)


def _seconds(microseconds: float) -> float:
    return microseconds * 1e-6


def _nested(events: Sequence[Event]) -> list[_Node]:
    """Each thread's events as trees: what begins and ends within another is its child."""
    roots: list[_Node] = []
    open_: dict[Any, list[_Node]] = defaultdict(list)
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        stack = open_[event["tid"]]
        while stack and event["ts"] >= stack[-1].event["ts"] + stack[-1].event["dur"]:
            stack.pop()
        node = _Node(event)
        (stack[-1].children if stack else roots).append(node)
        stack.append(node)
    return roots


def _launches_of(host: Sequence[Event], launches: Sequence[Launched]) -> dict[int, Launched]:
    """Each launch's range, by its event's id: both in the order in which they were made."""
    names = {launched.name for launched in launches}
    made = sorted(
        (e for e in host if e["cat"] == "user_annotation" and e["name"] in names), key=lambda e: e["ts"]
    )
    return {id(event): found for event, found in zip(made, launches) if event["name"] == found.name}


def _layers_of_sequences(roots: Sequence[_Node]) -> dict[int, str]:
    """The layer of each of autograd's sequence numbers: that of the last op with it, which made the node."""
    found: dict[int, str] = {}

    def walk(node: _Node, layer: str) -> None:
        event, args = node.event, node.event.get("args", {})
        if event["cat"] == "user_annotation" and event["name"].startswith(LAYER):
            layer = event["name"].removeprefix(LAYER)
        if layer and "Sequence number" in args and not args.get("Fwd thread id"):
            found[args["Sequence number"]] = layer
        for child in node.children:
            walk(child, layer)

    for root in roots:
        walk(root, "")
    return found


def _calls_of_kernels(node: _Node) -> int:
    """How many kernels were launched in a node's time; a copy or a fill is none."""
    if node.event["cat"] in _CALLS:
        return "LaunchKernel" in node.event["name"]
    return sum(map(_calls_of_kernels, node.children))


def _by_grid(captured: Sequence[Launched]) -> dict[tuple[Any, ...], Launched]:
    """Launches by name and grid; of those that differ in what they take nothing is known."""
    found: dict[tuple[Any, ...], Launched] = {}
    for launched in captured:
        key = launched.name, *launched.grid
        known = found.setdefault(key, launched)
        work = known.work if known.work == launched.work else None
        found[key] = replace(known, work=work, layer=known.layer if known.layer == launched.layer else "")
    return found
