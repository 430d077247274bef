"""A chain of linear layers as one autograd node.

One node for all layers lets the backward fold each activation's derivative into the matrix
product that makes its gradient, which a node per layer cannot. What computes it is a `Formula`: a kernel
a layer (`fastmlp.autograd.layers`), or one for all of them (`fastmlp.autograd.whole`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import Act
from fastmlp.autograd.node import Node, Route, records_grad, saves_as_given, torch_grads
from fastmlp.autograd.saved import Overwritable, Owners, aliases, may_be_written
from fastmlp.backends.base import Backend, Dropout, Net, Quantized

T = TypeVar("T")

#: weight, bias, PReLU's weight: the tensors of one layer.
PER_LAYER = 3
#: An input's tensors: see `pack`.
PER_INPUT = 4


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


def spread(values: Sequence[T], there: Sequence[bool]) -> list[T | None]:
    """``values`` of what is ``there``, in the places of all; None in the others."""
    found = iter(values)
    return [next(found) if is_there else None for is_there in there]


def layers_of(params: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
    """The flat parameters, a layer at a time."""
    return list(zip(params[0::PER_LAYER], params[1::PER_LAYER], params[2::PER_LAYER]))  # type: ignore[arg-type]


class Tensors(NamedTuple):
    """A chain's tensors, each in its place. A backward finds none that only frozen first layers read."""

    drops: Drops
    source: list[Tensor | None]  # the input's, as `pack` gives them
    params: list[Tensor | None]  # weight, bias and PReLU's weight of each layer
    kept: Sequence[Tensor | None]  # by the forward, for the backward


class Formula(NamedTuple):
    """What computes a chain: functions of a `Decided` and of the tensors that there are."""

    #: The output, and what it keeps for the backward.
    forward: Callable[..., tuple[Tensor, tuple[Tensor | None, ...]]]
    #: Of what needs a gradient, the output's gradient and what `saved_chain` gave: the tensors' gradients.
    backward: Callable[..., list[Tensor | None]]
    #: Of `Tensors`: the output once more, which is the last that is kept.
    output: Callable[[Decided, Tensors], Tensor]
    #: Whether of the layers before the first that needs a gradient nothing is read.
    skips_frozen: bool


class Decided(NamedTuple):
    """All of a chain but its tensors."""

    formula: Formula
    backend: Backend
    dtype: torch.dtype  # of the products
    acts: tuple[Act, ...]  # without tensors
    probabilities: tuple[float, ...]  # of the dropouts
    numbers: Numbers
    #: Which tensors there are, of the dropouts' seed, the input's and the layers': the others are not passed.
    there: tuple[bool, ...]
    head: int  # how many there are before the layers'
    first: int | None  # the first layer whose backward runs; None for none
    recompute: bool = False  # the backward of a whole net runs the forward again
    needs_input: bool = False  # whether the input needs a gradient
    read: tuple[bool, ...] = ()  # of which of the layers' tensors the backward's kernels read the values
    overwritable: bool = False  # the output may be written over though its derivative is computed from it

    @classmethod
    def of(
        cls,
        formula: Formula,
        backend: Backend,
        input: Input,
        net: Net,
        probabilities: tuple[float, ...],
        recompute: bool = False,
    ) -> Decided:
        """By what the tensors are, and which of them need a gradient now."""
        source, numbers = pack(input)
        tensors = (*source, *net.params)
        there = (any(probabilities), *(t is not None for t in tensors))
        records = records_grad()
        needs = [records and t is not None and t.requires_grad for t in (source[0], *net.params)]
        before = 1 + PER_INPUT
        first = first_needed(needs)
        return cls(
            formula,
            backend,
            net.dtype,
            tuple(net.acts),
            probabilities,
            numbers,
            there,
            head=sum(there[:before]),
            first=first if first is None or formula.skips_frozen else 0,
            recompute=recompute,
            needs_input=needs[0],
            read=tuple([recompute or r for r, t in zip(params_read(needs), there[before:]) if t]),
            overwritable=may_be_written(net.acts[-1], probabilities[-1] > 0),
        )

    def spread(self, values: Sequence[T]) -> list[T | None]:
        """``values`` of the tensors that there are, in the places of all; None in the others."""
        return spread(values, self.there)

    def placed(
        self,
        values: Sequence[Tensor | None],
        owned: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]] = list,
    ) -> Tensors:
        """The tensors that there are, or what `saved_chain` gave; the parameters as ``owned`` has them."""
        params = self.first_param(values)
        seed, *tensors = self.spread([*values[: self.head], *owned(values[params:])])
        kept = values[self.head : params]
        return Tensors(Drops(self.probabilities, seed), tensors[:PER_INPUT], tensors[PER_INPUT:], kept)

    def first_param(self, values: Sequence[Tensor | None]) -> int:
        """Where the layers' tensors begin in what `saved_chain` gave."""
        return len(values) - sum(self.there[1 + PER_INPUT :])

    def needs(self, given: Sequence[bool]) -> list[bool]:
        """What needs a gradient, of the tensors that there are: the input, then every parameter."""
        _, x, _, _, _, *params = self.spread(given)
        return [bool(need) for need in (x, *params)]

    def gradients(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Of the tensors that there are, from those of the input and of every parameter."""
        places = (None, grads[0], None, None, None, *grads[1:])
        return [grad for grad, there in zip(places, self.there) if there]


def first_needed(needs: Sequence[bool]) -> int | None:
    """The first layer whose backward runs, by what needs a gradient: the input, then every parameter."""
    if not any(needs):
        return None
    return 0 if needs[0] else (needs.index(True) - 1) // PER_LAYER


def params_read(needs: Sequence[bool]) -> list[bool]:
    """Of which parameters the backward's kernels read the values: the weights for dX, and slopes."""
    starts = range(1, len(needs), PER_LAYER)
    return [read for start in starts for read in (any(needs[:start]), False, True)]


def saved_chain(
    decided: Decided, given: Sequence[Tensor], kept: Sequence[Tensor | None]
) -> Sequence[Tensor | None]:
    """What a node saves of a chain's tensors, and of what the forward kept: `Decided.placed` reads it."""
    head = decided.head
    params = aliases(given[head:], decided.read)
    if not decided.first:
        return (*given[:head], *kept, *params)
    frozen = sum(decided.there[1 + PER_INPUT :][: PER_LAYER * decided.first])
    seed = given[: sum(decided.there[:1])]
    return (*seed, *[None] * (head - len(seed)), *kept, *[None] * frozen, *params[frozen:])


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

    Of a longer one these are the layers from ``first`` on. The output (M, N) of an input (..., K).
    """
    x = x.dense(dtype) if isinstance(x, Quantized) else x
    x = x.reshape(-1, x.shape[-1])
    for i, (act, (weight, bias, slope)) in enumerate(zip(acts, layers_of(params))):
        z = F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
        x = act._replace(weight=None if slope is None else slope.to(dtype))(z)
        dropout = drops.of(first + i)
        if dropout is not None:
            x = x * backend.dropout_mask(dropout, *x.shape) * (1 / (1 - dropout.p))
    return x


def reference_grads(
    decided: Decided,
    grad: Tensor,
    tensors: Tensors,
    given: Sequence[bool],
    closing: Callable[[Tensor], Tensor] = lambda y: y,
) -> list[Tensor | None]:
    """The gradients by torch's own ops, of the tensors that there are; ``closing`` follows the chain."""
    first: int = decided.first  # type: ignore[assignment]
    before: list[Tensor | None] = [None] * (PER_LAYER * first)
    needs = decided.needs(given)

    def again(x: Tensor, *params: Tensor | None) -> Tensor:
        entry = x if first else unpack([x, *tensors.source[1:]], decided.numbers)
        acts = decided.acts[first:]
        return closing(
            reference_chain(decided.backend, entry, params, acts, decided.dtype, tensors.drops, first)
        )

    x = tensors.kept[first - 1] if first else tensors.source[0]
    params = tensors.params[len(before) :]
    found = torch_grads(again, (x, *params), [needs[0], *needs[1 + len(before) :]], grad)
    return decided.gradients([found[0], *before, *found[1:]])


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
        """The gradients, by the route's `Formula`."""
        tensors, route, decided = ctx.saved_tensors, ctx.route, ctx.route.decided
        upstream = route.of(grad)
        if upstream is None:
            placed = decided.placed(tensors, ctx.owners.in_graph)
            return None, *reference_grads(decided, grad, placed, ctx.needs_input_grad[1:])
        if ctx.output is not None and ctx.output.is_written:
            y = decided.formula.output(decided, decided.placed(tensors, ctx.owners.values))
            params = decided.first_param(tensors)
            tensors = (*tensors[: params - 1], y, *tensors[params:])
        return None, *route.backward(ctx, upstream, grad, tensors)


def chain_route(decided: Decided, patience: int) -> Route[Decided]:
    """How all calls of a chain go."""
    formula = decided.formula
    return Route(decided, decided.backend, formula.forward, formula.backward, patience)
