"""A narrow chain of linear layers as one kernel forward, and at most three backward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastmlp.autograd.chain import PER_LAYER, Decided, Formula, Tensors
from fastmlp.backends.base import Backend, Net, NetForward, NetGrads


def _run(decided: Decided, tensors: Tensors, *, save: bool, keep_z: bool) -> NetForward:
    net = Net(tensors.params, decided.acts, decided.dtype)
    return decided.backend.mlp(tensors.source[0], net, save=save, keep_z=keep_z)  # type: ignore[arg-type]


def _forward(decided: Decided, *given: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The output; what the backward reads of the hidden layers, and what the last derivative needs."""
    out, needed = decided.acts[-1], decided.first is not None
    keep_z = needed and not out.saves_output
    save = needed and not decided.recompute
    y, saved, z = _run(decided, decided.placed(given), save=save, keep_z=keep_z)
    return y, (saved, None if out.name == "none" else z if keep_z else y)


def _output(decided: Decided, tensors: Tensors) -> Tensor:
    return _run(decided, tensors, save=False, keep_z=False).output


def flat_gradients(decided: Decided, tensors: Tensors, grad: Tensor, needs: Sequence[bool]) -> NetGrads:
    """Of the input and of all parameters, where the one or one of the others ``needs`` it.

    One launch for the chain of dZ, one for every dW and db, one to sum a long batch's splits.
    """
    x: Tensor = tensors.source[0]  # type: ignore[assignment]
    net = Net(tensors.params, decided.acts, decided.dtype)
    saved, out_saved = tensors.kept
    found = decided.backend.mlp_backward(
        grad, x, net, saved, out_saved, need_input=needs[0], need_params=any(needs[1:])
    )
    return found if found.input is None else found._replace(input=found.input.to(x.dtype))


def split(backend: Backend, found: NetGrads, params: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of input and each parameter: views of the flat ones, but for slopes, which are few."""
    grads: list[Tensor | None] = [found.input, *[None] * len(params)]
    if found.params is None:
        return grads
    weights: Sequence[Tensor] = params[0::PER_LAYER]  # type: ignore[assignment]
    layout = backend.net_layout([weights[0].shape[1], *(w.shape[0] for w in weights)])
    for i, weight in enumerate(weights):
        first, (n, _) = 1 + PER_LAYER * i, weight.shape
        start = layout.params[i]
        of_bias = start + weight.numel()
        grads[first] = found.params[start:of_bias].view(weight.shape)
        grads[first + 1] = found.params[of_bias : of_bias + n]
        slope = params[first + 1]
        if slope is not None and found.slopes is not None:
            each = found.slopes[layout.saved[i] : layout.saved[i] + n]
            grads[first + 2] = (each.sum().view(1) if slope.numel() == 1 else each).to(slope.dtype)
    return grads


def _backward(
    decided: Decided, given: Sequence[bool], grad: Tensor, *saved: Tensor | None
) -> list[Tensor | None]:
    tensors, needs = decided.placed(saved), decided.needs(given[1:])
    grads = split(decided.backend, flat_gradients(decided, tensors, grad, needs), tensors.params)
    return decided.gradients([g if need else None for g, need in zip(grads, needs)])


WHOLE = Formula(_forward, _backward, _output, skips_frozen=False)
