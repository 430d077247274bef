"""What the project set out to reach, as data, and what a report says about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import cases, epochs, whole_net
from .measure import Row
from .peers import (
    AUTOTUNED,
    BOOK,
    BOOK_WORKERS,
    EAGER,
    EAGER_FLOAT32,
    GRAPH,
    JAX,
    LIGER,
    OF_OURS,
    OURS,
    OURS_ENGINES,
    OURS_GRAPH,
    TORCH_LINEAR,
)

Rows = Sequence[Row]
#: A number that a target is about, and where it was measured.
Measured = tuple[float, str]

_A, _B = f"{cases.name(cases.A)}, batch 256", f"{cases.name(cases.B)}, batch 1024"


@dataclass(frozen=True)
class Target:
    """A bound on one number."""

    kind: str  # of machine: cpu or gpu
    what: str
    bound: float
    values: Callable[[Rows], Iterable[Measured]]
    unit: str = "×"
    at_most: bool = False
    counts: Callable[..., Measured | None] = min  # which of several numbers counts: mostly the worst

    def measured(self, rows: Rows) -> Measured | None:
        """The number; None where it was not measured."""
        return self.counts(self.values(rows), default=None)

    def verdict(self, measured: Measured | None) -> str:
        """Met or missed, by the digits that are shown."""
        if measured is None:
            return "not measured here"
        shown = round(measured[0], 2)
        return "met" if (shown <= self.bound if self.at_most else shown >= self.bound) else "missed"


def ratio(row: Row, peer: str) -> float | None:
    """How many times faster ours is than ``peer``, by their medians."""
    seconds = row.get("seconds", {})
    if OURS not in seconds or peer not in seconds:
        return None
    return seconds[peer]["median"] / seconds[OURS]["median"]


def _named(rows: Rows, group: str, label: str, dtype: str) -> Rows:
    return [
        row
        for row in rows
        if row["group"] == group
        and row.get("dtype") == dtype
        and row["label"].startswith(label)
        and row["part"] != "sweeps"
    ]


def _speedups(rows: Rows, group: str, label: str, dtype: str, *against: str) -> Iterator[Measured]:
    """Ours over each of ``against``, in each of the rows."""
    for row in _named(rows, group, label, dtype):
        for peer in against:
            if r := ratio(row, peer):
                yield r, f"over {peer}"


def _over_everybody(rows: Rows, group: str) -> Iterator[Measured]:
    """Ours over the fastest of the others, in each row; ours may use a CUDA graph, as theirs may."""
    for row in rows:
        seconds = row.get("seconds", {}) if row["group"] == group and row["part"] != "sweeps" else {}
        best = fastest_other(seconds)
        if OURS in seconds and best is not None:
            ours = min(seconds[peer]["median"] for peer in (OURS, OURS_GRAPH) if peer in seconds)
            yield seconds[best]["median"] / ours, f"over {best}, {row['label']}, {row['dtype']}"


def fastest_other(seconds: dict[str, dict[str, float]]) -> str | None:
    """The fastest peer that is not ours."""
    others = [peer for peer in seconds if peer not in OF_OURS]
    return min(others, key=lambda peer: seconds[peer]["median"], default=None)


def _memory(rows: Rows, group: str, label: str, dtype: str) -> Iterator[Measured]:
    """Our peak in percent of eager's."""
    for row in _named(rows, group, label, dtype):
        memory = row.get("memory", {})
        if OURS in memory and memory.get(EAGER):
            yield 100 * memory[OURS] / memory[EAGER], "of eager"


def _epoch(rows: Rows, against: str) -> Iterator[Measured]:
    """The step's speed-up in an epoch, in both dtypes."""
    for dtype in ("float32", "bfloat16"):
        yield from _speedups(rows, epochs.EPOCH, "", dtype, against)


def _ten_epochs(rows: Rows) -> Iterator[Measured]:
    """Milliseconds of ten epochs, by every engine in every dtype."""
    for row in rows:
        for peer in (OURS, *OURS_ENGINES.values()) if row["group"] == epochs.EPOCH else ():
            if peer in row["seconds"]:
                yield 10e3 * row["seconds"][peer]["median"], f"{peer}, {row['dtype']}"


def _of_sweeps(rows: Rows) -> Iterator[Measured]:
    for row in rows:
        if row["part"] == "sweeps" and (r := ratio(row, EAGER)):
            yield r, f"over {EAGER}, {row['group']}, {row['label']}"


def _share_of_floor(rows: Rows, group: str, label: str, dtype: str) -> Iterator[Measured]:
    for row in _named(rows, group, label, dtype):
        if OURS in row["seconds"]:
            yield 100 * row["floor"] / row["seconds"][OURS]["median"], "of the floor"


def _of(values: Callable[..., Iterable[Measured]], *what: str) -> Callable[[Rows], Iterable[Measured]]:
    return lambda rows: values(rows, *what)


_LANGUAGE = "8192 x 4096 -> 128256"  # tokens, features and vocabulary of a language model's head
_LAYER = "8192 x 8192 -> 8192"
_INFERENCE = [(256, 1.1), (4096, 1.2), (1, 1.0), (32, 1.0)]
_LOSSES = [("2048 x 32000", 2.5), ("4096 x 1000", 1.3), ("256 x 10", 1.0)]

TARGETS: tuple[Target, ...] = (
    Target("cpu", f"step {_A}, float32", 1.25, _of(_speedups, cases.STEP, _A, "float32", EAGER)),
    Target("cpu", f"step {_A}, bfloat16", 1.9, _of(_speedups, cases.STEP, _A, "bfloat16", EAGER_FLOAT32)),
    Target("cpu", f"step {_B}, float32", 1.07, _of(_speedups, cases.STEP, _B, "float32", EAGER)),
    Target("cpu", f"step {_B}, bfloat16", 2.0, _of(_speedups, cases.STEP, _B, "bfloat16", EAGER_FLOAT32)),
    Target(
        "cpu", "epoch beside the book's pipeline", 6.0,
        _of(_speedups, epochs.PIPELINE, "", "float32", BOOK, BOOK_WORKERS),
    ),
    *(
        Target(
            "cpu", f"inference, batch {batch}, float32", bound,
            _of(_speedups, cases.INFERENCE, f"{cases.name(cases.A)}, batch {batch}", "float32", EAGER),
        )
        for batch, bound in _INFERENCE
    ),
    Target(
        "cpu", "inference, batch 4096, bfloat16", 1.9,
        _of(_speedups, cases.INFERENCE, f"{cases.name(cases.A)}, batch 4096", "bfloat16", EAGER_FLOAT32),
    ),
    *(
        Target(
            "cpu", f"cross-entropy {label}", bound,
            _of(_speedups, cases.CROSS_ENTROPY, label, "float32", EAGER),
        )
        for label, bound in _LOSSES
    ),
    Target("cpu", "every point of the sweeps", 1.0, _of_sweeps),
    Target("gpu", "10 epochs of 784-256-10", 25.0, _ten_epochs, "ms", at_most=True),
    Target("gpu", "10 epochs of 784-256-10 (stretch)", 12.0, _ten_epochs, "ms", at_most=True),
    Target("gpu", "a step of an epoch over eager", 15.0, _of(_epoch, EAGER)),
    Target("gpu", "a step of an epoch over eager in a CUDA graph", 3.0, _of(_epoch, GRAPH)),
    Target("gpu", "a step of an epoch over torch.compile max-autotune", 3.0, _of(_epoch, AUTOTUNED)),
    Target("gpu", "a step of an epoch over JAX", 2.0, _of(_epoch, JAX)),
    *(
        Target("gpu", f"{group}, {_LAYER}, bfloat16", 1.0, _of(_speedups, group, _LAYER, "bfloat16", EAGER))
        for group in (cases.LINEAR, cases.LINEAR_BACKWARD)
    ),
    Target(
        "gpu", f"linear + cross-entropy {_LANGUAGE}, bfloat16, over torch, Liger and eager", 1.0,
        _of(_speedups, cases.HEAD, _LANGUAGE, "bfloat16", TORCH_LINEAR, LIGER, EAGER),
    ),
    Target(
        "gpu", f"peak memory of linear + cross-entropy {_LANGUAGE}, bfloat16", 10.0,
        _of(_memory, cases.HEAD, _LANGUAGE, "bfloat16"), "%", at_most=True, counts=max,
    ),
    *(
        Target("gpu", f"{group}, over every peer", 1.0, _of(_over_everybody, group))
        for group in (whole_net.FORWARD, whole_net.TRAINING)
    ),
    *(
        Target("gpu", f"{group}, {dtype}", 1.0, _of(_speedups, group, "", dtype, EAGER))
        for group in (whole_net.DROPOUT, whole_net.QUANTIZED)
        for dtype in ("float32", "bfloat16")
    ),
    Target(
        "gpu", "cross-entropy 4096 x 128256, bfloat16", 90.0,
        _of(_share_of_floor, cases.CROSS_ENTROPY, "4096 x 128256", "bfloat16"), "%",
    ),
    Target("gpu", "every point of the sweeps", 1.0, _of_sweeps),
)  # fmt: skip


def evaluate(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every target with what was measured; those of the other kind of machine are not measured here."""
    found = []
    for target in TARGETS:
        here = target.kind == report["machine"]["kind"]
        measured = target.measured(report["rows"]) if here else None
        sign = "<=" if target.at_most else ">="
        found.append(
            {
                "kind": target.kind,
                "what": target.what,
                "wanted": f"{sign} {target.bound:g} {target.unit}".replace(" ×", "×").replace(" %", "%"),
                "measured": None if measured is None else round(measured[0], 4),
                "unit": target.unit,
                "where": None if measured is None else measured[1],
                "verdict": target.verdict(measured),
            }
        )
    return found
