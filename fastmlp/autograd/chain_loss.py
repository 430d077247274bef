"""A chain of layers and the loss that closes it, as one autograd node: the head computes the two together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.autograd import mse
from fastmlp.autograd.chain import (
    PER_LAYER,
    Decided,
    Drops,
    reference_grads,
    saved_chain,
)
from fastmlp.autograd.cross_entropy import reference_loss
from fastmlp.autograd.layers import backward_layers, forward_layers, inputs_and_outputs, kept_of
from fastmlp.autograd.node import Node, Route, held, saves_as_given
from fastmlp.autograd.saved import Owners
from fastmlp.backends.base import (
    NOTHING,
    BackwardOptions,
    HeadOptions,
    Loss,
    LossOptions,
    Scale,
    SquaredError,
    Undo,
    Wanted,
)


def reference(logits: Tensor, target: Tensor, weight: Tensor | None, options: Loss) -> Tensor:
    """The same loss by torch's own differentiable ops."""
    if isinstance(options, SquaredError):
        return mse.reference(logits, target, weight, options)
    return reference_loss(logits, target, weight, options)


class Closed(NamedTuple):
    """All of a chain and its loss but their tensors."""

    chain: Decided
    loss_dtype: torch.dtype
    options: Loss
    keep_logits: bool
    fold: bool  # the head undoes the activation before it

    @classmethod
    def of(cls, chain: Decided, loss_dtype: torch.dtype, options: Loss, keep_logits: bool) -> Closed:
        """With a last layer that has no activation and no dropout."""
        acts, drops = chain.acts, Drops(chain.probabilities, None)
        # The head draws no masks: a dropout before it is undone where the layer below reads its gradient.
        fold = len(acts) > 1 and chain.probabilities[-2] == 0 and drops.folds(acts, len(acts) - 2)
        # Of the last layer nothing is read: dz is there.
        last = sum(chain.there[-PER_LAYER:])
        read = (*chain.read[:-last], *[False] * last)
        return cls(chain._replace(read=read), loss_dtype, options, keep_logits, fold)


#: Class indices or targets, and class weights: the tensors before those of the chain.
_TARGETS = 2


def closed_forward(
    decided: Closed, target: Tensor, class_weight: Tensor | None, *given: Tensor
) -> tuple[Any, ...]:
    """Loss and logits; what the loss was divided by, dlogits and dz; and what the layers leave.

    The gradients leave the head as those of the sum of the rows' losses.
    """
    chain, loss_dtype, options, keep_logits, fold = decided
    acts, first = chain.acts, chain.first
    tensors, hidden = chain.placed(given), len(acts) - 1
    weight, bias, _ = tensors.params[-PER_LAYER:]
    assert weight is not None
    h, inputs, outputs = forward_layers(chain, tensors, hidden)
    need_dz = chain.needs_input or (first is not None and first < hidden)
    wanted = Wanted(keep_logits, first is not None, need_dz)
    before = Undo(acts[-2], outputs[-1]) if fold else NOTHING
    head = HeadOptions(target, class_weight, options, wanted, chain.dtype, loss_dtype, before)
    result = chain.backend.head(h, weight, bias, head)
    if first is None:
        return result.loss, result.logits, (), ()
    denominator = result.denominator
    if isinstance(options, LossOptions) and class_weight is not None and options.reduction == "mean":
        # A sum of class weights that is 0 though some rows count: torch's gradients then are NaN.
        # Where no row counts they are 0, and so `Scale` has it.
        counts = (target != options.ignore_index).any()
        denominator = torch.where((denominator == 0) & counts, torch.nan, denominator)
    gradients = (denominator, result.dlogits, result.dz)
    return result.loss, result.logits, gradients, kept_of([*inputs, h], [*outputs, None], first)


def closed_backward(
    decided: Closed,
    needs: Sequence[bool],
    grad: Tensor,
    denominator: Tensor,
    dlogits: Tensor,
    dz: Tensor | None,
    *tensors: Tensor | None,
) -> list[Tensor | None]:
    """The parameters' gradients; dlogits and the last hidden dZ are there already.

    The upstream gradient over the loss' denominator is multiplied in where they are written.
    """
    chain, wanted = decided.chain, decided.chain.needs(needs[1 + _TARGETS :])
    depth, scale = len(chain.acts), Scale(grad, denominator)
    saved = chain.placed(tensors)
    inputs, _ = inputs_and_outputs(chain, saved)
    weight, bias, _ = saved.params[-PER_LAYER:]
    grads: list[Tensor | None] = [None] * PER_LAYER
    if any(wanted[-PER_LAYER:]):
        assert weight is not None
        bias_dtype = None if bias is None else bias.dtype
        asked = BackwardOptions(chain.dtype, scale=scale, need_input=False, bias_dtype=bias_dtype)
        last = chain.backend.linear_backward(dlogits, inputs[-1], weight, asked)
        grads = [last.weight, last.bias, None]
    stem: list[Tensor | None] = [None] * (len(wanted) - PER_LAYER)
    if dz is not None and depth == 1:
        stem = [(dz * scale.value()).to(inputs[0].dtype)]  # type: ignore[union-attr]
    elif dz is not None:
        stem = backward_layers(chain, saved, dz, wanted[:-PER_LAYER], scale, masked=decided.fold)
    return chain.gradients([g if need else None for g, need in zip([*stem, *grads], wanted)])


class ChainLoss(Node):
    """A whole net: X (M, K) through a chain of layers to its loss, and the logits if asked."""

    @staticmethod
    def forward(
        ctx: Any,
        route: Route[Closed],
        target: Tensor,
        class_weight: Tensor | None,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """``given`` as in `Chain`. A quantized input needs a hidden layer: the head reads none."""
        loss, logits, gradients, kept = route.forward(None, (target, class_weight, *given))
        chain = route.decided.chain
        ctx.route, ctx.saved_as_given, ctx.owners = route, saves_as_given(), Owners(given[chain.head :])
        saved = saved_chain(chain, given, kept)
        ctx.save_for_backward(held(target), held(class_weight), *gradients, *saved)
        if logits is not None:
            ctx.mark_non_differentiable(logits)
        return loss, logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """See `closed_backward`."""
        target, class_weight, *rest = ctx.saved_tensors
        chain, options = ctx.route.decided.chain, ctx.route.decided.options
        upstream = ctx.route.of(grad)
        if upstream is None:

            def loss(logits: Tensor) -> Tensor:
                wide = torch.promote_types(chain.dtype, torch.float32)
                weight = None if class_weight is None else class_weight.to(wide)
                return reference(logits.to(wide), target, weight, options)

            saved, needs = chain.placed(rest[3:], ctx.owners.in_graph), ctx.needs_input_grad[1 + _TARGETS :]
            grads = reference_grads(chain, grad, saved, needs, loss)
        else:
            grads = ctx.route.backward(ctx, upstream, grad, rest)
        return None, None, None, *grads


def loss_route(decided: Closed, patience: int) -> Route[Closed]:
    """How a chain and its loss go."""
    return Route(decided, decided.chain.backend, closed_forward, closed_backward, patience)
