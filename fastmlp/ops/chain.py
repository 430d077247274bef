"""``fastmlp::chain`` and ``fastmlp::whole_net``: linear layers with their activations.

The first takes a kernel a layer; the second, of a narrow network, one forward and at most three backward.
They compute what `fastmlp.autograd.chain.Chain` does, by the same formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.activations import TABLE, Act
from fastmlp.autograd.chain import (
    PER_LAYER,
    Decided,
    Drops,
    Formula,
    reference_grads,
    spread,
)
from fastmlp.autograd.layers import LAYERS
from fastmlp.autograd.node import transformed
from fastmlp.autograd.whole import WHOLE, flat_gradients, split
from fastmlp.backends.base import NetGrads, NetLayout
from fastmlp.ops.register import differentiable, op, recorded

#: A dispatcher's list of tensors has no gaps: ``present`` says which of weight, bias and PReLU's weight of
#: each layer are in ``params``. ``acts`` are names, one a layer, ``slopes`` those of leaky_relu; ``dtype`` is
#: the products'. Below, ``layers`` are these but the tensors.
_LAYERS = "Tensor[] params, bool[] present, str[] acts, float[] slopes, ScalarType dtype"


def as_matrix(x: Tensor) -> Tensor:
    """(..., K) as (M, K). The ops do this themselves: of views in a graph torch sees no writes in place."""
    return x.reshape(-1, x.shape[-1])


def _shaped(matrix: Tensor, x: Tensor) -> Tensor:
    """(M, N) as (..., N) with the leading dimensions of ``x``."""
    return matrix.view(*x.shape[:-1], matrix.shape[1])


def _acts_of(names: Sequence[str], slopes: Sequence[float]) -> tuple[Act, ...]:
    return tuple([Act(TABLE[name], slope) for name, slope in zip(names, slopes)])


def _like_outputs(x: Tensor, params: Sequence[Tensor], layers: Sequence[Any]) -> list[Tensor]:
    present, *_, dtype = layers
    weights: list[Any] = spread(params, present)[::PER_LAYER]
    return [x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype) for weight in weights]


def _decide(
    formula: Formula,
    x: Tensor,
    layers: Sequence[Any],
    seed: Tensor | None = None,
    dropouts: Sequence[float] = (),
    keep: bool = True,
    recompute: bool = False,
) -> Decided:
    """What an eager call decides."""
    present, names, slopes, dtype = layers
    return Decided(
        formula,
        backends.kernels(x),
        dtype,
        _acts_of(names, slopes),
        tuple(dropouts) or (0.0,) * len(names),
        numbers=None,
        there=(seed is not None, True, False, False, False, *present),
        head=1 + (seed is not None),
        first=0 if keep else None,
        recompute=recompute,
    )


def _given(seed: Tensor | None) -> list[Tensor]:
    return [] if seed is None else [seed]


def _forward(
    decided: Decided, x: Tensor, params: Sequence[Tensor], seed: Tensor | None = None
) -> tuple[list[Tensor], Tensor]:
    """What is kept beside the output; and the output."""
    y, kept = decided.formula.forward(decided, *_given(seed), as_matrix(x), *params)
    return [_shaped(t, x) for t in kept if t is not None and t is not y], _shaped(y, x)


def _save(ctx: Any, x: Tensor, params: Sequence[Tensor], kept: Sequence[Tensor], y: Tensor) -> None:
    """Keep what a backward reads; of the output, over which somebody may write, only if it does."""
    last = ctx.decided.acts[-1]
    output = [y] if last.saves_output and last.name != "none" else []
    ctx.save_for_backward(ctx.seed, x, *params, *kept, *output)
    ctx.set_materialize_grads(False)


class _Saved(NamedTuple):
    """What `_save` kept, and which of x and ``params`` need a gradient."""

    seed: Tensor | None
    x: Tensor
    params: list[Tensor]
    kept: list[Tensor]
    needs: list[bool]

    @classmethod
    def of(cls, ctx: Any) -> _Saved:
        seed, x, *rest = ctx.saved_tensors
        count = sum(ctx.layers[0])
        return cls(seed, x, rest[:count], rest[count:], list(ctx.needs_input_grad[1 : 2 + count]))


def _by_torch(ctx: Any, grad: Tensor | None, saved: _Saved) -> list[Tensor | None]:
    """The gradients of x and ``params`` by torch's own ops, which can be differentiated again."""
    if grad is None:
        return []
    before = _given(saved.seed)
    tensors = ctx.decided.placed([*before, saved.x, *saved.params])
    given = [False] * len(before) + saved.needs
    return reference_grads(ctx.decided, grad, tensors, given)[len(before) :]


def _fake_chain(x: Tensor, params: Sequence[Tensor], *others: Any) -> list[Tensor]:
    *layers, _, _, keep = others
    *hidden, y = outputs = _like_outputs(x, params, layers)
    if not keep:
        return [y]
    z = [torch.empty_like(y) for y, act in zip(outputs, _acts_of(*layers[1:3])) if not act.saves_output]
    return [*hidden, *z, y]


def _setup_chain(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, params, *ctx.layers, ctx.seed, ctx.dropouts, _ = inputs
    ctx.decided = _decide(LAYERS, x, ctx.layers, ctx.seed, ctx.dropouts)
    _save(ctx, x, params, output[:-1], output[-1])


def _gradients_chain(ctx: Any, *grads: Tensor | None) -> list[Tensor | None]:
    grad, saved = grads[-1], _Saved.of(ctx)
    if grad is None or transformed(grad):
        return _by_torch(ctx, grad, saved)
    seed, x, params, kept, needs = saved
    return spread(_chain_backward(grad, x, params, *ctx.layers, kept, seed, ctx.dropouts, needs), needs)


@differentiable(
    "chain",
    f"(Tensor x, {_LAYERS}, Tensor? seed, float[] dropouts, bool keep) -> Tensor[]",
    _fake_chain,
    _setup_chain,
    _gradients_chain,
)
@recorded
def _chain(x: Tensor, params: Sequence[Tensor], *others: Any) -> list[Tensor]:
    """The last layer's output (..., N) of x (..., K) without a size 0.

    With ``keep``, which says whether a backward may follow, after the others and those Z that it needs.
    ``seed``, (1,) int64, is that of the dropouts, of which there is one probability a layer.
    """
    *layers, seed, dropouts, keep = others
    kept, y = _forward(_decide(LAYERS, x, layers, seed, dropouts, keep), x, params, seed)
    return [*kept, y]


def _fake_chain_backward(grad: Tensor, x: Tensor, params: Sequence[Tensor], *others: Any) -> list[Tensor]:
    *_, needs = others
    return [t.new_empty(t.shape) for t, need in zip((x, *params), needs) if need]


@op(
    "chain_backward",
    f"(Tensor grad, Tensor x, {_LAYERS}, Tensor[] kept, Tensor? seed, float[] dropouts, bool[] needs) "
    "-> Tensor[]",
    _fake_chain_backward,
)
@recorded
def _chain_backward(grad: Tensor, x: Tensor, params: Sequence[Tensor], *others: Any) -> list[Tensor]:
    """Those gradients of x and ``params`` that ``needs`` asks for, from the output's ``grad``.

    ``kept`` are `_chain`'s results, the output only where the backward reads it.
    """
    *layers, kept, seed, dropouts, needs = others
    decided = _decide(LAYERS, x, layers, seed, dropouts)
    *hidden, last = decided.acts
    is_kept = [*[True] * len(hidden), *(not act.saves_output for act in hidden), last.name != "none"]
    saved = [*_given(seed), as_matrix(x), *spread(list(map(as_matrix, kept)), is_kept), *params]
    given = [False] * decided.head + list(needs)  # of the route, and of the seed if there is one
    found = [g for g in LAYERS.backward(decided, given, as_matrix(grad), *saved) if g is not None]
    return [_shaped(found[0], x), *found[1:]] if needs[0] else found


def _layout(x: Tensor, params: Sequence[Tensor], present: Sequence[bool]) -> NetLayout:
    weights: list[Any] = spread(params, present)[::PER_LAYER]
    return backends.kernels(x).net_layout([x.shape[-1], *(weight.shape[0] for weight in weights)])


def _fake_whole(x: Tensor, params: Sequence[Tensor], *others: Any) -> list[Tensor]:
    *layers, keep, recompute = others
    y = _like_outputs(x, params, layers)[-1]
    found = [y]
    if keep and not recompute:
        columns = _layout(x, params, layers[0]).saved[-1]
        found.append(y.new_empty(*x.shape[:-1], columns))
    if keep and not _acts_of(*layers[1:3])[-1].saves_output:
        found.append(torch.empty_like(y))
    return found


def _setup_whole(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, params, *ctx.layers, _, recompute = inputs
    ctx.seed, ctx.decided = None, _decide(WHOLE, x, ctx.layers, recompute=recompute)
    _save(ctx, x, params, output[1:], output[0])


def _gradients_whole(ctx: Any, *grads: Tensor | None) -> list[Tensor | None]:
    grad, saved, decided = grads[0], _Saved.of(ctx), ctx.decided
    if grad is None or transformed(grad):
        return _by_torch(ctx, grad, saved)
    _, x, params, kept, needs = saved
    of_hidden, of_output = spread(kept, [not decided.recompute, decided.acts[-1].name != "none"])
    asked = (needs[0], any(needs[1:]))
    flat = iter(_whole_backward(grad, x, params, *ctx.layers, of_hidden, of_output, *asked))
    found = NetGrads(*(next(flat, None) if need else None for need in (*asked, asked[1])))
    every = split(decided.backend, found, spread(params, ctx.layers[0]))
    return [g if need else None for g, need in zip(decided.gradients(every), needs)]


@differentiable(
    "whole_net",
    f"(Tensor x, {_LAYERS}, bool keep, bool recompute) -> Tensor[]",
    _fake_whole,
    _setup_whole,
    _gradients_whole,
)
@recorded
def _whole(x: Tensor, params: Sequence[Tensor], *others: Any) -> list[Tensor]:
    """The output (..., N) of x (..., K) without a size 0, by layers that the kernels of whole nets take.

    With ``keep`` what a backward needs: of hidden layers, unless it is to ``recompute`` them; and Z.
    """
    *layers, keep, recompute = others
    kept, y = _forward(_decide(WHOLE, x, layers, keep=keep, recompute=recompute), x, params)
    return [y, *kept]


def _fake_whole_backward(grad: Tensor, x: Tensor, params: Sequence[Tensor], *others: Any) -> list[Tensor]:
    present, *_, need_input, need_params = others
    layout = _layout(x, params, present)
    found = [torch.empty_like(x, memory_format=torch.contiguous_format)] if need_input else []
    if need_params:
        found.append(params[0].new_empty(layout.params[-1]))
        if present[2]:
            found.append(x.new_empty(layout.saved[-1], dtype=torch.float32))
    return found


@op(
    "whole_net_backward",
    f"(Tensor grad, Tensor x, {_LAYERS}, Tensor? saved, Tensor? out_saved, "
    "bool need_input, bool need_params) -> Tensor[]",
    _fake_whole_backward,
)
@recorded
def _whole_backward(grad: Tensor, x: Tensor, params: Sequence[Tensor], *others: Any) -> list[Tensor]:
    """The gradients of x, and of all parameters flat, as `NetGrads`: those that are asked for."""
    *layers, saved, out_saved, need_input, need_params = others
    decided = _decide(WHOLE, x, layers)
    kept = [None if t is None else as_matrix(t) for t in (saved, out_saved)]
    tensors = decided.placed([as_matrix(x), *kept, *params])
    dx, *flat = flat_gradients(decided, tensors, as_matrix(grad), (need_input, need_params))
    return [*([] if dx is None else [_shaped(dx, x)]), *(t for t in flat if t is not None)]


def chain(
    x: Tensor, params: Sequence[Tensor | None], acts: Sequence[Act], dtype: torch.dtype, drops: Drops
) -> Tensor:
    """What `fastmlp.autograd.layers` computes, as an op. x (..., K); ``acts`` hold no tensors."""
    given, keep, layers = _describe(x, params, acts, dtype)
    return _chain(x, given, *layers, drops.seed, list(drops.probabilities), keep)[-1]


def whole_net(
    x: Tensor, params: Sequence[Tensor | None], acts: Sequence[Act], dtype: torch.dtype, recompute: bool
) -> Tensor:
    """What `fastmlp.autograd.whole` computes, as an op. x (..., K); ``acts`` hold no tensors."""
    given, keep, layers = _describe(x, params, acts, dtype)
    return _whole(x, given, *layers, keep, recompute)[0]


def _describe(
    x: Tensor, params: Sequence[Tensor | None], acts: Sequence[Act], dtype: torch.dtype
) -> tuple[list[Tensor], bool, tuple[Any, ...]]:
    """The parameters that there are, whether a backward may follow, and the rest of `_LAYERS`."""
    given = [p for p in params if p is not None]
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *given))
    present = [p is not None for p in params]
    return given, keep, (present, [act.name for act in acts], [float(act.slope) for act in acts], dtype)
