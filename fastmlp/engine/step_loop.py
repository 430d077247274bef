"""An epoch as a plain loop over steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmlp.engine.base import Executor, Job, Loop


class StepLoop(Loop):
    """Launches every step from Python; for any executor, on any device.

    On a CPU it stops at a loss that is not finite, and `done` says after which step. On a GPU a look
    would make the host wait; there the sums show it at the end.
    """

    def __init__(self, executor: Executor, job: Job) -> None:
        self.name = executor.name
        self.executor, self.optimizer, self.generator = executor, job.optimizer, job.generator
        self.x, self.y, self.batch = job.x, job.y, job.batch
        self.looks = job.y.is_cpu
        self._order = job.generator.get_state()  # from which the epoch's order was drawn

    def epoch(self, factors: Tensor, on_batch: Callable[[int], None] | None = None) -> tuple[float, float]:
        """See `Loop.epoch`."""
        if not self.done:
            self.executor.sums.zero_()
        self._order = self.generator.get_state()
        order = torch.randperm(len(self.y), generator=self.generator, device=self.y.device)
        for step, factor in enumerate(factors[self.done :].tolist(), self.done):
            rows = order[step * self.batch : (step + 1) * self.batch]
            loss = self._step(rows, factor)
            self.done = step + 1
            if self.looks and not math.isfinite(loss.item()):
                break
            if on_batch is not None:
                on_batch(len(rows))
        else:
            self.done = 0
        total, right = self.executor.sums.tolist()
        return total, right

    def _step(self, rows: Tensor | None, factor: float) -> Tensor:
        """A step at ``factor`` times the optimizer's learning rates, which are restored when it is done."""
        if factor == 1:
            return self.executor.step(self.x, self.y, rows)
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, rates):
                group["lr"] = rate * factor
            return self.executor.step(self.x, self.y, rows)
        finally:
            for group, rate in zip(groups, rates):
                group["lr"] = rate

    def state(self) -> dict[str, Any]:
        """See `Loop.state`: within an epoch the generator as it was before the order was drawn."""
        return super().state() | ({"order": self._order} if self.done else {})
