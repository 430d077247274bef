"""Epochs over data that stays on the host: step by step, by any executor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastmlp.engine import choose
from fastmlp.engine.base import Job
from fastmlp.engine.step_loop import StepLoop
from fastmlp.training.arrays import Pair
from fastmlp.training.errors import TrainingError
from fastmlp.training.sources import Source


class StreamLoop(StepLoop):
    """Hands each batch of a `Source` to the executor as it arrives; the ``job``'s x, y are only an example.

    The order of what can be indexed is drawn as a `StepLoop` draws it, so that the results are those of the
    same data on the device, to the bit.

    Raises:
        ValueError: ``engine`` cannot run here, with the reason.
    """

    def __init__(self, engine: str, job: Job, source: Source) -> None:
        if engine in ("graph", "persistent"):
            raise ValueError(
                f"engine: {engine!r} cannot run this: {source.name} comes from the host batch by batch"
            )
        super().__init__(choose.executor(choose.find(engine, job), job), job)
        self._source = source
        #: Examples of the epoch so far.
        self.seen = 0

    def epoch(self, factors: Tensor, on_batch: Callable[[int], None] | None = None) -> tuple[float, float]:
        """See `Loop.epoch`; without ``factors`` the epoch ends where the source does, and all are 1.

        Raises:
            TrainingError: the source gave more or fewer batches than it promised.
        """
        self.seen = self.done * self.batch
        if not self.done:
            self.executor.sums.zero_()
        self._order = self.generator.get_state()
        table = factors.tolist()
        for x, y in self._batches():
            if table and self.done == len(table):
                raise TrainingError(
                    f"{self._source.name}: its length is {len(table)} batches, but it gave more"
                )
            self.x, self.y = x, y
            loss = self._step(None, table[self.done] if table else 1.0)
            self.done += 1
            self.seen += len(y)
            if self.looks and not math.isfinite(loss.item()):
                break
            if on_batch is not None:
                on_batch(len(y))
        else:
            if self.done < max(len(table), 1):
                raise TrainingError(
                    f"{self._source.name}: expected {len(table) or 'some'} batches, it gave {self.done}"
                )
            self.done = 0
        total, right = self.executor.sums.tolist()
        return total, right

    def _batches(self) -> Iterator[Pair]:
        count, order = self._source.count, None
        if count is not None:
            device = self.generator.device
            order = torch.randperm(count, generator=self.generator, device=device).cpu()
        return self._source.batches(self.batch, order, self.done)
