"""Lines over batch, width, depth and classes, each as far as time and memory allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from .cases import A, Case, cross_entropy, inference, training_step
from .peers import EAGER, OURS
from .whole_net import mlp

_GIB = 1 << 30


@dataclass(frozen=True)
class Sweep:
    """One line of cases."""

    name: str  # of its files
    title: str
    axis: str
    values: Sequence[int]
    case: Callable[[int, torch.dtype], Case]


@dataclass(frozen=True)
class Limits:
    """Where a line ends."""

    seconds: float  # of one call of ours or of eager
    bytes: int  # that the work needs at once


LIMITS = {"cpu": Limits(2.0, 4 * _GIB), "cuda": Limits(0.5, 24 * _GIB)}
_QUICK = Limits(0.02, _GIB // 4)


def limits(device: str, quick: bool) -> Limits:
    """The bounds of every line."""
    return _QUICK if quick else LIMITS[device]


def _narrow(name: str, what: str, axis: str, values: Sequence[int], case: Callable[..., Case]) -> list[Sweep]:
    """A small net's line, with backward and without; ``case`` is `mlp` as a function of the value."""
    return [
        Sweep(f"mlp-{name}", f"{what}, forward + backward", axis, values, partial(case, training=True)),
        Sweep(f"mlp-{name}-forward", f"{what}, forward", axis, values, partial(case, training=False)),
    ]


_BATCHES = [4**i for i in range(11)]
_CLASSES = [10, 100, 1000, 4096, 16384, 32000, 65536, 128256, 262144]
SWEEPS = (
    Sweep(
        "batch", "training step of 784-256-10 (SGD)", "batch", _BATCHES,
        lambda batch, dtype: training_step(A, batch, dtype),
    ),
    Sweep(
        "width", "training step of 784-w-w-10 (SGD), batch 256", "width w", [16 << i for i in range(0, 11)],
        lambda width, dtype: training_step((784, width, width, 10), 256, dtype),
    ),
    Sweep(
        "depth", "training step of 784-256-...-256-10 (SGD), batch 256", "linear layers", [2, 4, 8, 16, 32],
        lambda depth, dtype: training_step((784, *[256] * (depth - 1), 10), 256, dtype),
    ),
    Sweep(
        "classes", "cross-entropy, 512 rows, forward + backward", "classes", _CLASSES,
        lambda classes, dtype: cross_entropy(512, classes, dtype),
    ),
    Sweep(
        "inference", "inference of 784-256-10", "batch", _BATCHES,
        lambda batch, dtype: inference(A, batch, dtype),
    ),
    *_narrow(
        "batch", "8 layers of width 64", "batch", [1 << power for power in (8, 10, 12, 14, 16, 18, 20, 21)],
        lambda batch, dtype, training: mlp((64,) * 9, batch, dtype, training),
    ),
    *_narrow(
        "width", "8 layers of one width, batch 65536", "width", [16, 32, 64, 128, 256],
        lambda width, dtype, training: mlp((width,) * 9, 1 << 16, dtype, training),
    ),
    *_narrow(
        "depth", "layers of width 64, batch 65536", "linear layers", [2, 3, 4, 6, 8],
        lambda depth, dtype, training: mlp((64,) * (depth + 1), 1 << 16, dtype, training),
    ),
)  # fmt: skip


def axis(name: str) -> str:
    """What the sweep of this name runs over."""
    return next((sweep.axis for sweep in SWEEPS if sweep.name == name), name)


def too_much(case: Case, before: tuple[Case, float] | None, bounds: Limits) -> str | None:
    """Why the line stops before ``case``; None if it goes on.

    Args:
        case: the next one.
        before: the one measured last, with the seconds a call of its slower side took.
        bounds: the limits.
    """
    if case.work.footprint > bounds.bytes:
        return f"it needs {case.work.footprint / _GIB:.1f} GiB (limit {bounds.bytes / _GIB:g})"
    if before is None:
        return None
    last, seconds = before
    grown = max(case.work.operations / max(last.work.operations, 1), case.work.bytes / last.work.bytes)
    # A small call is all overhead, so its time says nothing of the next one's.
    expected = seconds * grown if seconds > bounds.seconds / 100 else seconds
    if max(expected, seconds) > bounds.seconds:
        return f"a call would take about {expected:.2g} s (limit {bounds.seconds:g})"
    return None


def slower(seconds: dict[str, dict[str, float]]) -> float:
    """Seconds a call of ours or of eager, whichever is slower."""
    return max((seconds[name]["median"] for name in (OURS, EAGER) if name in seconds), default=0.0)


def points(sweep: Sweep, device: str, quick: bool) -> Iterator[tuple[int, Case]]:
    """The line's cases; first, middle and last in a quick report."""
    values = sweep.values
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # for tensor cores; what everybody uses
    for value in (values[0], values[len(values) // 2], values[-1]) if quick else values:
        yield value, sweep.case(value, dtype)
