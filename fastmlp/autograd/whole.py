"""A narrow chain of linear layers as one kernel forward, and at most three backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmlp.autograd.chain import PER_LAYER, Decided, Drops, reference_chain
from fastmlp.autograd.node import Node, Route, saves_as_given, torch_grads
from fastmlp.autograd.saved import Overwritable, Owners, aliases
from fastmlp.backends.base import Backend, NetGrads


def whole_forward(decided: Decided, *given: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The output; what the backward reads of the hidden layers, and what the last derivative needs."""
    x, params = _split(decided, given)
    out, needed = decided.acts[-1], decided.first is not None
    keep_z = needed and not out.saves_output
    save = needed and not decided.recompute
    y, saved, z = decided.backend.mlp(x, params, decided.acts, save=save, keep_z=keep_z, dtype=decided.dtype)
    return y, (saved, None if out.name == "none" else z if keep_z else y)


def _split(decided: Decided, given: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
    """The input, and weight, bias and PReLU weight of each layer."""
    _, x, _, _, _, *params = decided.spread(given)
    return x, params


def whole_backward(
    decided: Decided,
    needs: Sequence[bool],
    grad: Tensor,
    saved: Tensor | None,
    out_saved: Tensor | None,
    *given: Tensor,
) -> list[Tensor | None]:
    """One launch for the chain of dZ, one for every dW and db, one to sum a long batch's splits."""
    x, params = _split(decided, given)
    wanted = decided.needs(needs[1:])
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
    return decided.gradients([g if need else None for g, need in zip(grads, wanted)])


class WholeNet(Node):
    """X (M, K) through a whole network to Y (M, N), where a backward may follow."""

    @staticmethod
    def forward(ctx: Any, route: Route[Decided], *given: Tensor) -> Tensor:
        """``given`` as in `Chain`; where the route is to recompute nothing but the input is kept."""
        y, (saved, out_saved) = route.forward(None, given)
        decided, (x, *params) = route.decided, given
        ctx.route, ctx.saved_as_given, ctx.output = route, saves_as_given(), None
        ctx.owners = Owners(params)
        if decided.overwritable and out_saved is y:
            out_saved, ctx.output = y.data, Overwritable(y)
        ctx.save_for_backward(saved, out_saved, x, *aliases(params, decided.read))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See `whole_backward`."""
        saved, out_saved, x, *params = ctx.saved_tensors
        route, decided = ctx.route, ctx.route.decided
        upstream = route.of(grad)
        if upstream is None:
            none = Drops((0.0,) * len(decided.acts), None)

            def again(x: Tensor, *params: Tensor | None) -> Tensor:
                return reference_chain(decided.backend, x, params, decided.acts, decided.dtype, none)

            _, params = _split(decided, (x, *ctx.owners.in_graph(params)))
            needs = decided.needs(ctx.needs_input_grad[1:])
            return None, *decided.gradients(torch_grads(again, (x, *params), needs, grad))
        if ctx.output is not None and ctx.output.is_written:
            _, values = _split(decided, (x, *ctx.owners.values(params)))
            options = {"save": False, "keep_z": False}
            out_saved = decided.backend.mlp(x, values, decided.acts, **options, dtype=decided.dtype)[0]
        return None, *route.backward(ctx, upstream, grad, (saved, out_saved, x, *params))


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
