"""``fastmlp::whole_net``: a narrow network in one kernel forward, and at most three backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.activations import Act
from fastmlp.autograd.chain import PER_LAYER, Drops, reference_chain
from fastmlp.autograd.node import torch_grads, transformed
from fastmlp.autograd.whole import split
from fastmlp.backends.base import NetGrads, NetLayout
from fastmlp.ops.chain import (
    LAYERS,
    as_matrix,
    describe,
    like_outputs,
    needs_grad,
    reads_output,
    shaped,
    spread,
    table_of,
)
from fastmlp.ops.register import differentiable, op, recorded


def _fake(
    x: Tensor,
    params: Sequence[Tensor],
    present: Sequence[bool],
    acts: Sequence[str],
    slopes: Sequence[float],
    dtype: torch.dtype,
    keep: bool,
    recompute: bool,
) -> list[Tensor]:
    y = like_outputs(x, params, present, dtype)[-1]
    found = [y]
    if keep and not recompute:
        columns = _layout(x, spread(params, present)).saved[-1]
        found.append(x.new_empty(*x.shape[:-1], columns, dtype=dtype))
    if keep and not table_of(acts, slopes)[-1].saves_output:
        found.append(torch.empty_like(y))
    return found


def _layout(x: Tensor, layers: Sequence[Tensor]) -> NetLayout:
    widths = [x.shape[-1], *(weight.shape[0] for weight in layers[::PER_LAYER])]
    return backends.kernels(x).net_layout(widths)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, params, ctx.present, ctx.acts, ctx.slopes, ctx.dtype, _, ctx.recompute = inputs
    kept = output if reads_output(table_of(ctx.acts, ctx.slopes)[-1]) else output[1:]
    ctx.save_for_backward(x, *params, *kept)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, *grads: Tensor | None) -> list[Tensor | None]:
    x, *rest = ctx.saved_tensors
    count, grad = sum(ctx.present), grads[0]
    if grad is None:
        return []
    params, kept = rest[:count], rest[count:]
    needs = ctx.needs_input_grad[1 : 2 + count]
    described = (ctx.present, ctx.acts, ctx.slopes, ctx.dtype)
    table = table_of(ctx.acts, ctx.slopes)
    if transformed(grad):
        none = Drops((0.0,) * len(table), None)

        def again(x: Tensor, *params: Tensor) -> Tensor:
            layers = spread(params, ctx.present)
            y = reference_chain(backends.kernels(x), as_matrix(x), layers, table, ctx.dtype, none)
            return y.reshape(grad.shape)

        return torch_grads(again, (x, *params), needs, grad)
    y = kept.pop(0) if reads_output(table[-1]) else None
    saved = None if ctx.recompute else kept.pop(0)
    out_saved = y if y is not None or not kept else kept.pop()
    asked = (needs[0], any(needs[1:]))
    flat = iter(_backward(grad, x, params, *described, saved, out_saved, *asked))
    grads_of = NetGrads(*(next(flat, None) if need else None for need in (*asked, asked[1])))
    each = split(backends.kernels(x), grads_of, spread(params, ctx.present))
    found = [grads_of.input, *(g for g, there in zip(each, ctx.present) if there)]
    return [g if need else None for g, need in zip(found, needs)]


@differentiable(
    "whole_net",
    f"(Tensor x, {LAYERS}, bool keep, bool recompute) -> Tensor[]",
    _fake,
    _setup,
    _gradients,
)
@recorded
def _whole(
    x: Tensor,
    params: Sequence[Tensor],
    present: Sequence[bool],
    acts: Sequence[str],
    slopes: Sequence[float],
    dtype: torch.dtype,
    keep: bool,
    recompute: bool,
) -> list[Tensor]:
    """The output (..., N); with ``keep`` what a backward needs: of hidden ones, unless ``recompute``; Z.

    Args:
        x: (..., K), no size 0.
        params: see `fastmlp.ops.chain`; they must fit `fastmlp.costs.choice.whole_misfit`.
        present: one for each of a layer's three tensors.
        acts: names, one a layer.
        slopes: leaky_relu's, one a layer.
        dtype: of the products.
        keep: whether a backward may follow.
        recompute: whether it runs the forward again.
    """
    table = table_of(acts, slopes)
    keep_z = keep and not table[-1].saves_output
    layers = spread(params, present)
    found = backends.kernels(x).mlp(
        as_matrix(x), layers, table, save=keep and not recompute, keep_z=keep_z, dtype=dtype
    )
    return shaped(found, x)


def _fake_backward(
    grad: Tensor, x: Tensor, params: Sequence[Tensor], present: Sequence[bool], *others: Any
) -> list[Tensor]:
    *_, need_input, need_params = others
    layers = spread(params, present)
    layout = _layout(x, layers)
    found = [torch.empty_like(x, memory_format=torch.contiguous_format)] if need_input else []
    if need_params:
        found.append(x.new_empty(layout.params[-1], dtype=layers[0].dtype))
        if layers[2] is not None:
            found.append(x.new_empty(layout.saved[-1], dtype=torch.float32))
    return found


@op(
    "whole_net_backward",
    f"(Tensor grad, Tensor x, {LAYERS}, Tensor? saved, Tensor? out_saved, bool need_input, bool need_params) "
    "-> Tensor[]",
    _fake_backward,
)
@recorded
def _backward(
    grad: Tensor,
    x: Tensor,
    params: Sequence[Tensor],
    present: Sequence[bool],
    acts: Sequence[str],
    slopes: Sequence[float],
    dtype: torch.dtype,
    saved: Tensor | None,
    out_saved: Tensor | None,
    need_input: bool,
    need_params: bool,
) -> list[Tensor]:
    """The gradients of x, and of all parameters flat, as `NetGrads`: those that are asked for."""
    dx, of_params, of_slopes = backends.kernels(x).mlp_backward(
        as_matrix(grad),
        as_matrix(x),
        spread(params, present),
        table_of(acts, slopes),
        *(None if t is None else as_matrix(t) for t in (saved, out_saved)),
        need_input=need_input,
        need_params=need_params,
        dtype=dtype,
    )
    dx = None if dx is None else dx.to(x.dtype)
    return [*shaped([dx], x), *(t for t in (of_params, of_slopes) if t is not None)]


def whole_net(
    x: Tensor, params: Sequence[Tensor | None], acts: Sequence[Act], dtype: torch.dtype, recompute: bool
) -> Tensor:
    """What `fastmlp.autograd.whole.WholeNet` computes, as ops. x (..., K); ``acts`` hold no tensors."""
    given, described = describe(params, acts, dtype)
    return _whole(x, given, *described, needs_grad(x, *given), recompute)[0]
