"""Softmax cross-entropy as one autograd node."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.autograd.node import Node, Once, held, left_to_torch, torch_grads
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


class CrossEntropy(Node):
    """logits (N, C, D) and a target to a loss: (N, D), or a scalar."""

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        options: LossOptions,
        inplace: bool,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
    ) -> Tensor:
        """Keeps the logits and three numbers a row; no softmax."""
        loss, stats, denominator = backend.cross_entropy(logits, target, weight, options)
        # Where elements may share memory (expanded logits) the gradient must not.
        ctx.backend, ctx.options = backend, options
        ctx.room = Once(True) if inplace and logits.is_contiguous() else None
        ctx.save_for_backward(logits, held(target), held(weight), stats, denominator)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """One pass over the logits; with ``inplace`` the gradient takes their memory."""
        logits, target, weight, stats, denominator = ctx.saved_tensors
        if left_to_torch(grad):
            dx = torch_gradient(grad, logits, target, weight, ctx.options)
        else:
            inplace = ctx.room is not None
            if inplace and not ctx.room.take():  # another thread's backward is at it: no version tells yet
                raise RuntimeError("inplace: the logits were modified by an inplace operation, a backward's")
            dx = logits.detach() if inplace else torch.empty_like(logits)
            ctx.backend.cross_entropy_backward(
                grad, logits, target, weight, stats, denominator, dx, ctx.options
            )
            if inplace:  # a second backward must fail rather than read gradients as logits
                torch.autograd.graph.increment_version(logits)
        return None, None, None, dx, None, None
