"""An epoch as a plain loop over steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastmlp.engine.base import Executor, Loop


class StepLoop(Loop):
    """Launches every step from Python; for any executor, on any device."""

    def __init__(
        self,
        executor: Executor,
        optimizer: torch.optim.Optimizer,
        x: Tensor,
        y: Tensor,
        batch: int,
        generator: torch.Generator,
    ) -> None:
        self.name = executor.name
        self.executor, self.optimizer, self.generator = executor, optimizer, generator
        self.x, self.y, self.batch = x, y, batch

    def epoch(self, factors: Tensor, on_batch: Callable[[int], None] | None = None) -> tuple[float, float]:
        """See `Loop.epoch`."""
        count = len(self.y)
        order = torch.randperm(count, generator=self.generator, device=self.y.device)
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        scheduled = not bool((factors == 1).all())
        self.executor.sums.zero_()
        try:
            for step, factor in enumerate(factors.tolist()):
                if scheduled:
                    for group, rate in zip(groups, rates):
                        group["lr"] = rate * factor
                rows = order[step * self.batch : (step + 1) * self.batch]
                self.executor.step(self.x, self.y, rows)
                if on_batch is not None:
                    on_batch(len(rows))
        finally:
            if scheduled:
                for group, rate in zip(groups, rates):
                    group["lr"] = rate
        total, right = self.executor.sums.tolist()
        return total, right
