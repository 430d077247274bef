"""`fit` in several processes: each computes its share of every batch, and the results are those of one."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastmlp.engine.autograd import AutogradExecutor, has_labels
from fastmlp.engine.base import Job
from fastmlp.engine.step_loop import StepLoop
from fastmlp.modules import CrossEntropyLoss


class Ranks(NamedTuple):
    """The processes over which a net's gradients are averaged, and which of them this is."""

    rank: int
    size: int
    group: dist.ProcessGroup

    def part(self, count: int) -> slice:
        """This process's part of ``count`` rows: together the parts are all rows; one may be empty."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def total(self, *numbers: float, device: torch.device) -> list[float]:
        """The sums of ``numbers`` over all processes."""
        sums = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(sums, group=self.group)
        return sums.tolist()

    def check_same(self, device: torch.device, **facts: int) -> None:
        """Check that all processes were given the same: else they would hang, or learn nonsense.

        Raises:
            ValueError: in every process, with the name of what differs.
        """
        values = torch.tensor([value % 2**63 for value in facts.values()], device=device)
        most, least = values.clone(), values.clone()
        dist.all_reduce(most, dist.ReduceOp.MAX, self.group)
        dist.all_reduce(least, dist.ReduceOp.MIN, self.group)
        for name, low, high in zip(facts, least.tolist(), most.tolist()):
            if low != high:
                raise ValueError(f"{name}: expected the same in every process, got from {low} to {high}")


def ranks_of(net: nn.Module) -> Ranks | None:
    """The processes that share the work on ``net``; None if it is neither in DDP nor in part fully_sharded.

    Raises:
        ValueError: a sharding whose gradients are not simply the mean over all its processes.
    """
    group = net.process_group if isinstance(net, DistributedDataParallel) else _sharding_group(net)
    return None if group is None else Ranks(dist.get_rank(group), dist.get_world_size(group), group)


def reshard(net: nn.Module) -> bool:
    """Put what is fully_sharded back in pieces: a forward without a backward leaves it whole.

    Returns:
        Whether anything in ``net`` is.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # slow to import, and whoever shards has imported it
    kind = getattr(fsdp, "FSDPModule", ())
    found = [module for module in net.modules() if isinstance(module, kind)]
    for module in found:
        module.reshard()
    return bool(found)


def _sharding_group(net: nn.Module) -> dist.ProcessGroup | None:
    if not reshard(net):
        return None
    from torch.distributed.tensor import DTensor

    meshes = set()
    for name, parameter in net.named_parameters():
        if isinstance(parameter, DTensor):
            meshes.add(parameter.device_mesh)
        elif parameter.requires_grad:
            raise ValueError(f"net: {name} is outside of fully_shard, so nobody averages its gradient")
    if len(meshes) != 1 or (mesh := meshes.pop()).ndim != 1:
        raise ValueError("net: expected fully_shard over one mesh of one dimension")
    return mesh.get_group()


class SharedExecutor(AutogradExecutor):
    """A step on a batch that is shared: each process computes its part by autograd.

    DDP and FSDP average the processes' gradients. A mean loss divides by what counts in the whole
    batch, not in a part of it, so each process's loss gets the factor that makes this average the
    whole batch's gradient, whatever the sizes of the parts.
    """

    def __init__(self, ranks: Ranks, job: Job) -> None:
        super().__init__(job.model, job.loss, job.optimizer, job.x.device, job.dtype)
        self._ranks, loss = ranks, job.loss
        self._of_part: Callable[[Tensor], Tensor | int] = len  # what a part's loss has been divided by
        self._of_batch: Callable[[Tensor], Tensor | int] = len  # and what it should have been
        if isinstance(loss, nn.MSELoss) and loss.reduction == "sum":
            self._of_part = self._of_batch = _one
        if isinstance(loss, nn.CrossEntropyLoss) and type(loss) in (nn.CrossEntropyLoss, CrossEntropyLoss):
            self._of_batch = _answers
            unequal = loss.weight is not None or (job.y == loss.ignore_index).any()
            if loss.reduction == "mean" and unequal and not job.y.is_floating_point():
                self._of_batch = partial(label_weight, loss.weight, loss.ignore_index)
            if loss.reduction == "sum":
                self._of_batch = _one
            if loss.reduction in ("mean", "sum"):
                # A part in which no label counts has no mean, but it has a sum.
                self._of_part, loss = _one, copy.copy(loss)
                loss.reduction = "sum"
                self.loss = loss

    def step(self, x: Tensor, y: Tensor, rows: Tensor | None = None, *, count: bool = True) -> Tensor:
        """See `Executor.step`; ``rows`` are the whole batch.

        Returns:
            A loss whose mean over the processes is the whole batch's.
        """
        rows = torch.arange(len(y), device=y.device) if rows is None else rows
        own = rows[self._ranks.part(len(rows))]
        self._rows, self._empty = len(rows), len(own) == 0
        self._factor = self._ranks.size * self._of_part(own) / self._of_batch(y[rows])
        if self._empty:  # it still takes part in the sums over processes, with a row of weight 0
            own, self._factor = rows[:1], 0
        return super().step(x, y, own, count=count)

    def _objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        value, logits = super()._objective(x, y)
        return value * self._factor, logits

    def _count(self, value: Tensor, logits: Tensor, y: Tensor) -> None:
        self.sums[0] += value * (self._rows / self._ranks.size)
        if not self._empty and has_labels(logits, y):
            self.sums[1] += (logits.argmax(1) == y).sum()


def _one(labels: Tensor) -> int:
    return 1


def _answers(y: Tensor) -> int:
    """What a mean over labels (N, ...) or probabilities (N, classes, ...) is divided by."""
    return y.numel() // (y.shape[1] if y.is_floating_point() else 1)


def label_weight(weight: Tensor | None, ignore_index: int, labels: Tensor) -> Tensor:
    """The sum of the labels' class weights; an ignored label has none."""
    counts = labels != ignore_index
    if weight is None:
        return counts.sum()
    return (weight[labels.where(counts, torch.zeros_like(labels))] * counts).sum()


class SharedLoop(StepLoop):
    """Epochs of several processes: the same order in each, drawn from the same seed."""

    def __init__(self, ranks: Ranks, engine: str, job: Job) -> None:
        if engine not in ("auto", "eager"):
            raise ValueError(
                f"engine: {engine!r} cannot run this: the gradients of {ranks.size} processes are averaged "
                "by hooks of autograd"
            )
        super().__init__(SharedExecutor(ranks, job), job)
        self.looks = False  # it would see only its part of the loss, and leave the others waiting
        self._ranks = ranks

    def epoch(self, factors: Tensor, on_batch: Callable[[int], None] | None = None) -> tuple[float, float]:
        """See `Loop.epoch`; the sums are over all processes."""
        sums = super().epoch(factors, on_batch)
        total, right = self._ranks.total(*sums, device=self.y.device)
        return total, right
