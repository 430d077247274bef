"""``fastmlp::chain``: linear layers with their activations and dropouts, a kernel a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.activations import TABLE, Act
from fastmlp.autograd.chain import (
    PER_LAYER,
    Drops,
    backward_chain,
    forward_chain,
    reference_chain,
)
from fastmlp.autograd.node import torch_grads, transformed
from fastmlp.ops.register import differentiable, op, recorded

#: A dispatcher's list of tensors has no gaps: ``present`` says which of weight, bias and PReLU's weight of
#: each layer are in ``params``.
LAYERS = "Tensor[] params, bool[] present, str[] acts, float[] slopes, ScalarType dtype"


def spread(values: Sequence[Any], present: Sequence[bool]) -> list[Any]:
    """``values`` with None wherever ``present`` says that there is none."""
    found = iter(values)
    return [next(found) if there else None for there in present]


def table_of(names: Sequence[str], slopes: Sequence[float]) -> list[Act]:
    """The activations, without tensors."""
    return [Act(TABLE[name], slope) for name, slope in zip(names, slopes)]


def z_kept(acts: Sequence[Act]) -> list[int]:
    """The layers whose Z the backward needs."""
    return [i for i, act in enumerate(acts) if not act.saves_output]


def like_outputs(
    x: Tensor, params: Sequence[Tensor], present: Sequence[bool], dtype: torch.dtype
) -> list[Tensor]:
    """Tensors like every layer's output."""
    weights = spread(params, present)[::PER_LAYER]
    return [x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype) for weight in weights]


def as_matrix(x: Tensor) -> Tensor:
    """(..., K) as (M, K). The ops do this themselves: of views in a graph torch sees no writes in place."""
    return x.reshape(-1, x.shape[-1])


def shaped(matrices: Sequence[Tensor | None], x: Tensor) -> list[Tensor]:
    """Those (M, N) that there are, as (..., N) with the leading dimensions of ``x``."""
    return [m.view(*x.shape[:-1], m.shape[1]) for m in matrices if m is not None]


def like_needed(grad: Tensor, x: Tensor, params: Sequence[Tensor], *others: Any) -> list[Tensor]:
    """Contiguous tensors like x and the parameters: those whose gradients are asked for, last of all."""
    needs = others[-1]
    return [t.new_empty(t.shape) for t, need in zip((x, *params), needs) if need]


def _fake_chain(
    x: Tensor,
    params: Sequence[Tensor],
    present: Sequence[bool],
    acts: Sequence[str],
    slopes: Sequence[float],
    dtype: torch.dtype,
    seed: Tensor | None,
    dropouts: Sequence[float],
    keep: bool,
) -> list[Tensor]:
    outputs = like_outputs(x, params, present, dtype)
    if not keep:
        return outputs[-1:]
    *hidden, y = outputs
    return [*hidden, *(torch.empty_like(outputs[i]) for i in z_kept(table_of(acts, slopes))), y]


def reads_output(last: Act) -> bool:
    """Whether the backward reads the output itself, which then nobody may write over."""
    return last.saves_output and last.name != "none"


def _setup_chain(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, params, ctx.present, ctx.acts, ctx.slopes, ctx.dtype, seed, ctx.dropouts, _ = inputs
    kept = output if reads_output(table_of(ctx.acts, ctx.slopes)[-1]) else output[:-1]
    ctx.save_for_backward(x, seed, *params, *kept)
    ctx.set_materialize_grads(False)


def _gradients_chain(ctx: Any, *grads: Tensor | None) -> list[Tensor | None]:
    x, seed, *rest = ctx.saved_tensors
    count, grad = sum(ctx.present), grads[-1]
    params, kept = rest[:count], rest[count:]
    needs = ctx.needs_input_grad[1 : 2 + count]
    if grad is None:
        return []
    described = (ctx.present, ctx.acts, ctx.slopes, ctx.dtype)
    if transformed(grad):

        def again(x: Tensor, *params: Tensor) -> Tensor:
            table, drops = table_of(ctx.acts, ctx.slopes), Drops(tuple(ctx.dropouts), seed)
            layers = spread(params, ctx.present)
            y = reference_chain(backends.kernels(x), as_matrix(x), layers, table, ctx.dtype, drops)
            return y.reshape(grad.shape)

        return torch_grads(again, (x, *params), needs, grad)
    some = _chain_backward(grad, x, params, *described, kept, seed, ctx.dropouts, needs)
    return spread(some, needs)


@differentiable(
    "chain",
    f"(Tensor x, {LAYERS}, Tensor? seed, float[] dropouts, bool keep) -> Tensor[]",
    _fake_chain,
    _setup_chain,
    _gradients_chain,
)
@recorded
def _chain(
    x: Tensor,
    params: Sequence[Tensor],
    present: Sequence[bool],
    acts: Sequence[str],
    slopes: Sequence[float],
    dtype: torch.dtype,
    seed: Tensor | None,
    dropouts: Sequence[float],
    keep: bool,
) -> list[Tensor]:
    """The last layer's output (..., N); with ``keep`` after the others and those Z that a backward needs.

    Args:
        x: (..., K), no size 0.
        params: see `LAYERS`.
        present: one for each of a layer's three tensors.
        acts: names, one a layer.
        slopes: leaky_relu's, one a layer.
        dtype: of the products.
        seed: of the dropouts, (1,) int64.
        dropouts: probabilities, one a layer.
        keep: whether a backward may follow.
    """
    table, drops = table_of(acts, slopes), Drops(tuple(dropouts), seed)
    layers = spread(params, present)
    first = 0 if keep else None
    y, inputs, saved = forward_chain(backends.kernels(x), as_matrix(x), layers, table, dtype, first, drops)
    kept = [*inputs[1:], *(saved[i] for i in z_kept(table))] if keep else []
    return shaped([*kept, y], x)  # type: ignore[list-item]


def _of_outputs(kept: Sequence[Tensor], acts: Sequence[Act]) -> list[Tensor | None]:
    """What each activation's derivative is computed from, out of what was kept of `_chain`'s results."""
    hidden = len(acts) - 1
    z = dict(zip(z_kept(acts), kept[hidden:]))
    return [
        None if act.name == "none" else z[i] if i in z else kept[i if i < hidden else -1]
        for i, act in enumerate(acts)
    ]


@op(
    "chain_backward",
    f"(Tensor grad, Tensor x, {LAYERS}, Tensor[] kept, Tensor? seed, float[] dropouts, bool[] needs) "
    "-> Tensor[]",
    like_needed,
)
@recorded
def _chain_backward(
    grad: Tensor,
    x: Tensor,
    params: Sequence[Tensor],
    present: Sequence[bool],
    acts: Sequence[str],
    slopes: Sequence[float],
    dtype: torch.dtype,
    kept: Sequence[Tensor],
    seed: Tensor | None,
    dropouts: Sequence[float],
    needs: Sequence[bool],
) -> list[Tensor]:
    """Those gradients of x and ``params`` that ``needs`` asks for, from the output's ``grad``.

    ``kept`` are `_chain`'s results, the output only where `reads_output`.
    """
    table, layers = table_of(acts, slopes), spread(params, present)
    rows, grad, *kept = map(as_matrix, (x, grad, *kept))
    inputs, saved = [rows, *kept[: len(table) - 1]], _of_outputs(kept, table)
    needed = [needs[0], *(bool(need) for need in spread(needs[1:], present))]
    drops = Drops(tuple(dropouts), seed)
    dx, *grads = backward_chain(backends.kernels(x), grad, inputs, layers, saved, table, needed, dtype, drops)
    return [*shaped([dx], x), *(found for found in grads if found is not None)]


def chain(
    x: Tensor, params: Sequence[Tensor | None], acts: Sequence[Act], dtype: torch.dtype, drops: Drops
) -> Tensor:
    """What `fastmlp.autograd.chain.Chain` computes, as ops. x (..., K); ``acts`` hold no tensors."""
    given, described = describe(params, acts, dtype)
    keep = needs_grad(x, *given)
    return _chain(x, given, *described, drops.seed, list(drops.probabilities), keep)[-1]


def describe(
    params: Sequence[Tensor | None], acts: Sequence[Act], dtype: torch.dtype
) -> tuple[list[Tensor], tuple[Any, ...]]:
    """The ops' arguments `LAYERS`: the parameters that there are, and the rest."""
    given = [p for p in params if p is not None]
    present = [p is not None for p in params]
    return given, (present, [act.name for act in acts], [float(act.slope) for act in acts], dtype)


def needs_grad(*tensors: Tensor) -> bool:
    """Whether a backward may follow."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
