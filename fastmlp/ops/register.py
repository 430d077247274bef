"""How an op is registered: without the Python that `torch.library.custom_op` puts around each call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.backends.route import circumstances, describe

_LIBRARY = torch.library.Library("fastmlp", "FRAGMENT")
_FORWARD = "_forward"


def op(name: str, schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Register the decorated function as ``fastmlp::name``, which has no gradient.

    Args:
        name: of the op.
        schema: its arguments and results, without the name. Nothing is mutated, no result is an input.
        fake: the results' shapes, from the same arguments.
    """

    def register(function: Callable[..., Any]) -> Any:
        return _define(name, schema, fake, function)

    return register


def _define(name: str, schema: str, fake: Callable[..., Any], function: Callable[..., Any]) -> Any:
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastmlp::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.fastmlp, name).default


def differentiable(
    name: str,
    schema: str,
    fake: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    gradients: Callable[..., Sequence[Tensor | None]],
) -> Callable[[Callable[..., Any]], Any]:
    """As `op`, with a gradient: ``fastmlp::name``, which calls ``fastmlp::name_forward``.

    The latter stands in what AOTAutograd traces, where the backward is traced too: no call there passes
    Python's autograd again, which takes longer than all else that the dispatcher does.

    Args:
        name: of the op.
        schema: see `op`.
        fake: see `op`.
        setup: of the context, by the arguments and the results, as `torch.library.register_autograd`'s.
        gradients: of the first so many tensors among the arguments, by the context and those of the results.
    """

    def register(function: Callable[..., Any]) -> Any:
        forward = _define(name + _FORWARD, schema, fake, function)
        made = _define(name, schema, fake, forward)

        class Formula(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, args: tuple[Any, ...], *tensors: Tensor) -> Any:
                output = forward(*args)
                setup(ctx, args, output)
                return tuple(output) if isinstance(output, list) else output

            @staticmethod
            def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
                found = gradients(ctx, *grads)
                return None, *found, *[None] * (len(ctx.needs_input_grad) - 1 - len(found))

        def differentiated(*args: Any) -> Any:
            tensors = _tensors(args)
            if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
                return forward(*args)
            output = Formula.apply(args, *tensors)
            return list(output) if made._schema.returns[0].type.kind() == "ListType" else output

        _LIBRARY.impl(name, differentiated, "Autograd")
        return made

    return register


#: So many calls of an op, that differ in more than their tensors, are kept.
_MOST = 256


def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, an op's, whose launches are decided once for all calls that differ in numbers alone."""
    known: dict[Hashable, Any] = {}

    def call(*args: Any) -> Any:
        tensors = _tensors(args)
        around, described = circumstances(tensors[0].device.type), describe(tensors)
        if around is None or described is None:
            return function(*args)
        rest = tuple([_rest(value) for value in args])
        run = known.get(rest)
        if run is None:
            if len(known) >= _MOST:
                known.pop(next(iter(known)), None)
            run = known[rest] = backends.kernels(tensors[0]).recorded(
                lambda *tensors: function(*_filled(rest, tensors))
            )
        return run((around, described), tensors)

    return call


def _rest(value: Any) -> Any:
    """An argument without its tensors."""
    if isinstance(value, Tensor):
        return Tensor
    return tuple(map(_rest, value)) if isinstance(value, list | tuple) else value


def _filled(rest: Sequence[Any], tensors: Sequence[Tensor]) -> list[Any]:
    """The arguments of which `_rest` and `_tensors` are."""
    left = iter(tensors)

    def fill(value: Any) -> Any:
        if value is Tensor:
            return next(left)
        return [fill(item) for item in value] if isinstance(value, tuple) else value

    return [fill(value) for value in rest]


def _tensors(args: Sequence[Any]) -> list[Tensor]:
    """Those among the arguments, those of lists too, in their order."""
    found: list[Tensor] = []
    for value in args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [item for item in value if isinstance(item, Tensor)]
    return found
