"""A narrow chain of linear layers as one kernel forward, and at most three backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmlp.autograd.chain import FIRST_PARAM, PER_LAYER, Decided, Drops, of_chain, reference_chain
from fastmlp.autograd.node import Node, Route, saves_as_given, torch_grads
from fastmlp.autograd.saved import Overwritable, Owners, aliases
from fastmlp.backends.base import Backend, NetGrads


def whole_forward(
    decided: Decided, _: Tensor | None, *tensors: Tensor | None
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The output; what the backward reads of the hidden layers, and what the last derivative needs."""
    x, params, out = tensors[0], tensors[FIRST_PARAM:], decided.acts[-1]
    assert x is not None
    needed = decided.first is not None
    keep_z = needed and not out.saves_output
    save = needed and not decided.recompute
    y, saved, z = decided.backend.mlp(x, params, decided.acts, save=save, keep_z=keep_z, dtype=decided.dtype)
    return y, (saved, None if out.name == "none" else z if keep_z else y)


def whole_backward(
    decided: Decided, needs: Sequence[bool], grad: Tensor, *tensors: Tensor | None
) -> list[Tensor | None]:
    """One launch for the chain of dZ, one for every dW and db, one to sum a long batch's splits."""
    x, saved, out_saved, *params = tensors
    assert x is not None
    wanted = of_chain(needs, 2)
    found = decided.backend.mlp_backward(
        grad,
        x,
        params,
        decided.acts,
        saved,
        out_saved,
        need_input=wanted[0],
        need_params=any(wanted[1:]),
        dtype=decided.dtype,
    )
    dx = None if found.input is None else found.input.to(x.dtype)
    grads = [dx, *split(decided.backend, found, params)]
    return [g if need else None for g, need in zip(grads, wanted)]


class WholeNet(Node):
    """X (M, K) through a whole network to Y (M, N), where a backward may follow."""

    @staticmethod
    def forward(ctx: Any, route: Route[Decided], seed: Tensor | None, *tensors: Tensor | None) -> Tensor:
        """``tensors`` as in `Chain`; where the route is to recompute nothing but the input is kept."""
        y, (saved, out_saved) = route.forward(None, (seed, *tensors))
        decided, params = route.decided, tensors[FIRST_PARAM:]
        ctx.route, ctx.saved_as_given, ctx.owners = route, saves_as_given(), Owners(params)
        ctx.output = None
        if decided.overwritable and out_saved is y:
            out_saved, ctx.output = y.data, Overwritable(y)
        ctx.save_for_backward(tensors[0], saved, out_saved, *aliases(params, decided.read))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See `whole_backward`."""
        x, saved, out_saved, *params = ctx.saved_tensors
        route, decided = ctx.route, ctx.route.decided
        upstream = route.of(grad)
        if upstream is None:
            none = Drops((0.0,) * len(decided.acts), None)

            def again(x: Tensor, *params: Tensor | None) -> Tensor:
                return reference_chain(decided.backend, x, params, decided.acts, decided.dtype, none)

            needs = of_chain(ctx.needs_input_grad, 2)
            grads = torch_grads(again, (x, *ctx.owners.in_graph(params)), needs, grad)
        else:
            if ctx.output is not None and ctx.output.is_written:
                values, options = ctx.owners.values(params), {"save": False, "keep_z": False}
                out_saved = decided.backend.mlp(x, values, decided.acts, **options, dtype=decided.dtype)[0]
            grads = route.backward(ctx, upstream, grad, (x, saved, out_saved, *params))
        return None, None, grads[0], None, None, None, *grads[1:]


def whole_route(decided: Decided, patience: int) -> tuple[Route[Decided], type[Node]]:
    """How a chain goes in one kernel, and the node for where a backward may follow."""
    return Route(decided, decided.backend, whole_forward, whole_backward, patience), WholeNet


def split(backend: Backend, found: NetGrads, params: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradient of each parameter: views of the flat ones, but for slopes, which are few."""
    grads: list[Tensor | None] = [None] * len(params)
    if found.params is None:
        return grads
    weights: Sequence[Tensor] = params[0::PER_LAYER]  # type: ignore[assignment]
    layout = backend.net_layout([weights[0].shape[1], *(w.shape[0] for w in weights)])
    for i, weight in enumerate(weights):
        first, (n, _) = PER_LAYER * i, weight.shape
        start = layout.params[i]
        of_bias = start + weight.numel()
        grads[first] = found.params[start:of_bias].view(weight.shape)
        grads[first + 1] = found.params[of_bias : of_bias + n]
        slope = params[first + 2]
        if slope is not None and found.slopes is not None:
            each = found.slopes[layout.saved[i] : layout.saved[i] + n]
            grads[first + 2] = (each.sum().view(1) if slope.numel() == 1 else each).to(slope.dtype)
    return grads
