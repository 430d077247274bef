"""Linear layer and softmax cross-entropy as one autograd node whose logits never exist whole.

`fastmlp.autograd.tile_sizes` says in which tiles they are made. A reduced loss forms what the sweep over rows
gives (dX, and in float32 dW) already in the forward, which has the logits at hand; the upstream gradient,
one number, comes in the backward. What is missing then, or was handed out by an earlier backward, or has
an upstream gradient for every row, the backward makes from the logits computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.autograd.cross_entropy import reference_loss
from fastmlp.autograd.node import Node, Once, held, left_to_torch, torch_grads
from fastmlp.autograd.tile_sizes import TileSizes, tile_sizes
from fastmlp.backends import logit_tiles
from fastmlp.backends.base import Backend, Criterion, LossOptions, Scale

UNTILED = TileSizes(0, 0)
#: x (N, K), weight (C, D, K) and bias (C, D), which have gradients.
Params = tuple[Tensor, Tensor, Tensor | None]


class LinearLoss(NamedTuple):
    """What is computed: everything but the tensors."""

    backend: Backend
    options: LossOptions
    dtype: torch.dtype  # of the products
    loss_dtype: torch.dtype  # of the result
    tiles: TileSizes = UNTILED

    def tiled(
        self, x: Tensor, weight: Tensor, target: Tensor, need_params: bool, workspace: int | None
    ) -> LinearLoss:
        """In the tiles that these tensors' sizes ask for: see `tile_sizes`."""
        dense = target.is_floating_point() or self.options.label_smoothing > 0
        tiles = tile_sizes(
            x,
            weight,
            self.dtype,
            self.loss_dtype,
            scratch=self.backend.loss_scratch(self.dtype, dense),
            need_params=need_params,
            workspace=workspace,
        )
        return self._replace(tiles=tiles)

    @property
    def wide(self) -> torch.dtype:
        """What is summed in."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def is_reduced(self) -> bool:
        """Whether the loss is one number, and with it the upstream gradient."""
        return self.options.reduction != "none"

    @property
    def forms_in_forward(self) -> bool:
        """Whether the forward makes gradients: those of a reduced loss.

        In float16 they must wait for the loss' scale: divided by the rows they vanish without it, and not
        divided their sums overflow, however far a GradScaler lowers its scale.
        """
        return self.is_reduced and self.dtype != torch.float16

    def formed_in_forward(self, needs: Sequence[bool]) -> list[bool]:
        """Which of the needed gradients the sweep over rows makes beside the loss.

        It gives the parameters' too, or leaves them to the one over classes.
        """
        if not self.forms_in_forward:
            return [False] * len(needs)
        later = bool(self.tiles.classes)
        return [needs[0], *[need and not later for need in needs[1:]]]


class Grads(NamedTuple):
    """dX (N, K), dW (C, D, K) and db (C, D); None where not asked for, or not yet made."""

    input: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None  # wide while it is summed over rows

    def or_else(self, others: Grads) -> Grads:
        """These, and the others' where there is none."""
        return Grads(*(other if grad is None else grad for grad, other in zip(self, others)))

    def missing(self, needs: Sequence[bool]) -> list[bool]:
        """Which are needed and not there."""
        return [need and grad is None for need, grad in zip(needs, self)]

    def scale_(self, factor: Tensor) -> None:
        """Multiply all of them in place."""
        if factor.is_cpu and bool(factor == 1):
            return
        for grad in self:
            if grad is not None:
                grad.mul_(factor.view(1))  # not a scalar, which would be rounded to 16 bits first


class Work(NamedTuple):
    """The tensors of one forward or backward."""

    job: LinearLoss
    params: Params  # as they were given
    x: Tensor  # this and the next two in the products' dtype
    weight: Tensor
    bias: Tensor | None
    criterion: Criterion

    @staticmethod
    def of(job: LinearLoss, params: Params, target: Tensor, class_weight: Tensor | None) -> Work:
        """With ``params`` cast as autocast casts them."""
        x, weight, bias = params
        bias = None if bias is None else bias.to(job.dtype)
        criterion = Criterion(target, class_weight, job.options)
        return Work(job, params, x.to(job.dtype), weight.to(job.dtype), bias, criterion)

    def divided(self) -> tuple[Work, Tensor]:
        """The work, and what a loss of reduction "mean" is divided by, 1 for others; a scalar."""
        target, weight, options = self.criterion
        wide, device, classes = self.job.wide, self.x.device, len(self.weight)
        if options.reduction != "mean":
            return self, torch.ones((), dtype=wide, device=device)
        if target.is_floating_point():
            return self, torch.full((), target.numel() // classes, dtype=wide, device=device)
        kept = target != options.ignore_index
        if weight is None:
            return self, kept.sum(dtype=wide)
        known = kept & (target >= 0) & (target < classes)  # an index that is no class must be no address
        total = torch.where(known, weight.to(wide)[torch.where(known, target, 0)], 0.0).sum()
        # Where the rows that count weigh nothing, torch's gradients of theirs are NaN, not those of ignored
        # rows.
        weight = torch.where((total == 0) & kept.any(), torch.nan, weight)
        return self._replace(criterion=self.criterion._replace(weight=weight)), total

    def loss_and_grads(
        self, total: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor, Tensor, Grads, list[Tensor]]:
        """The loss, the share of a row in it, and what the sweep over rows gives: gradients, and statistics.

        Gradients may be left to `missing_grads`; all are where the job does not form them in the forward.

        Args:
            total: as `divided` gives it.
            needs: whether x, weight and bias need gradients.
        """
        share = Scale(torch.ones_like(total), total).value()
        losses, grads, stats = self.first_sweep(share, self.job.formed_in_forward(needs))
        loss = losses.sum() / total if self.job.is_reduced else losses
        return loss.to(self.job.loss_dtype), share, grads, stats

    def first_sweep(self, share: Tensor, formed: Sequence[bool]) -> tuple[Tensor, Grads, list[Tensor]]:
        """The rows' losses, the ``formed`` ones of their gradients by x, weight and bias, and statistics."""
        grads = self._empty_grads(formed)
        losses, stats = self.losses(share if any(formed) else None, grads)
        return losses, self._finished(grads), stats

    def missing_grads(self, stats: list[Tensor], upstream: Tensor, missing: Sequence[bool]) -> Grads:
        """Those gradients, from logits computed again; ``upstream``: of each row's loss (N, D), or of all."""
        each = upstream.expand(len(self.x), self.weight.shape[1])
        grads, later = self._empty_grads(missing), bool(self.job.tiles.classes)
        if missing[0] or not later:
            self._sweep_rows(stats, each, Grads(grads.input) if later else grads)
        if later and any(missing[1:]):
            self._sweep_classes(stats, each, grads)
        return self._finished(grads)

    def losses(self, upstream: Tensor | None, grads: Grads) -> tuple[Tensor, list[Tensor]]:
        """The rows' losses (N, D) and each tile's statistics; with ``upstream``, a scalar, gradients too."""
        losses, stats = [], []
        for rows, tile, logits in self._row_tiles():
            loss, stat = self.job.backend.loss_of_rows(logits, self.criterion.of_rows(rows), upstream)
            losses.append(loss)
            stats.append(stat)
            if upstream is not None:
                self._add(rows, tile, grads)
        return (losses[0] if len(losses) == 1 else torch.cat(losses)), stats

    def _sweep_rows(self, stats: list[Tensor], upstream: Tensor, grads: Grads) -> None:
        """Gradients from logits computed again; ``upstream`` (N, D)."""
        for stat, (rows, tile, logits) in zip(stats, self._row_tiles()):
            criterion = self.criterion.of_rows(rows)
            self.job.backend.loss_gradient(logits, 0, len(self.weight), criterion, stat, upstream[rows])
            self._add(rows, tile, grads)

    def _sweep_classes(self, stats: list[Tensor], upstream: Tensor, grads: Grads) -> None:
        """dW and db, a tile of classes at a time, each complete; ``upstream`` (N, D)."""
        (n, _), (c, d, k) = self.x.shape, self.weight.shape
        whole = stats[0] if len(stats) == 1 else torch.cat(stats, 1)
        size = self.job.tiles.classes
        buffer = self.x.new_empty(n * size * d)
        for first in range(0, c, size):
            classes = slice(first, min(first + size, c))
            weight = self.weight[classes].reshape(-1, k)
            tile = buffer[: n * len(weight)].view(n, -1)
            bias = None if self.bias is None else self.bias[classes].reshape(-1)
            logit_tiles.linear(self.x, weight, bias, tile)
            self.job.backend.loss_gradient(tile.view(n, -1, d), first, c, self.criterion, whole, upstream)
            if grads.weight is not None:
                out = grads.weight[classes].view(-1, k)
                logit_tiles.weight_gradient(tile, self.x, out, accumulate=False)
            if grads.bias is not None:
                torch.sum(tile, 0, dtype=grads.bias.dtype, out=grads.bias[classes].view(-1))

    def _row_tiles(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, and their logits as (rows, C * D) and as (rows, C, D)."""
        (n, _), (c, d, k) = self.x.shape, self.weight.shape
        size = self.job.tiles.rows
        weight, bias = self.weight.reshape(-1, k), None if self.bias is None else self.bias.reshape(-1)
        buffer = self.x.new_empty(size, c * d)
        for first in range(0, n, size):
            rows = slice(first, min(first + size, n))
            tile = buffer[: rows.stop - first]
            logit_tiles.linear(self.x[rows], weight, bias, tile)
            yield rows, tile, tile.view(-1, c, d)

    def _add(self, rows: slice, dlogits: Tensor, grads: Grads) -> None:
        """What these rows give to the gradients."""
        k, more = self.x.shape[1], rows.start > 0
        if grads.input is not None:
            logit_tiles.input_gradient(dlogits, self.weight.reshape(-1, k), grads.input[rows])
        if grads.weight is not None:
            logit_tiles.weight_gradient(dlogits, self.x[rows], grads.weight.view(-1, k), accumulate=more)
        if grads.bias is not None:
            total = dlogits.sum(0, dtype=grads.bias.dtype).view_as(grads.bias)
            if more:
                grads.bias.add_(total)
            else:
                grads.bias.copy_(total)

    def _empty_grads(self, needs: Sequence[bool]) -> Grads:
        """Memory for the gradients that are needed."""
        dtypes = (self.params[0].dtype, self.params[1].dtype, self.job.wide)
        grads = [
            torch.empty(p.shape, dtype=dtype, device=p.device) if need and p is not None else None
            for p, dtype, need in zip(self.params, dtypes, needs)
        ]
        return Grads(*grads)

    def _finished(self, grads: Grads) -> Grads:
        """The bias' in its own dtype."""
        bias = self.params[2]
        return grads if bias is None or grads.bias is None else grads._replace(bias=grads.bias.to(bias.dtype))


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
        work, total = Work.of(job, (x, weight, bias), target, class_weight).divided()
        needs = ctx.needs_input_grad[1:4]
        loss, share, grads, stats = work.loss_and_grads(total, needs)
        ctx.job, ctx.first = job, Once(grads)
        # The class weights as they were given too, so that torch says if they were written to.
        constants = held(target), held(class_weight), held(work.criterion.weight)
        ctx.save_for_backward(x, weight, bias, *constants, share, *(stats if any(needs) else ()))
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradients times the upstream one; else, and for every row its own, they are made here."""
        x, weight, bias, target, _, class_weight, share, *stats = ctx.saved_tensors
        job, needs, params = ctx.job, ctx.needs_input_grad[1:4], (x, weight, bias)
        if left_to_torch(upstream):
            return None, *torch_gradients(job, needs, upstream, params, target, class_weight), None, None
        done, formed = ctx.first.take(), job.formed_in_forward(needs)
        if done is None and any(formed):  # handed out: made again as the forward made them, to the last bit
            done = Work.of(job, params, target, class_weight).first_sweep(share, formed)[1]
        done, wide = done or Grads(), upstream.to(share.dtype)
        if job.is_reduced:
            done.scale_(wide)
        missing = done.missing(needs)
        if any(missing):
            work = Work.of(job, params, target, class_weight)
            each = wide * share if job.is_reduced else wide
            done = done.or_else(work.missing_grads(stats, each, missing))
        return None, *done, None, None


def torch_gradients(
    job: LinearLoss,
    needs: Sequence[bool],
    upstream: Tensor,
    params: Params,
    target: Tensor,
    class_weight: Tensor | None,
) -> list[Tensor | None]:
    """Of ``params``, by torch's own differentiable ops."""
    if class_weight is not None:
        class_weight = class_weight.to(job.loss_dtype)
    if target.is_floating_point():
        target = target.to(job.loss_dtype)

    def again(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        c, d, _ = weight.shape
        flat = None if bias is None else bias.to(job.dtype).reshape(-1)
        logits = F.linear(x.to(job.dtype), weight.to(job.dtype).flatten(0, 1), flat).view(-1, c, d)
        logits = logits.to(job.loss_dtype)
        if d > 1:
            return reference_loss(logits, target, class_weight, job.options)
        loss = reference_loss(logits.squeeze(2), target.squeeze(-1), class_weight, job.options)
        return loss.unsqueeze(1) if job.options.reduction == "none" else loss

    return torch_grads(again, params, needs, upstream)
