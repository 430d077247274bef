"""Keeps the norm of gradients within a limit."""

from __future__ import annotations

import math
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fastmlp.engine.rules import wants_closure

#: Why no other engine than autograd clips.
REASON = "clip_norm needs all gradients before the first update"


class NotFiniteError(Exception):
    """A norm is infinite or NaN; the message is the number."""


class Clip:
    """Inside the ``with`` block, an optimizer's steps come after ``torch.nn.utils.clip_grad_norm_``.

    It is a hook on the optimizer, so that whoever takes the steps need not know of it. Under DDP and FSDP the
    gradients are averaged by then, and every process clips alike. float16's are unscaled, and nothing is
    clipped for a step that the scaler skips.

    Args:
        optimizer: whose parameters' gradients count.
        limit: of their norm.
        looks: whether to read every norm at once, which would make the host wait for a GPU.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, limit: float, looks: bool) -> None:
        self._optimizer, self._limit, self._looks = optimizer, limit, looks
        self._finite: Tensor | None = None  # whether all norms since the last `check` were

    def __enter__(self) -> Clip:
        self._handle = self._optimizer.register_step_pre_hook(self._clip)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _clip(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self._limit)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a sharded net's
        if self._looks:
            if not math.isfinite(norm.item()):
                raise NotFiniteError(str(norm.item()))
            return
        finite = torch.isfinite(norm)
        self._finite = finite if self._finite is None else self._finite & finite

    def check(self) -> None:
        """Raise a `NotFiniteError` if a norm that has not been read yet was not finite."""
        finite, self._finite = self._finite, None
        if finite is not None and not finite.item():
            raise NotFiniteError("not finite")


def checked(limit: float | None, engine: str, dtype: torch.dtype, optimizer: torch.optim.Optimizer) -> str:
    """The engine to run: ``engine``, or with a ``limit`` eager, which can clip; or a ValueError."""
    if limit is None:
        return engine
    if not 0 < limit < math.inf:
        raise ValueError(f"clip_norm: expected a positive number, got {limit}")
    if wants_closure(optimizer):
        raise ValueError(
            f"clip_norm: expected None with {type(optimizer).__name__}, which computes the gradients itself"
        )
    if engine not in ("auto", "eager"):
        raise ValueError(f"engine: {engine!r} cannot run this: {REASON}")
    if dtype == torch.float16 and any(group.get("fused") for group in optimizer.param_groups):
        raise ValueError(
            "clip_norm: with float16, expected no optimizer of fused=True, which unscales too late"
        )
    return "eager"
