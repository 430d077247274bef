"""By what a chain of layers goes: the kernels, ops that ``torch.compile`` keeps whole, or torch's own."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends, ops, profiler_ranges
from fastmlp.activations import Act
from fastmlp.autograd.chain import (
    PER_INPUT,
    Chain,
    Decided,
    Drops,
    Numbers,
    chain_route,
    layers_of,
    pack,
    spread,
    unpack,
)
from fastmlp.autograd.layers import LAYERS
from fastmlp.autograd.node import Route
from fastmlp.autograd.whole import WHOLE
from fastmlp.backends import Traced, onednn
from fastmlp.backends.base import Net, Quantized
from fastmlp.backends.route import Routes
from fastmlp.costs.choice import choose
from fastmlp.functional.checks import check_chain, fits_kernels
from fastmlp.functional.layer import Layer, Layers
from fastmlp.functional.quantized import is_constant, like
from fastmlp.ops.chain import as_matrix


class Kernels(NamedTuple):
    """A chain by the kernels."""

    route: Route[Decided]
    recorded: bool  # whether a backward may follow
    device: torch.device | None  # where its dropouts' seed is drawn, if it has any
    leading: torch.Size | None  # of the input, if it is not a matrix

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """The output, of tensors as `flat` gives them."""
        if self.leading is not None:
            tensors = (as_matrix(tensors[0]), *tensors[1:])
        if self.device is not None:
            tensors = (draw_seed(self.device), *tensors)
        y = Chain.record(self.route, *tensors) if self.recorded else self.route.forward(None, tensors)[0]
        return y if self.leading is None else y.view(*self.leading, y.shape[1])


@dataclass
class Ops:
    """A chain by ops of ours, in a trace."""

    layers: Layers
    dtype: torch.dtype  # of the products
    plan: str

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """The output; the input is the first of the ``tensors``."""
        x, layers = tensors[0], self.layers
        if self.plan != "layers":
            return ops.whole_net(x, layers.params, layers.acts, self.dtype, self.plan == "recompute")
        drops = Drops(layers.dropouts, draw_seed(x.device) if any(layers.dropouts) else None)
        return ops.chain(x, layers.params, layers.acts, self.dtype, drops)


@dataclass
class Torch:
    """A chain by torch's own ops."""

    acts: list[Act]
    dropouts: tuple[float, ...]
    numbers: Numbers
    there: list[bool]  # which of the input's and the layers' tensors there are

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """The output, of tensors as `flat` gives them."""
        every = spread(tensors, self.there)
        input, params = unpack(every[:PER_INPUT], self.numbers), layers_of(every[PER_INPUT:])
        layers = [
            Layer(w, b, a._replace(weight=s), d) for (w, b, s), a, d in zip(params, self.acts, self.dropouts)
        ]
        return aten_chain(input if isinstance(input, Tensor) else input.dense(layers[0].weight.dtype), layers)


Way = Kernels | Ops | Torch
#: By what a chain goes, its tensors being as `flat` gives them.
WAYS: Routes[Way] = Routes()


def decide(key: Hashable | None, input: Tensor | Quantized, layers: Layers, plan: str) -> Way:
    """By what a chain goes, and all that is to be decided about that; kept if there is a ``key``.

    Raises:
        ValueError, TypeError, RuntimeError, IndexError: as `fastmlp.functional.chain`.
    """
    x, constant = like(input, layers[0].weight), is_constant(input)
    check_chain(x, layers)
    taken = constant and fits_kernels(x, layers)
    backend, dtype = backends.choose(x).backend, backends.compute_dtype(x)
    traced, quantized = isinstance(backend, Traced), isinstance(input, Quantized)
    # The ops of a trace know no integers, which Inductor dequantizes.
    if backend is None or not taken or (traced and quantized):
        source, numbers = pack(input)
        there = [t is not None for t in (*source, *layers.params)]
        return WAYS.keep(key, Torch(layers.acts, layers.dropouts, numbers, there))
    batch = None if traced else x.numel() // x.shape[-1]
    input_grad = torch.is_grad_enabled() and x.requires_grad
    unfit = "the input is quantized" if quantized else _unfit(layers)
    plan = choose(plan, layers.dense, batch, dtype, x.device, input_grad, unfit)
    if isinstance(backend, Traced):
        return Ops(layers, dtype, plan)
    formula, net = LAYERS if plan == "layers" else WHOLE, Net(layers.params, layers.acts, dtype)
    decided = Decided.of(formula, backend, input, net, layers.dropouts, plan == "recompute")
    route = chain_route(decided, WAYS.patience(key))
    seeded, leading = x.device if any(layers.dropouts) else None, None if x.dim() == 2 else x.shape[:-1]
    return WAYS.keep(key, Kernels(route, decided.first is not None, seeded, leading))


def _unfit(layers: Layers) -> str | None:
    """Why the whole-network kernels do not read these parameters; None if they do."""
    dtype = layers[-1].weight.dtype
    if all(t.dtype == dtype and t.is_contiguous() for t in layers.there):
        return None
    return "a parameter is not contiguous, or of another dtype than the others"


def aten_chain(input: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The chain by ATen's ops with ATen's autograd, or without one by oneDNN's."""
    # oneDNN adds in another order than what is behind F.linear: not where torch's own sums are asked for.
    linear = onednn.linear if backends.requested() == "auto" and onednn.applies(input) else F.linear
    for weight, bias, act, dropout in profiler_ranges.each(layers, _WEIGHT):
        # The fresh 2-D result of addmm may be overwritten; of more dimensions it is a view. The sigmoid of
        # integers is no integer. Of leaky_relu autograd keeps the input: the output is the caller's.
        z = linear(input, weight, bias)
        own = z.dim() == 2 and z.is_floating_point() and not (z.requires_grad and act.name == "leaky_relu")
        input = act.write_over(z) if own else act(z)
        if dropout:
            input = F.dropout(input, dropout)
    return input


_WEIGHT = operator.attrgetter("weight")


def draw_seed(device: torch.device) -> Tensor:
    """A fresh seed for dropouts from torch's generator of ``device``; nothing waits for it.

    So ``torch.manual_seed``, checkpointing and CUDA graphs do with it what they do with torch's own.
    """
    return torch.randint(2**63 - 1, (1,), device=device)
