"""What epochs that run as a whole have in common: the data, the order, and the table of the schedule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from fastmlp.engine.base import Job, Loop
from fastmlp.engine.checks import check_batch
from fastmlp.engine.fused import FusedExecutor, to_device
from fastmlp.kernels.launch import cdiv


class Schedule:
    """The optimizer's numbers of every step of an epoch, on the device: a new schedule is a new table."""

    def __init__(self, steps: int, groups: int, width: int, device: torch.device) -> None:
        self.rows = torch.zeros(steps, groups, width, device=device, dtype=torch.float32)
        self._known: Tensor | None = None

    def set(self, rows: Tensor) -> None:
        """Copy ``rows`` (steps, groups, width) over, if they have changed; the host does not wait."""
        if self._known is None or not torch.equal(rows, self._known):
            self.rows.copy_(to_device(rows, self.rows.device), non_blocking=True)
            self._known = rows


class WholeLoop(Loop):
    """Epochs with no Python between their steps; the host reads two numbers at the end of each."""

    executor: FusedExecutor

    def __init__(self, executor: FusedExecutor, job: Job) -> None:
        self.executor, self.generator, y = executor, job.generator, job.y
        self.x = check_batch(executor.network, job.x, y, None, executor.dtype).resolve_neg()
        self.y, self.batch = y.resolve_neg(), min(job.batch, len(y))
        self.steps = cdiv(len(y), self.batch)
        self.order = torch.arange(len(y), device=y.device)
        first = executor.rule.rows(torch.ones(1, dtype=torch.float64, device="cpu"))
        self.schedule = Schedule(self.steps, first.shape[1], first.shape[2], y.device)

    def epoch(self, factors: Tensor, on_batch: Callable[[int], None] | None = None) -> tuple[float, float]:
        """See `Loop.epoch`; ``on_batch`` is called once, with all examples."""
        executor = self.executor
        new = executor.prepare(self.batch)
        self.schedule.set(executor.rule.rows(factors))
        self._run(new)
        executor.stepped(self.steps)
        total, right = executor.sums.tolist()
        if on_batch is not None:
            on_batch(len(self.y))
        return total, right

    @abstractmethod
    def _run(self, new: bool) -> None:
        """Draw the order, zero the sums, make the steps. ``new``: the executor's buffers are new ones."""
