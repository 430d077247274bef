"""A chain of linear layers a kernel at a time, each with its activation and dropout in the epilogue."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmlp import profiler_ranges
from fastmlp.autograd.chain import PER_LAYER, Decided, Formula, Input, Tensors, layers_of, unpack
from fastmlp.backends.base import NOTHING, BackwardOptions, Scale, Undo

_WEIGHT = operator.itemgetter(0)


def forward_layers(
    decided: Decided, tensors: Tensors, depth: int | None = None
) -> tuple[Tensor, list[Input], list[Tensor | None]]:
    """The output, each layer's input, and what each activation's derivative needs, of the first ``depth``."""
    x = unpack(tensors.source, decided.numbers)
    inputs: list[Input] = []
    saved: list[Tensor | None] = []
    first, layers = decided.first, profiler_ranges.each(layers_of(tensors.params)[:depth], _WEIGHT)
    for i, (act, (weight, bias, slope)) in enumerate(zip(decided.acts, layers)):
        act = act._replace(weight=slope)
        keep_z = first is not None and i >= first and not act.saves_output
        drop = tensors.drops.of(i)
        y, z = decided.backend.linear_act(x, weight, bias, act, keep_z, decided.dtype, drop)
        inputs.append(x)
        saved.append(None if act.name == "none" else (z if keep_z else y))
        x = y
    assert isinstance(x, Tensor)
    return x, inputs, saved


def kept_of(inputs: Sequence[Input], outputs: Sequence[Tensor | None], first: int) -> tuple[Any, ...]:
    """What a backward down to layer ``first`` reads of the layers' inputs, but the first, and outputs."""
    hidden = [None] * max(first - 1, 0) + list(inputs[max(first, 1) :])  # type: ignore[operator]
    # An output that is the next layer's input is saved once.
    own = [None if y is x else y for x, y in zip(inputs[1:], outputs)]
    return (*hidden, *[None] * first, *[*own, outputs[-1]][first:])


def inputs_and_outputs(decided: Decided, tensors: Tensors) -> tuple[list[Input], list[Tensor | None]]:
    """Of what `kept_of` gave each layer's input, and what its activation's derivative is computed from."""
    hidden = len(decided.acts) - 1
    inputs: list[Any] = [unpack(tensors.source, decided.numbers), *tensors.kept[:hidden]]
    outputs = list(tensors.kept[hidden:])
    for i in range(decided.first or 0, hidden):
        if outputs[i] is None and decided.acts[i].name != "none":
            outputs[i] = inputs[i + 1]
    return inputs, outputs


def backward_layers(
    decided: Decided,
    tensors: Tensors,
    grad: Tensor,
    needs: Sequence[bool],
    scale: Scale | None = None,
    masked: bool = False,
) -> list[Tensor | None]:
    """The gradients of the input and of every parameter, from the output's: dX with the previous f' in it.

    Args:
        decided: the chain.
        tensors: what the backward finds.
        grad: of the last of the layers that ``needs`` tells of.
        needs: what needs a gradient: the input, then every parameter.
        scale: a factor that every gradient still lacks; see `Scale`.
        masked: the last layer's activation and dropout are undone in ``grad`` already.
    """
    acts, params, drops = decided.acts, tensors.params, tensors.drops
    inputs, outputs = inputs_and_outputs(decided, tensors)
    grads: list[Tensor | None] = [None] * len(needs)
    layers = reversed(range(len(needs) // PER_LAYER))
    for i in profiler_ranges.each(layers, lambda i: params[PER_LAYER * i]):
        first = 1 + PER_LAYER * i
        if not any(needs[: first + PER_LAYER]):
            break
        weight, bias, slope = params[PER_LAYER * i : PER_LAYER * (i + 1)]
        assert weight is not None
        fold = drops.folds(acts, i - 1)
        options = BackwardOptions(
            decided.dtype,
            after=NOTHING if masked else Undo(acts[i]._replace(weight=slope), outputs[i], drops.of(i)),
            before=Undo(acts[i - 1], outputs[i - 1], drops.of(i - 1)) if fold else NOTHING,
            scale=scale,
            scale_input=i == 0,
            need_input=any(needs[:first]),
            need_params=any(needs[first : first + PER_LAYER]),
            bias_dtype=None if bias is None else bias.dtype,
        )
        layer = decided.backend.linear_backward(grad, inputs[i], weight, options)
        grads[first : first + 2] = layer.weight, layer.bias
        if layer.slope is not None and slope is not None:
            total = layer.slope.sum().view(1) if slope.numel() == 1 else layer.slope
            grads[first + 2] = total.to(slope.dtype)
        if layer.input is None:
            break
        grad, masked = layer.input, fold
        if i == 0 and isinstance(inputs[0], Tensor):
            grads[0] = grad.to(inputs[0].dtype)
    return [grad if need else None for grad, need in zip(grads, needs)]


def _forward(decided: Decided, *given: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    y, inputs, outputs = forward_layers(decided, decided.placed(given))
    return y, () if decided.first is None else kept_of(inputs, outputs, decided.first)


def _backward(
    decided: Decided, given: Sequence[bool], grad: Tensor, *tensors: Tensor | None
) -> list[Tensor | None]:
    needs = decided.needs(given[1:])
    return decided.gradients(backward_layers(decided, decided.placed(tensors), grad, needs))


def _output(decided: Decided, tensors: Tensors) -> Tensor:
    inputs, last = inputs_and_outputs(decided, tensors)[0], len(decided.acts) - 1
    weight, bias, _ = layers_of(tensors.params)[last]
    act, drop = decided.acts[last], tensors.drops.of(last)
    return decided.backend.linear_act(inputs[last], weight, bias, act, False, decided.dtype, drop)[0]


LAYERS = Formula(_forward, _backward, _output, skips_frozen=True)
