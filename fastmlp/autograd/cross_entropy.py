"""Softmax cross-entropy as one autograd node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import NONE, Act
from fastmlp.autograd.chain import (
    FIRST_PARAM,
    PER_LAYER,
    Drops,
    Numbers,
    backward_chain,
    forward_chain,
    reference_chain,
    unpack,
)
from fastmlp.autograd.node import Node, left_to_torch, torch_grads
from fastmlp.backends.base import Backend, LossOptions, Scale


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
        ctx.backend, ctx.options, ctx.inplace = backend, options, inplace and logits.is_contiguous()
        ctx.save_for_backward(logits, target, weight, stats, denominator)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """One pass over the logits; with ``inplace`` the gradient takes their memory."""
        logits, target, weight, stats, denominator = ctx.saved_tensors
        if left_to_torch(grad):
            dx = torch_gradient(grad, logits, target, weight, ctx.options)
        else:
            dx = logits.detach() if ctx.inplace else torch.empty_like(logits)
            ctx.backend.cross_entropy_backward(
                grad, logits, target, weight, stats, denominator, dx, ctx.options
            )
            if ctx.inplace:  # a second backward must fail rather than read gradients as logits
                torch.autograd.graph.increment_version(logits)
        return None, None, None, dx, None, None


class ChainCrossEntropy(Node):
    """A whole classifier: X (M, K) through a chain of layers to the loss, and the logits if asked.

    The gradients leave the head as those of the sum of the rows' losses; the upstream
    gradient over the loss' denominator is multiplied in where parameters' gradients are written.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        dtype: torch.dtype,
        loss_dtype: torch.dtype,
        options: LossOptions,
        keep_logits: bool,
        acts: Sequence[Act],
        drops: Drops,
        target: Tensor,
        class_weight: Tensor | None,
        numbers: Numbers,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """``acts`` to ``tensors`` as in `Chain`; the last layer has no activation and no dropout.

        A quantized input needs a hidden layer: the head reads none.
        """
        source, params = tensors[:FIRST_PARAM], tensors[FIRST_PARAM:]
        needs = [ctx.needs_input_grad[10], *ctx.needs_input_grad[10 + FIRST_PARAM :]]
        stem = params[:-PER_LAYER]
        h, inputs, saved = forward_chain(
            backend, unpack(source, numbers), stem, acts[:-1], dtype, any(needs), drops
        )
        weight, bias, _ = params[-PER_LAYER:]
        assert weight is not None
        # The head draws no masks: a dropout before it is undone where the layer below reads its gradient.
        fold = len(acts) > 1 and drops.of(len(acts) - 2) is None and drops.folds(acts, len(acts) - 2)
        result = backend.head(
            h,
            weight,
            bias,
            target,
            class_weight,
            options,
            previous_act=acts[-2] if fold else NONE,
            previous_saved=saved[-1] if fold else None,
            keep_logits=keep_logits,
            need_grad=any(needs),
            need_input=any(needs[:-PER_LAYER]),
            dtype=dtype,
            loss_dtype=loss_dtype,
        )
        ctx.backend, ctx.dtype, ctx.options, ctx.acts, ctx.fold = backend, dtype, options, acts, fold
        ctx.probabilities, ctx.numbers = drops.probabilities, numbers
        if any(needs):
            denominator = result.denominator
            if class_weight is not None and options.reduction == "mean":
                # A sum of class weights that is 0 though some rows count: torch's gradients then are NaN.
                # Where no row counts they are 0, and so `Scale` has it.
                counts = (target != options.ignore_index).any()
                denominator = torch.where((denominator == 0) & counts, torch.nan, denominator)
            kept = (drops.seed, target, class_weight, denominator, result.dlogits, result.dz)
            hidden = [*inputs, h][1:]
            ctx.save_for_backward(*kept, *source, *hidden, *saved, *params)
        if result.logits is not None:
            ctx.mark_non_differentiable(result.logits)
        return result.loss, result.logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """The parameters' gradients; dlogits and the last hidden dZ are there already."""
        seed, target, class_weight, denominator, dlogits, dz, *rest = ctx.saved_tensors
        drops = Drops(ctx.probabilities, seed)
        depth = len(ctx.acts)
        source, rest = rest[:FIRST_PARAM], rest[FIRST_PARAM:]
        inputs = [unpack(source, ctx.numbers), *rest[: depth - 1]]
        saved, params = rest[depth - 1 : 2 * depth - 2], rest[2 * depth - 2 :]
        needs = [ctx.needs_input_grad[10], *ctx.needs_input_grad[10 + FIRST_PARAM :]]
        if left_to_torch(grad):

            def again(x: Tensor, *params: Tensor | None) -> Tensor:
                entry = unpack([x, *source[1:]], ctx.numbers)
                logits = reference_chain(ctx.backend, entry, params, ctx.acts, ctx.dtype, drops)
                wide = torch.promote_types(ctx.dtype, torch.float32)
                weight = None if class_weight is None else class_weight.to(wide)
                return reference_loss(logits.to(wide), target, weight, ctx.options)

            grads = torch_grads(again, (source[0], *params), needs, grad)
        else:
            scale = Scale(grad, denominator)
            weight, bias, _slope = params[-PER_LAYER:]
            grads = [None] * PER_LAYER
            if any(needs[-PER_LAYER:]):
                last = ctx.backend.linear_backward(
                    dlogits,
                    inputs[-1],
                    weight,
                    scale=scale,
                    need_input=False,
                    bias_dtype=None if bias is None else bias.dtype,
                    dtype=ctx.dtype,
                )
                grads = [last.weight, last.bias, None]
            if depth == 1:
                dx = None if dz is None else (dz * scale.value()).to(inputs[0].dtype)
                grads = [dx, *grads]
            elif dz is not None:
                stem = backward_chain(
                    ctx.backend,
                    dz,
                    inputs[:-1],
                    params[:-PER_LAYER],
                    saved,
                    ctx.acts[:-1],
                    needs[:-PER_LAYER],
                    ctx.dtype,
                    drops,
                    scale=scale,
                    masked=ctx.fold,
                )
                grads = [*stem, *grads]
            else:
                grads = [*([None] * (len(needs) - PER_LAYER)), *grads]
            grads = [g if need else None for g, need in zip(grads, needs)]
        return *[None] * 10, grads[0], None, None, None, *grads[1:]
