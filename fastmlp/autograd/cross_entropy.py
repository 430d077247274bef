"""Softmax cross-entropy as one autograd node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.autograd.node import Node, Once, Route, held, saves_as_given, torch_grads
from fastmlp.backends.base import Backend, LossOptions


def reference_loss(logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions) -> Tensor:
    """The same loss by torch's own differentiable ops. logits (N, C, ...), any C of them."""
    dtype = logits.dtype
    if options.z_loss:  # lse² passes float16's largest number, and the sum is to be rounded once
        wide = torch.promote_types(dtype, torch.float32)
        logits, weight = logits.to(wide), None if weight is None else weight.to(wide)
        target = target.to(wide) if target.is_floating_point() else target
    loss = F.cross_entropy(
        logits,
        target,
        weight,
        ignore_index=options.ignore_index,
        reduction=options.reduction,
        label_smoothing=options.label_smoothing,
    )
    if options.z_loss == 0:
        return loss
    classes = 0 if logits.dim() == 1 else 1
    extra = options.z_loss * logits.logsumexp(classes).square()
    if target.is_floating_point():
        count = torch.tensor(extra.numel(), device=extra.device)
    else:
        kept = target != options.ignore_index
        extra = torch.where(kept, extra, 0.0)
        # A uint8 index would be taken for a mask.
        per_row = kept if weight is None else weight[torch.where(kept, target, 0).long()] * kept
        count = per_row.sum()
    if options.reduction != "none":
        extra = extra.sum() / count if options.reduction == "mean" else extra.sum()
    return (loss + extra).to(dtype)


def torch_gradient(
    grad: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions
) -> Tensor | None:
    """The logits' gradient (N, C, D), of `CrossEntropy`'s arguments, by torch's own ops."""
    target = target[:, 0] if logits.shape[2] == 1 and target.dim() == 2 else target

    def again(logits: Tensor) -> Tensor:
        return reference_loss(logits.squeeze(2) if target.dim() == 1 else logits, target, weight, options)

    return torch_grads(again, (logits,), (True,), grad)[0]


class Decided(NamedTuple):
    """All of a cross-entropy but its tensors."""

    backend: Backend
    options: LossOptions
    inplace: bool  # the gradient takes the logits' memory


def as_kernels(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (N, C) or (N, C, D) as (N, C, D); class indices as (N, D), or probabilities as (N, C, D)."""
    if logits.dim() == 3:
        return logits, target
    return logits.unsqueeze(2), target.unsqueeze(2 if target.is_floating_point() else 1)


def loss_forward(
    decided: Decided, logits: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss, (N, D) or a scalar; and for the backward three numbers a row and one; no softmax."""
    return decided.backend.cross_entropy(*as_kernels(logits, target), weight, decided.options)


def loss_backward(decided: Decided, _: Sequence[bool], grad: Tensor, *saved: Tensor) -> Tensor:
    """One pass over the logits; ``saved`` are the forward's arguments, and what it left."""
    logits, target, weight, stats, denominator = saved
    dx = logits.detach() if decided.inplace else torch.empty_like(logits)
    wide, target = as_kernels(logits, target)
    out = dx if dx.dim() == 3 else dx.unsqueeze(2)
    decided.backend.cross_entropy_backward(
        grad, wide, target, weight, stats, denominator, out, decided.options
    )
    return dx


class CrossEntropy(Node):
    """logits (N, C) or (N, C, D) and a target to a loss: (N, D), or a scalar."""

    @staticmethod
    def forward(
        ctx: Any, route: Route[Decided], logits: Tensor, target: Tensor, weight: Tensor | None
    ) -> Tensor:
        """Keeps the logits and what `loss_forward` leaves."""
        loss, stats, denominator = route.forward(None, (logits, target, weight))
        ctx.route, ctx.saved_as_given = route, saves_as_given()
        ctx.room = Once(True) if route.decided.inplace else None
        ctx.save_for_backward(logits, held(target), held(weight), stats, denominator)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """One pass over the logits; with ``inplace`` the gradient takes their memory."""
        route, saved = ctx.route, ctx.saved_tensors
        upstream = route.of(grad)
        if upstream is None:
            logits, target, weight, *_ = saved
            dx = torch_gradient(grad, *as_kernels(logits, target), weight, route.decided.options)
            return None, None if dx is None else dx.view_as(logits), None, None
        if ctx.room is not None and not ctx.room.take():
            # Another thread's backward is at it: no version tells yet.
            raise RuntimeError("inplace: the logits were modified by an inplace operation, a backward's")
        dx = route.backward(ctx, upstream, grad, saved)
        if ctx.room is not None:  # a second backward must fail rather than read gradients as logits
            torch.autograd.graph.increment_version(saved[0])
        return None, dx, None, None


def loss_route(decided: Decided, patience: int) -> Route[Decided]:
    """How a cross-entropy goes."""
    return Route(decided, decided.backend, loss_forward, loss_backward, patience)
