"""Softmax cross-entropy as one autograd node: by the kernels, or by the chunked passes of a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.autograd.node import (
    Node,
    Once,
    Route,
    Unchanged,
    held,
    left_to_torch,
    saves_as_given,
    torch_grads,
)
from fastmlp.backends.base import Backend, Criterion, LossOptions
from fastmlp.backends.torch_backend import TorchBackend


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


def torch_gradient(
    options: LossOptions, grad: Tensor, logits: Tensor, target: Tensor, weight: Tensor | None
) -> Tensor | None:
    """The logits' gradient by torch's own ops."""
    shape = logits.shape
    logits, target = as_kernels(logits, target)
    target = target[:, 0] if logits.shape[2] == 1 and target.dim() == 2 else target

    def again(logits: Tensor) -> Tensor:
        return reference_loss(logits.squeeze(2) if target.dim() == 1 else logits, target, weight, options)

    found = torch_grads(again, (logits,), (True,), grad)[0]
    return None if found is None else found.view(shape)


def loss_forward(
    decided: Decided, logits: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss, (N, D) or a scalar; and for the backward three numbers a row and one; no softmax."""
    logits, target = as_kernels(logits, target)
    return decided.backend.cross_entropy(logits, Criterion(target, weight, decided.options))


def loss_backward(decided: Decided, _: Sequence[bool], grad: Tensor, *saved: Any) -> Tensor:
    """One pass over the logits; ``saved`` are the forward's arguments, and what it left."""
    logits, target, weight, stats, denominator = saved
    dx = logits.detach() if decided.inplace else torch.empty_like(logits)
    logits, target = as_kernels(logits, target)
    criterion, out = Criterion(target, weight, decided.options), dx if dx.dim() == 3 else dx.unsqueeze(2)
    decided.backend.cross_entropy_backward(grad, logits, criterion, stats, denominator, out)
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
            return None, torch_gradient(route.decided.options, grad, *saved[:3]), None, None
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


class CpuCrossEntropy(Node):
    """logits (B, C) and class indices (B,) to a scalar, or to (B,) for reduction "none", on a CPU.

    The forward already writes the gradient. ATen keeps the log-softmax, fills a gradient of it with zeros and
    writes the logits' gradient: three buffers of the logits' size, each of fresh memory. Here the softmax
    becomes the gradient in the one buffer that the first backward hands out; a later one computes it again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: TorchBackend,
        options: LossOptions,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        """Keeps the gradient for an upstream of 1."""
        loss, grad = backend.cross_entropy_with_grad(logits, target, weight, options)
        ctx.first, ctx.constants = Once(grad), Unchanged(target=target, weight=weight)
        ctx.backend, ctx.options = backend, options
        # For a second or a double backward; the first does not look at them, and like torch's does not
        # mind logits that were written over.
        ctx.save_for_backward(logits, held(target), held(weight))
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradient, times the upstream one."""
        if left_to_torch(upstream):
            logits, target, weight = ctx.saved_tensors

            def again(logits: Tensor) -> Tensor:
                return reference_loss(logits, target, weight, ctx.options)

            (grad,) = torch_grads(again, (logits,), (True,), upstream)
            return None, None, grad, None, None
        ctx.constants.check()
        grad = ctx.first.take()
        if grad is None:
            grad = ctx.backend.cross_entropy_with_grad(*ctx.saved_tensors, ctx.options)[1]
        factor = upstream.unsqueeze(-1) if ctx.options.reduction == "none" else upstream
        is_one = bool((upstream == 1).all())
        return None, None, grad if is_one else grad.mul_(factor), None, None
