"""A chain of linear layers as one autograd node.

One node for all layers lets the backward fold each activation's derivative into the matrix
product that makes its gradient, which a node per layer cannot.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import profiler_ranges
from fastmlp.activations import Act
from fastmlp.autograd.node import Node, Route, records_grad, saves_as_given, torch_grads
from fastmlp.autograd.saved import Overwritable, Owners, aliases, may_be_written
from fastmlp.backends.base import NOTHING, Backend, Dropout, Quantized, Scale, Undo

#: weight, bias, PReLU's weight: the tensors of one layer.
PER_LAYER = 3
#: The Functions' tensors before those of the layers: see `pack`.
FIRST_PARAM = 4


class Drops(NamedTuple):
    """The dropouts of a chain: all masks come from one seed, and none is ever stored."""

    probabilities: tuple[float, ...]  # of each layer; 0 for none
    seed: Tensor | None  # (1,) int64 on the device

    def of(self, layer: int) -> Dropout | None:
        """The dropout after ``layer``; -1 is the input, which has none."""
        p = self.probabilities[layer] if layer >= 0 else 0.0
        return None if p == 0 or self.seed is None else Dropout(p, self.seed, layer)

    def folds(self, acts: Sequence[Act], layer: int) -> bool:
        """Whether activation and dropout of ``layer`` are undone where the next layer's dX is written.

        The slopes' gradient needs dY, so a PReLU is undone where its gradient is read.
        """
        if layer < 0 or acts[layer].name == "prelu":
            return False
        return acts[layer].name != "none" or self.of(layer) is not None


#: What a chain is fed: a matrix, or integers that stand for one.
Input = Tensor | Quantized
#: Of a quantized input what is no tensor: scale and shift.
Numbers = tuple[Any, ...] | None


def pack(x: Input) -> tuple[list[Tensor | None], Numbers]:
    """``x`` as tensors that autograd can save, and the rest of it."""
    if isinstance(x, Tensor):
        return [x, None, None, None], None
    return [f if isinstance(f, Tensor) else None for f in x], tuple(
        None if isinstance(f, Tensor) else f for f in x
    )


def unpack(tensors: Sequence[Tensor | None], numbers: Numbers) -> Input:
    """What `pack` was given."""
    if numbers is None:
        return tensors[0]  # type: ignore[return-value]
    return Quantized(*(n if t is None else t for t, n in zip(tensors, numbers)))


def forward_chain(
    backend: Backend,
    x: Input,
    params: Sequence[Tensor | None],
    acts: Sequence[Act],
    dtype: torch.dtype,
    first: int | None,
    drops: Drops,
) -> tuple[Tensor, list[Input], list[Tensor | None]]:
    """The output, each layer's input, and what each activation's derivative needs.

    Args:
        first: the first layer whose backward may follow; None for none.
    """
    inputs: list[Input] = []
    saved: list[Tensor | None] = []
    layers = profiler_ranges.each(layers_of(params), _WEIGHT)
    for i, (act, (weight, bias, slope)) in enumerate(zip(acts, layers)):
        act = act._replace(weight=slope)
        keep_z = first is not None and i >= first and not act.saves_output
        y, z = backend.linear_act(x, weight, bias, act, keep_z, dtype, drops.of(i))
        inputs.append(x)
        saved.append(None if act.name == "none" else (z if keep_z else y))
        x = y
    assert isinstance(x, Tensor)
    return x, inputs, saved


def backward_chain(
    backend: Backend,
    grad: Tensor,
    inputs: Sequence[Input],
    params: Sequence[Tensor | None],
    saved: Sequence[Tensor | None],
    acts: Sequence[Act],
    needs: Sequence[bool],
    dtype: torch.dtype,
    drops: Drops,
    scale: Scale | None = None,
    masked: bool = False,
) -> list[Tensor | None]:
    """The gradients of the input and of every parameter, from the output's.

    Args:
        needs: what needs a gradient: the input, then every parameter.
        scale: a factor that every gradient still lacks; see `Scale`.
        drops: the forward's.
        masked: the last layer's activation and dropout are undone in ``grad`` already.
    """
    grads: list[Tensor | None] = [None] * len(needs)
    for i in profiler_ranges.each(reversed(range(len(acts))), lambda i: params[PER_LAYER * i]):
        first = 1 + PER_LAYER * i
        if not any(needs[: first + PER_LAYER]):
            break
        weight, bias, slope = params[PER_LAYER * i : PER_LAYER * (i + 1)]
        assert weight is not None
        fold = drops.folds(acts, i - 1)
        layer = backend.linear_backward(
            grad,
            inputs[i],
            weight,
            after=NOTHING if masked else Undo(acts[i]._replace(weight=slope), saved[i], drops.of(i)),
            before=Undo(acts[i - 1], saved[i - 1], drops.of(i - 1)) if fold else NOTHING,
            scale=scale,
            scale_input=i == 0,
            need_input=any(needs[:first]),
            need_params=any(needs[first : first + PER_LAYER]),
            bias_dtype=None if bias is None else bias.dtype,
            dtype=dtype,
        )
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


#: Of a layer's tensors.
_WEIGHT = operator.itemgetter(0)


def layers_of(params: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """The flat parameters, a layer at a time."""
    return list(zip(params[0::PER_LAYER], params[1::PER_LAYER], params[2::PER_LAYER]))  # type: ignore[arg-type]


def reference_chain(
    backend: Backend,
    x: Input,
    params: Sequence[Tensor | None],
    acts: Sequence[Act],
    dtype: torch.dtype,
    drops: Drops,
    first: int = 0,
) -> Tensor:
    """The same chain, masks included, by torch's own differentiable ops: for a double backward.

    Of a longer one these are the layers from ``first`` on.
    """
    if isinstance(x, Quantized):
        x = x.dense(dtype)
    for i, (act, (weight, bias, slope)) in enumerate(zip(acts, layers_of(params))):
        z = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        x = act._replace(weight=None if slope is None else slope.to(dtype))(z)
        dropout = drops.of(first + i)
        if dropout is not None:
            x = x * backend.dropout_mask(dropout, *x.shape) * (1 / (1 - dropout.p))
    return x


class Saved(NamedTuple):
    """A chain as its backward finds it; nothing of the layers before the first whose backward runs."""

    drops: Drops
    source: list[Tensor | None]  # the input's, as `pack` gives them
    inputs: list[Input]  # of each layer
    outputs: list[Tensor | None]  # what each activation's derivative is computed from
    params: list[Tensor | None]  # `aliases`

    @classmethod
    def of(
        cls,
        tensors: Sequence[Tensor | None],
        decided: Decided,
        owned: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]] = list,
    ) -> Saved:
        """What `saved_chain` gave; the parameters as ``owned`` has them."""
        depth, head = len(decided.acts), decided.head
        kept, after = tensors[head : head + 2 * depth - 1], owned(tensors[head + 2 * depth - 1 :])
        seed, *rest = decided.spread([*tensors[:head], *after])
        source, params = rest[:FIRST_PARAM], rest[FIRST_PARAM:]
        inputs: list[Input] = [unpack(source, decided.numbers), *kept[: depth - 1]]  # type: ignore[list-item]
        outputs = list(kept[depth - 1 :])
        for i in range(decided.first or 0, depth - 1):
            if outputs[i] is None and decided.acts[i].name != "none":  # see `kept_of`
                outputs[i] = inputs[i + 1]  # type: ignore[assignment]
        return cls(Drops(decided.probabilities, seed), source, inputs, outputs, params)


def first_needed(needs: Sequence[bool]) -> int | None:
    """The first layer whose backward runs, by what needs a gradient: the input, then every parameter."""
    if not any(needs):
        return None
    return 0 if needs[0] else (needs.index(True) - 1) // PER_LAYER


def params_read(needs: Sequence[bool]) -> list[bool]:
    """Of which parameters the backward's kernels read the values: the weights for dX, and slopes."""
    starts = range(1, len(needs), PER_LAYER)
    return [read for start in starts for read in (any(needs[:start]), False, True)]


class Decided(NamedTuple):
    """All of a chain but its tensors."""

    backend: Backend
    dtype: torch.dtype  # of the products
    acts: tuple[Act, ...]  # without tensors
    probabilities: tuple[float, ...]  # of the dropouts
    numbers: Numbers
    #: Which tensors there are, of the dropouts' seed, the input's and the layers': the others are not passed.
    there: tuple[bool, ...]
    head: int  # how many there are before the layers'
    needs_input: bool  # whether the input needs a gradient
    first: int | None  # the first layer whose backward runs; None for none
    read: tuple[bool, ...]  # of which of the layers' tensors the backward's kernels read the values
    overwritable: bool  # the output may be written over though its derivative is computed from it
    recompute: bool  # the backward of a whole net runs the forward again

    @classmethod
    def of(
        cls,
        backend: Backend,
        dtype: torch.dtype,
        acts: Sequence[Act],
        probabilities: tuple[float, ...],
        numbers: Numbers,
        tensors: Sequence[Tensor | None],
        recompute: bool = False,
    ) -> Decided:
        """``tensors``: the input's, as `pack` gives them, and the layers'."""
        written = may_be_written(acts[-1], probabilities[-1] > 0)
        there = (any(probabilities), *(t is not None for t in tensors))
        records = records_grad()
        needs = [records and t is not None and t.requires_grad for t in (tensors[0], *tensors[FIRST_PARAM:])]
        before = FIRST_PARAM + 1
        read = tuple([recompute or r for r, t in zip(params_read(needs), there[before:]) if t])
        head, first = sum(there[:before]), first_needed(needs)
        products = backend, dtype, tuple(acts), probabilities, numbers
        return cls(*products, there, head, needs[0], first, read, written, recompute)

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """``values`` of the tensors that there are, in the places of all; None in the others."""
        found = iter(values)
        return [next(found) if there else None for there in self.there]

    def needs(self, given: Sequence[bool]) -> list[bool]:
        """What needs a gradient, of the tensors that there are: the input, then every parameter."""
        _, x, _, _, _, *params = self.spread(given)
        return [bool(need) for need in (x, *params)]

    def gradients(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Of the tensors that there are, from those of the input and of every parameter."""
        places = (None, grads[0], None, None, None, *grads[1:])
        return [grad for grad, there in zip(places, self.there) if there]


def reference_grads(
    decided: Decided,
    grad: Tensor,
    saved: Saved,
    given: Sequence[bool],
    closing: Callable[[Tensor], Tensor] = lambda y: y,
) -> list[Tensor | None]:
    """The gradients by torch's own ops, of the tensors that there are; ``closing`` follows the chain."""
    first: int = decided.first  # type: ignore[assignment]
    before: list[Tensor | None] = [None] * (PER_LAYER * first)
    needs = decided.needs(given)

    def again(x: Tensor, *params: Tensor | None) -> Tensor:
        entry = x if first else unpack([x, *saved.source[1:]], decided.numbers)
        acts = decided.acts[first:]
        return closing(
            reference_chain(decided.backend, entry, params, acts, decided.dtype, saved.drops, first)
        )

    x = saved.inputs[first] if first else saved.source[0]
    params = saved.params[len(before) :]
    found = torch_grads(again, (x, *params), [needs[0], *needs[1 + len(before) :]], grad)  # type: ignore[arg-type]
    return decided.gradients([found[0], *before, *found[1:]])


def chain_forward(decided: Decided, *given: Tensor) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The output, and of each layer's input and of what its derivative needs all that the backward reads."""
    seed, *tensors = decided.spread(given)
    source, params = tensors[:FIRST_PARAM], tensors[FIRST_PARAM:]
    y, inputs, outputs = forward_chain(
        decided.backend,
        unpack(source, decided.numbers),
        params,
        decided.acts,
        decided.dtype,
        decided.first,
        Drops(decided.probabilities, seed),
    )
    return y, () if decided.first is None else kept_of(inputs, outputs, decided.first)


def kept_of(inputs: Sequence[Input], outputs: Sequence[Tensor | None], first: int) -> tuple[Any, ...]:
    """What a backward down to layer ``first`` reads of the layers' inputs, but the first, and outputs."""
    hidden = [None] * max(first - 1, 0) + list(inputs[max(first, 1) :])  # type: ignore[operator]
    # An output that is the next layer's input is saved once.
    own = [None if y is x else y for x, y in zip(inputs[1:], outputs)]
    return (*hidden, *[None] * first, *[*own, outputs[-1]][first:])


def saved_chain(
    decided: Decided, given: Sequence[Tensor], kept: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """What a node saves of a chain's tensors, and of what `kept_of` gave: `Saved.of` reads it."""
    head = decided.head
    params = aliases(given[head:], decided.read)
    if not decided.first:
        return (*given[:head], *kept, *params)
    frozen = sum(decided.there[FIRST_PARAM + 1 :][: PER_LAYER * decided.first])
    seed = given[: sum(decided.there[:1])]
    return (*seed, *[None] * (head - len(seed)), *kept, *[None] * frozen, *params[frozen:])


def chain_backward(
    decided: Decided, given: Sequence[bool], grad: Tensor, *tensors: Tensor | None
) -> list[Tensor | None]:
    """One launch a layer: dX with the previous f' in its epilogue, beside dW and db."""
    saved = Saved.of(tensors, decided)
    grads = backward_chain(
        decided.backend,
        grad,
        saved.inputs,
        saved.params,
        saved.outputs,
        decided.acts,
        decided.needs(given[1:]),
        decided.dtype,
        saved.drops,
    )
    return decided.gradients(grads)


class Chain(Node):
    """X (M, K) through a chain of layers to Y (M, N), where a backward may follow."""

    @staticmethod
    def forward(ctx: Any, route: Route[Decided], *given: Tensor) -> Tensor:
        """``given``: of the dropouts' seed, the input's tensors and the layers' those that there are."""
        y, kept = route.forward(None, given)
        decided = route.decided
        ctx.route, ctx.saved_as_given, ctx.output = route, saves_as_given(), None
        ctx.owners = Owners(given[decided.head :])
        if decided.overwritable and kept[-1] is y:
            kept, ctx.output = (*kept[:-1], y.data), Overwritable(y)
        ctx.save_for_backward(*saved_chain(decided, given, kept))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """See `chain_backward`."""
        tensors, route = ctx.saved_tensors, ctx.route
        upstream = route.of(grad)
        if upstream is None:
            saved = Saved.of(tensors, route.decided, ctx.owners.in_graph)
            return None, *reference_grads(route.decided, grad, saved, ctx.needs_input_grad[1:])
        if ctx.output is not None and ctx.output.is_written:
            tensors = _output_again(route.decided, ctx.owners, tensors)
        return None, *route.backward(ctx, upstream, grad, tensors)


def _output_again(
    decided: Decided, owners: Owners, tensors: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """What was saved, with the output, which somebody wrote over, computed anew."""
    saved, last = Saved.of(tensors, decided, owners.values), len(decided.acts) - 1
    weight, bias, _ = saved.params[-PER_LAYER:]
    assert weight is not None
    act, drop = decided.acts[-1], saved.drops.of(last)
    y, _ = decided.backend.linear_act(saved.inputs[-1], weight, bias, act, False, decided.dtype, drop)
    place = decided.head + 2 * last
    return (*tensors[:place], y, *tensors[place + 1 :])


def chain_route(decided: Decided, patience: int) -> tuple[Route[Decided], type[Node]]:
    """How a chain goes a layer at a time, and the node for where a backward may follow."""
    return Route(decided, decided.backend, chain_forward, chain_backward, patience), Chain
