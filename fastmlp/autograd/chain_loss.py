"""A chain of layers and the loss that closes it, as one autograd node: the head computes the two together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp.activations import NONE, Act
from fastmlp.autograd import mse
from fastmlp.autograd.chain import (
    FIRST_PARAM,
    PER_LAYER,
    Drops,
    Numbers,
    Saved,
    backward_chain,
    first_needed,
    forward_chain,
    params_read,
    reference_grads,
    unpack,
)
from fastmlp.autograd.cross_entropy import reference_loss
from fastmlp.autograd.node import Node, held, left_to_torch
from fastmlp.autograd.saved import Owners, aliases
from fastmlp.backends.base import Backend, Loss, LossOptions, Scale, SquaredError, Wanted


def reference(logits: Tensor, target: Tensor, weight: Tensor | None, options: Loss) -> Tensor:
    """The same loss by torch's own differentiable ops."""
    if isinstance(options, SquaredError):
        return mse.reference(logits, target, weight, options)
    return reference_loss(logits, target, weight, options)


class ChainLoss(Node):
    """A whole net: X (M, K) through a chain of layers to its loss, and the logits if asked.

    The gradients leave the head as those of the sum of the rows' losses; the upstream
    gradient over the loss' denominator is multiplied in where parameters' gradients are written.
    """

    @staticmethod
    def forward(
        ctx: Any,
        backend: Backend,
        dtype: torch.dtype,
        loss_dtype: torch.dtype,
        options: Loss,
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
        source, params = list(tensors[:FIRST_PARAM]), tensors[FIRST_PARAM:]
        needs = [ctx.needs_input_grad[10], *ctx.needs_input_grad[10 + FIRST_PARAM :]]
        stem, first = params[:-PER_LAYER], first_needed(needs)
        h, inputs, outputs = forward_chain(
            backend, unpack(source, numbers), stem, acts[:-1], dtype, first, drops
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
            previous_saved=outputs[-1] if fold else None,
            wanted=Wanted(keep_logits, first is not None, any(needs[:-PER_LAYER])),
            dtype=dtype,
            loss_dtype=loss_dtype,
        )
        if first is not None:
            ctx.backend, ctx.dtype, ctx.options, ctx.acts, ctx.fold = backend, dtype, options, acts, fold
            ctx.probabilities, ctx.numbers = drops.probabilities, numbers
            ctx.first, ctx.owners = first, Owners(params)
            denominator = result.denominator
            if isinstance(options, LossOptions) and class_weight is not None and options.reduction == "mean":
                # A sum of class weights that is 0 though some rows count: torch's gradients then are NaN.
                # Where no row counts they are 0, and so `Scale` has it.
                counts = (target != options.ignore_index).any()
                denominator = torch.where((denominator == 0) & counts, torch.nan, denominator)
            kept = (drops.seed, held(target), held(class_weight), denominator, result.dlogits, result.dz)
            read = [*params_read(needs[:-PER_LAYER]), False, False, False]  # dz is there
            saved = Saved(source, [*inputs, h], [*outputs, None], aliases(params, read))
            ctx.save_for_backward(*kept, *saved.tensors(first))
        if result.logits is not None:
            ctx.mark_non_differentiable(result.logits)
        return result.loss, result.logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """The parameters' gradients; dlogits and the last hidden dZ are there already."""
        seed, target, class_weight, denominator, dlogits, dz, *rest = ctx.saved_tensors
        depth, drops = len(ctx.acts), Drops(ctx.probabilities, seed)
        saved = Saved.of(rest, depth, ctx.numbers)
        inputs, params = saved.inputs, saved.params
        needs = [ctx.needs_input_grad[10], *ctx.needs_input_grad[10 + FIRST_PARAM :]]
        if left_to_torch(grad):

            def loss(logits: Tensor) -> Tensor:
                wide = torch.promote_types(ctx.dtype, torch.float32)
                weight = None if class_weight is None else class_weight.to(wide)
                return reference(logits.to(wide), target, weight, ctx.options)

            grads = reference_grads(ctx, grad, saved, needs, drops, loss)
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
                dx = None if dz is None else (dz * scale.value()).to(inputs[0].dtype)  # type: ignore[union-attr]
                grads = [dx, *grads]
            elif dz is not None:
                stem = backward_chain(
                    ctx.backend,
                    dz,
                    inputs[:-1],
                    params[:-PER_LAYER],
                    saved.outputs[:-1],
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
