"""Ours and torch's side by side: they start equal and are changed by the same lines."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from tests.classifiers import OPTIMIZERS

ACTS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda n: nn.ReLU(),
    "relu in place": lambda n: nn.ReLU(inplace=True),
    "leaky": lambda n: nn.LeakyReLU(0.2),
    "elu in place": lambda n: nn.ELU(inplace=True),
    "prelu": lambda n: nn.PReLU(),
    "sigmoid": lambda n: nn.Sigmoid(),
    "tanh": lambda n: nn.Tanh(),
    "gelu": lambda n: nn.GELU(),
    "silu": lambda n: nn.SiLU(),
    "identity": lambda n: nn.Identity(),
    "softplus": lambda n: nn.Softplus(),
    "no dropout": lambda n: nn.Dropout(0.0),
}


class Side:
    """A net, a loss and an optimizer of one house, and the functional losses beside them."""

    def __init__(self, ours: bool) -> None:
        self.ours = ours
        self.net: nn.Sequential = nn.Sequential()
        self.loss: nn.Module = nn.MSELoss()
        self.optimizer: torch.optim.Optimizer
        self.stranger = nn.Parameter(torch.zeros(3))  # a parameter of the optimizer's, but not of the net
        self._step: fastmlp.TrainStep | None = None

    @property
    def dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.net.parameters()), torch.float32)

    @property
    def layers(self) -> list[nn.Linear]:
        return [m for m in self.net.modules() if isinstance(m, nn.Linear)]

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """One training step: `TrainStep`, or the lines that it stands for."""
        if self.ours:
            if self._step is None:
                self._step = fastmlp.TrainStep(self.net, self.loss, self.optimizer)
            return self._step(x, y)
        self.optimizer.zero_grad()
        value = self.loss(self.net(x), y)
        value.backward()
        self.optimizer.step()
        return value.detach()

    def renew(self) -> None:
        """Forget the step: net, loss or optimizer is another object now."""
        self._step = None

    def cross_entropy(self, *args: Any, **kwargs: Any) -> Tensor:
        return (fastmlp.functional if self.ours else F).cross_entropy(*args, **kwargs)

    def mse_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        return (fastmlp.functional if self.ours else F).mse_loss(*args, **kwargs)

    def linear_cross_entropy(
        self, x: Tensor, w: Tensor, y: Tensor, b: Tensor | None, **kwargs: Any
    ) -> Tensor:
        if self.ours:
            return fastmlp.functional.linear_cross_entropy(x, w, y, linear_bias=b, **kwargs)
        return F.cross_entropy(F.linear(x, w, b), y, **kwargs)

    def exact(self) -> Side:
        """A copy in float64."""
        made = Side(ours=False)
        made.net, made.loss, made.optimizer, made.stranger = copy.deepcopy(
            (self.net, self.loss, self.optimizer, self.stranger)
        )
        if made.stranger.grad is None and self.stranger.grad is not None:
            made.stranger.grad = self.stranger.grad.clone()
        made.net.double()
        made.loss.double()
        for p, q in zip(made.net.parameters(), self.net.parameters()):
            p.grad = None if q.grad is None else q.grad.double()
        for state in made.optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim() and value.is_floating_point():
                    state[key] = value.double()
        return made


def build(
    ours: bool, fused: bool, widths: tuple[int, ...], acts: tuple[str, ...], bias: bool, nested: bool
) -> Any:
    """A Sequential of linear layers with activations between them: ours where both flags say so."""
    kind = fastmlp.Sequential if ours and fused else nn.Sequential
    children: list[nn.Module] = []
    for i, (k, n) in enumerate(itertools.pairwise(widths)):
        children.append(nn.Linear(k, n, bias))
        if i < len(acts):
            children.append(ACTS[acts[i]](n))
    if nested:
        children = [kind(*children[:2]), *children[2:]]
    return kind(*children)


def loss_of(ours: bool, kind: str, options: dict[str, Any]) -> nn.Module:
    if kind == "mse":
        return (fastmlp.MSELoss if ours else nn.MSELoss)(reduction=options["reduction"])
    return (fastmlp.CrossEntropyLoss if ours else nn.CrossEntropyLoss)(**options)


def optimizer_of(side: Side, name: str) -> torch.optim.Optimizer:
    """Over the net and a parameter outside it."""
    made = OPTIMIZERS[name](list(side.net.parameters()))
    made.add_param_group({"params": [side.stranger]})
    return made


LAYOUTS = ("contiguous", "transposed", "sliced", "offset", "expanded", "overlapping", "negated")


def relaid(values: Tensor, layout: str) -> Tensor:
    """``values`` in another layout; expanded and overlapping ones cannot all be kept."""
    values = values.detach()
    if not values.numel() or not values.dim():
        return values.clone()
    if layout == "transposed":
        return values.movedim(-1, 0).clone(memory_format=torch.contiguous_format).movedim(0, -1)
    if layout == "sliced":
        wide = values.new_zeros(*values.shape[:-1], 3 * values.shape[-1])[..., 1::3]
        return wide.copy_(values)
    if layout == "offset":
        return values.new_zeros(values.numel() + 1)[1:].view(values.shape).copy_(values)
    if layout == "expanded":
        return values[:1].clone().expand(values.shape)
    if layout == "overlapping":
        memory = values.new_zeros(sum(values.shape))
        memory[: values.shape[-1]] = values.reshape(-1, values.shape[-1])[0]
        return memory.as_strided(values.shape, (1,) * values.dim())
    if layout == "negated":
        return torch._neg_view(-values)
    return values.clone(memory_format=torch.contiguous_format)


class Marked(nn.Linear):
    """A subclass, whose forward may be anything."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Odd(Tensor):
    """A tensor type that does nothing of its own, and must not be lost."""


def replace_weight(layer: nn.Linear, which: str, how: str, layout: str) -> None:
    """Another layout for a parameter, by one of the ways that there are."""
    old = getattr(layer, which)
    if old is None:
        return
    made = relaid(old, layout)
    if how == "data":
        old.data = made
    elif how == "assign":
        layer.load_state_dict({**layer.state_dict(), which: made}, assign=True)
    elif how == "subclass":
        setattr(layer, which, nn.Parameter(made.as_subclass(Odd)))
    elif how == "buffer":
        delattr(layer, which)
        layer.register_buffer(which, made)
    else:
        setattr(layer, which, nn.Parameter(made, requires_grad=old.requires_grad))
