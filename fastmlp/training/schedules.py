"""Learning rates over a run, as factors of the optimizer's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: A name, or a function of the progress in [0, 1) that gives the factor.
Schedule = str | Callable[[float], float] | None

_WARM_UP = 0.3  # torch.optim.lr_scheduler.OneCycleLR's defaults
_FIRST, _LAST = 1 / 25, 1 / 25e4

NAMES = ("constant", "linear", "cosine", "one-cycle")


def factors(schedule: Schedule, steps: int) -> Tensor:
    """What each of ``steps`` steps' learning rates are multiplied by, (steps,) float64.

    Args:
        schedule: "constant" or None; "linear", from 1 to 0; "cosine", half a wave from 1 to 0;
            "one-cycle", as ``torch.optim.lr_scheduler.OneCycleLR(cycle_momentum=False)`` with the
            optimizer's rate as its ``max_lr``; or a function of the share of the steps that are done.
        steps: of the whole run.

    Raises:
        ValueError: an unknown name, or a factor that is not finite.
    """
    progress = torch.arange(steps, dtype=torch.float64, device="cpu") / max(steps, 1)
    if schedule is None or schedule == "constant":
        return torch.ones(steps, dtype=torch.float64, device="cpu")
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + torch.cos(math.pi * progress)) / 2
    if schedule == "one-cycle":
        return _one_cycle(steps)
    if not callable(schedule):
        raise ValueError(f"schedule: expected one of {', '.join(NAMES)} or a function, got {schedule!r}")
    found = torch.tensor([float(schedule(p)) for p in progress.tolist()], dtype=torch.float64, device="cpu")
    if not bool(found.isfinite().all()):
        raise ValueError(f"schedule: expected finite factors, got {found[~found.isfinite()][0].item()}")
    return found


def _one_cycle(steps: int) -> Tensor:
    top, end = _WARM_UP * steps - 1, steps - 1
    step = torch.arange(steps, dtype=torch.float64, device="cpu")
    up = _cosine(_FIRST, 1.0, step / top) if top > 0 else torch.ones_like(step)
    down = _cosine(1.0, _LAST, (step - top) / max(end - top, 1))
    return torch.where(step <= top, up, down)


def _cosine(start: float, end: float, share: Tensor) -> Tensor:
    return end + (start - end) / 2 * (1 + torch.cos(math.pi * share))
