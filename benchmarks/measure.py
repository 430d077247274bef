"""Measures a case by all its peers: one row of the report."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fastmlp.costs.ceilings import Ceilings

from . import memory, numerics
from .cases import Case
from .peers import CUT, EAGER, EXACT, LIGER, OF_OURS, OURS, TORCH_CHUNKS, Factory
from .timing import Run, interleave

#: Not those that compile, which takes more memory than what is compiled.
_MEASURED_MEMORY = (OURS, EAGER, TORCH_CHUNKS, LIGER, CUT)
Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How long a row may take."""

    rounds: int = 101  # interleaved turns
    seconds: float = 4.0  # after which no further turn starts
    without: Collection[str] = ()  # peers that are left out
    verify: bool = False  # ours is compared with float64 before it is timed


LEFT_OUT = "left out of a quick report"
QUICK = Effort(rounds=5, seconds=0.25)


def new_row(group: str, label: str = "", dtype: str = "", **more: Any) -> Row:
    """A row of the report, before anything is measured."""
    return {"group": group, "label": label, "dtype": dtype, "seconds": {}, "missing": {}, **more}


def failed(key: str, why: str) -> Row:
    """The row of something that could not be measured, described by its ``key``."""
    group, _, label = key.partition(", ")
    return new_row(group, label.rpartition(", ")[0], key.rpartition(", ")[2], key=key, error=why)


def measure(
    case: Case,
    device: str,
    ceilings: Ceilings,
    effort: Effort,
    say: Callable[[str], None] = lambda what: None,
) -> Row:
    """Time the peers in turns; one that cannot run is named with its reason.

    If ours fails, that is the row's error, not a missing peer. ``say`` is told what comes next.
    """
    row = new_row(
        case.group,
        case.label,
        case.precision,
        key=str(case),
        important=case.key,
        floor=ceilings.floor(case.work, case.precision),
        work=asdict(case.work),
        plans={
            plan: asdict(work) | {"floor": ceilings.floor(work, case.precision)}
            for plan, work in case.plans.items()
        },
    )
    if device == "cuda":
        torch.cuda.empty_cache()  # JAX allocates from what is left
    try:
        factories = case.on(device)
    except Exception as error:  # such as inputs that do not fit into memory
        return row | {"error": reason(error)}
    exact = factories.pop(EXACT, None)
    runs: dict[str, Run] = {}
    if effort.verify and exact is not None:
        say("float64")
        row |= _verified(case, factories, exact)
    for name, factory in factories.items():
        if name in effort.without:
            row["missing"][name] = LEFT_OUT
            continue
        say(name)
        try:
            runs[name] = factory()
            runs[name].call()
        except Exception as error:
            runs.pop(name, None)
            row["missing"][name] = reason(error)
            if name == OURS:
                row["error"] = f"{OURS}: {reason(error)}"
    if "wrong" in row:  # a wrong result gets no time, whichever of ours it is
        runs = {name: run for name, run in runs.items() if name not in OF_OURS}
    if runs:
        say("timing")
        row |= _timed(runs, device, effort)
    if case.memory and "error" not in row:
        row["memory"] = _memory({name: factories[name] for name in _MEASURED_MEMORY if name in runs}, device)
    return row


def _verified(case: Case, factories: dict[str, Factory], exact: Factory) -> Row:
    """How far our result is from float64's; an error if it is farther than `numerics` allows.

    Of several tensors, the one that counts comes closest to its bound, or goes furthest beyond it.
    """
    try:
        ours = _result(factories[OURS]())
    except Exception as error:
        return {"error": f"{OURS}: {reason(error)}"}
    try:
        torchs, right = _result(factories[EAGER]()), _result(exact())
        eps = 2.0**-10 if case.tf32 else torch.finfo(case.dtype).eps  # of the products' operands
        found = [
            numerics.judged(f"result {i}", mine, its, true, case.roundings, eps)
            for i, (mine, its, true) in enumerate(zip(ours, torchs, right, strict=True))
        ]
    except AssertionError as error:  # NaN or inf where there should be none
        return {"error": f"wrong: {error}", "wrong": True}
    except Exception as error:  # there is nothing to compare with
        return {"unverified": reason(error)}
    worst = max(found, key=numerics.excess)
    if numerics.excess(worst) <= 1:
        return {"worst": worst}
    text = f"wrong: {worst['what']} is off by {worst['error']:.2e}, allowed {worst['allowed']:.2e}"
    return {"worst": worst, "error": text, "wrong": True}


def _result(run: Run) -> list[Tensor]:
    """What one call computes."""
    value = run.call()
    value = value if run.result is None else run.result()
    return [tensor.detach().clone() for tensor in ([value] if isinstance(value, Tensor) else value)]


def _timed(runs: dict[str, Run], device: str, effort: Effort) -> Row:
    try:
        timings = interleave(runs, device, effort.rounds, effort.seconds)
    except Exception as error:
        return {"error": reason(error)}
    return {"seconds": {name: asdict(timing) for name, timing in timings.items()}}


def _memory(factories: dict[str, Factory], device: str) -> dict[str, int]:
    found = {}
    for name, factory in factories.items():
        try:
            taken = memory.peak(factory, device)
        except Exception:  # the row's times are good without it
            continue
        if taken is not None:
            found[name] = taken
    return found


def reason(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".removesuffix(": ").removeprefix("MissingPeerError: ")
