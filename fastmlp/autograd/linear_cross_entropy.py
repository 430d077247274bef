"""Linear layer and softmax cross-entropy as one autograd node whose logits never exist whole.

`fastmlp.autograd.tiling` says in which tiles they are made. A reduced loss forms what the sweep over rows
gives (dX, and in float32 dW) already in the forward, which has the logits at hand; the upstream gradient,
one number, comes in the backward. What is missing then, or was handed out by an earlier backward, or has
an upstream gradient for every row, the backward makes from the logits computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.autograd.cross_entropy import reference_loss
from fastmlp.autograd.node import Node, Once, held, left_to_torch, torch_grads
from fastmlp.autograd.tiling import Plan
from fastmlp.backends import products
from fastmlp.backends.base import Backend, LossOptions, Scale


@dataclass(frozen=True)
class LinearLoss:
    """What is computed: everything but the tensors that have gradients of their own."""

    backend: Backend
    plan: Plan
    options: LossOptions
    dtype: torch.dtype  # of the products
    loss_dtype: torch.dtype  # of the result


@dataclass
class Grads:
    """dX (N, K), dW (C, D, K) and db (C, D); None where not asked for, or not yet made."""

    input: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    def or_else(self, others: Grads) -> Grads:
        """These, and the others' where there is none."""
        return Grads(
            others.input if self.input is None else self.input,
            others.weight if self.weight is None else self.weight,
            others.bias if self.bias is None else self.bias,
        )

    def scale_(self, factor: Tensor) -> None:
        """Multiply all of them in place."""
        if factor.is_cpu and bool(factor == 1):
            return
        for grad in (self.input, self.weight, self.bias):
            if grad is not None:
                grad.mul_(factor.view(1))  # not a scalar, which would be rounded to 16 bits first


@dataclass(frozen=True)
class Work:
    """The tensors of one forward or backward, the operands in the products' dtype."""

    job: LinearLoss
    x: Tensor  # (N, K)
    weight: Tensor  # (C, D, K)
    bias: Tensor | None  # (C, D)
    target: Tensor  # (N, D), or (N, C, D)
    class_weight: Tensor | None  # (C,)

    @staticmethod
    def of(job: LinearLoss, x: Tensor, weight: Tensor, bias: Tensor | None, *target: Any) -> Work:
        """With ``x``, ``weight`` and ``bias`` cast as autocast casts them."""
        bias = None if bias is None else bias.to(job.dtype)
        return Work(job, x.to(job.dtype), weight.to(job.dtype), bias, *target)

    def losses(
        self, upstream: Tensor | None, grads: Grads, accumulated: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The rows' losses (N, D) and each tile's statistics; with ``upstream``, a scalar, gradients too."""
        losses, stats = [], []
        for rows, tile, logits in self._row_tiles():
            part = (logits, self.target[rows], self.class_weight, self.job.options, upstream)
            loss, stat = self.job.backend.loss_of_rows(*part)
            losses.append(loss)
            stats.append(stat)
            if upstream is not None:
                self._add(rows, tile, grads, accumulated)
        return (losses[0] if len(losses) == 1 else torch.cat(losses)), stats

    def sweep_rows(
        self, stats: list[Tensor], upstream: Tensor, grads: Grads, accumulated: Tensor | None
    ) -> None:
        """Gradients from logits computed again; ``upstream`` (N, D)."""
        c = len(self.weight)
        for i, (rows, tile, logits) in enumerate(self._row_tiles()):
            part = (self.target[rows], self.class_weight, stats[i], upstream[rows], self.job.options, c)
            self.job.backend.loss_gradient(logits, 0, *part)
            self._add(rows, tile, grads, accumulated)

    def sweep_classes(
        self, stats: list[Tensor], upstream: Tensor, grads: Grads, accumulated: Tensor | None
    ) -> None:
        """dW and db, a tile of classes at a time, each complete; ``upstream`` (N, D)."""
        (n, _), (c, d, k) = self.x.shape, self.weight.shape
        whole = stats[0] if len(stats) == 1 else torch.cat(stats, 1)
        size = self.job.plan.classes
        buffer = self.x.new_empty(n * size * d)
        for first in range(0, c, size):
            classes = slice(first, min(first + size, c))
            weight = self.weight[classes].reshape(-1, k)
            tile = buffer[: n * len(weight)].view(n, -1)
            bias = None if self.bias is None else self.bias[classes].reshape(-1)
            products.logits(self.x, weight, bias, tile)
            part = (self.target, self.class_weight, whole, upstream, self.job.options, c)
            self.job.backend.loss_gradient(tile.view(n, -1, d), first, *part)
            if grads.weight is not None:
                out = grads.weight[classes].view(-1, k)
                products.weight_gradient(tile, self.x, out, accumulate=False)
            if accumulated is not None:
                torch.sum(tile, 0, dtype=accumulated.dtype, out=accumulated[classes].view(-1))

    def _row_tiles(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, and their logits as (rows, C * D) and as (rows, C, D)."""
        (n, _), (c, d, k) = self.x.shape, self.weight.shape
        size = self.job.plan.rows
        weight, bias = self.weight.reshape(-1, k), None if self.bias is None else self.bias.reshape(-1)
        buffer = self.x.new_empty(size, c * d)
        for first in range(0, n, size):
            rows = slice(first, min(first + size, n))
            tile = buffer[: rows.stop - first]
            products.logits(self.x[rows], weight, bias, tile)
            yield rows, tile, tile.view(-1, c, d)

    def _add(self, rows: slice, dlogits: Tensor, grads: Grads, accumulated: Tensor | None) -> None:
        """What these rows give to the gradients."""
        k, more = self.x.shape[1], rows.start > 0
        if grads.input is not None:
            products.input_gradient(dlogits, self.weight.reshape(-1, k), grads.input[rows])
        if grads.weight is not None:
            products.weight_gradient(dlogits, self.x[rows], grads.weight.view(-1, k), accumulate=more)
        if accumulated is not None:
            total = dlogits.sum(0, dtype=accumulated.dtype).view_as(accumulated)
            if more:
                accumulated.add_(total)
            else:
                accumulated.copy_(total)


def denominator(
    target: Tensor, weight: Tensor | None, options: LossOptions, classes: int, wide: torch.dtype
) -> Tensor:
    """What a loss of reduction "mean" is divided by; a scalar."""
    if target.is_floating_point():
        return torch.full((), target.numel() // classes, dtype=wide, device=target.device)
    kept = target != options.ignore_index
    if weight is None:
        return kept.sum(dtype=wide)
    known = kept & (target >= 0) & (target < classes)  # an index that is no class must not be an address
    return torch.where(known, weight.to(wide)[torch.where(known, target, 0)], 0.0).sum()


def divided(work: Work) -> tuple[Work, Tensor]:
    """The work, and what its loss is divided by."""
    total = torch.ones((), dtype=_wide(work.job), device=work.x.device)
    target, weight, options = work.target, work.class_weight, work.job.options
    if options.reduction != "mean":
        return work, total
    total = denominator(target, weight, options, len(work.weight), total.dtype)
    if weight is None or target.is_floating_point():
        return work, total
    # Where the rows that count weigh nothing, torch's gradients of theirs are NaN, not those of ignored rows.
    weightless = (total == 0) & (target != options.ignore_index).any()
    return replace(work, class_weight=torch.where(weightless, torch.nan, weight)), total


def loss_and_grads(
    work: Work, total: Tensor, needs: Sequence[bool], params: tuple[Tensor, Tensor, Tensor | None]
) -> tuple[Tensor, Tensor, Grads, list[Tensor]]:
    """The loss, the share of a row in it, and what the sweep over rows gives: gradients, and statistics.

    Gradients of the parameters may be left to `missing_grads`; all are where not `forms_in_forward`.

    Args:
        work: the tensors.
        total: as `divided` gives them both.
        needs: whether x, weight and bias need gradients.
        params: x, weight and bias as they were given.
    """
    job, reduce = work.job, work.job.options.reduction != "none"
    share = Scale(torch.ones_like(total), total).value()
    losses, grads, stats = first_sweep(work, share, formed_in_forward(job, needs), params)
    return (losses.sum() / total if reduce else losses).to(job.loss_dtype), share, grads, stats


def first_sweep(
    work: Work, share: Tensor, formed: Sequence[bool], params: tuple[Tensor, Tensor, Tensor | None]
) -> tuple[Tensor, Grads, list[Tensor]]:
    """The rows' losses, the ``formed`` ones of their gradients by x, weight and bias, and statistics."""
    grads, accumulated = _empty_grads(*params, formed, share.dtype)
    losses, stats = work.losses(share if any(formed) else None, grads, accumulated)
    _finish_bias(grads, params[2], accumulated)
    return losses, grads, stats


def formed_in_forward(job: LinearLoss, needs: Sequence[bool]) -> tuple[bool, ...]:
    """Which of the needed gradients the sweep over rows makes beside the loss.

    It gives the parameters' too, or leaves them to the one over classes.
    """
    form, later = forms_in_forward(job), bool(job.plan.classes)
    return (form and needs[0], *(form and need and not later for need in needs[1:]))


def forms_in_forward(job: LinearLoss) -> bool:
    """Whether the forward makes gradients: of a reduced loss, which has one upstream gradient, a number.

    In float16 they must wait for the loss' scale: divided by the rows they vanish without it, and not divided
    their sums overflow, however far a GradScaler lowers its scale.
    """
    return job.options.reduction != "none" and job.dtype != torch.float16


def missing_grads(
    work: Work,
    stats: list[Tensor],
    each: Tensor,
    missing: Sequence[bool],
    params: tuple[Tensor, Tensor, Tensor | None],
) -> Grads:
    """Those gradients, from logits computed again; ``each`` (N, D) is the gradient of every row's loss."""
    job = work.job
    grads, accumulated = _empty_grads(*params, missing, _wide(job))
    later = bool(job.plan.classes)
    if missing[0] or not later:
        first = Grads(grads.input) if later else grads
        work.sweep_rows(stats, each, first, None if later else accumulated)
    if later and any(missing[1:]):
        work.sweep_classes(stats, each, replace(grads, input=None), accumulated)
    _finish_bias(grads, params[2], accumulated)
    return grads


class LinearCrossEntropy(Node):
    """x (N, K), weight (C, D, K), bias (C, D), target (N, D) or (N, C, D) to a loss: (N, D), or a scalar."""

    @staticmethod
    def forward(
        ctx: Any,
        job: LinearLoss,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        class_weight: Tensor | None,
    ) -> Tensor:
        """Keeps three floats a row, and the gradients that the logits at hand give."""
        work, total = divided(Work.of(job, x, weight, bias, target, class_weight))
        needs = ctx.needs_input_grad[1:4]
        loss, share, grads, stats = loss_and_grads(work, total, needs, (x, weight, bias))
        ctx.job, ctx.first = job, Once(grads)
        # The class weights as they were given too, so that torch says if they were written to.
        constants = held(target), held(class_weight), held(work.class_weight)
        ctx.save_for_backward(x, weight, bias, *constants, share, *(stats if any(needs) else ()))
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients times the upstream one; else, and for every row its own, they are made here."""
        x, weight, bias, target, _, class_weight, share, *stats = ctx.saved_tensors
        job, needs = ctx.job, ctx.needs_input_grad[1:4]
        if left_to_torch(upstream):

            def again(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
                return reference(job, x, weight, bias, target, class_weight)

            return None, *torch_grads(again, (x, weight, bias), needs, upstream), None, None
        params, reduce = (x, weight, bias), job.options.reduction != "none"
        done, formed = ctx.first.take(), formed_in_forward(job, needs)
        if done is None and any(formed):  # handed out: made again as the forward made them, to the last bit
            work = Work.of(job, *params, target, class_weight)
            done = first_sweep(work, share, formed, params)[1]
        done = Grads() if done is None else done
        if reduce:
            done.scale_(upstream.to(share.dtype))
        missing = [need and grad is None for need, grad in zip(needs, (done.input, done.weight, done.bias))]
        if any(missing):
            work = Work.of(job, *params, target, class_weight)
            wide = upstream.to(share.dtype)
            each = (wide * share).expand(len(x), weight.shape[1]) if reduce else wide
            done = done.or_else(missing_grads(work, stats, each, missing, params))
        return None, done.input, done.weight, done.bias, None, None


def reference(
    job: LinearLoss,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
) -> Tensor:
    """The same by torch's own differentiable ops."""
    c, d, _ = weight.shape
    flat = None if bias is None else bias.to(job.dtype).reshape(-1)
    logits = F.linear(x.to(job.dtype), weight.to(job.dtype).flatten(0, 1), flat).view(-1, c, d)
    logits = logits.to(job.loss_dtype)
    class_weight = None if class_weight is None else class_weight.to(logits.dtype)
    if target.is_floating_point():
        target = target.to(logits.dtype)
    if d > 1:
        return reference_loss(logits, target, class_weight, job.options)
    loss = reference_loss(logits.squeeze(2), target.squeeze(-1), class_weight, job.options)
    return loss.unsqueeze(1) if job.options.reduction == "none" else loss


def _wide(job: LinearLoss) -> torch.dtype:
    return torch.promote_types(job.dtype, torch.float32)


def _empty_grads(
    x: Tensor, weight: Tensor, bias: Tensor | None, needs: Any, wide: torch.dtype
) -> tuple[Grads, Tensor | None]:
    """Memory for the gradients that are needed; and a wide one for the bias', which is summed over rows."""

    def like(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

    accumulated = None
    if needs[2] and bias is not None:
        accumulated = torch.empty(bias.shape, dtype=wide, device=bias.device)
    return Grads(like(x) if needs[0] else None, like(weight) if needs[1] else None), accumulated


def _finish_bias(grads: Grads, bias: Tensor | None, accumulated: Tensor | None) -> None:
    if bias is not None and accumulated is not None:
        grads.bias = accumulated.to(bias.dtype)
