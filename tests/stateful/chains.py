"""Programs over a net and its loss as modules, and over the functional forms of a net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from tests.stateful import ambient
from tests.stateful.nets import _named
from tests.stateful.sides import Side, relaid

KINDS = ("loss", "loss", "closed", "closed", "linear_act", "mlp")
_ACTS = {"relu": F.relu, "tanh": F.tanh, "gelu": F.gelu, None: lambda x: x}


class ChainCall(NamedTuple):
    """A net into its loss, or its parameters through a function; and the gradients."""

    kind: str = "loss"
    rows: int = 3
    layout: str = "contiguous"
    input_grad: bool = False
    target: str = "classes"
    act: str | None = "relu"
    plan: str = "auto"
    contexts: tuple[str, ...] = ()
    seed: int = 0

    def run(self, side: Side, exact: bool) -> dict[str, Any]:
        """Do it to one side."""
        torch.default_generator.manual_seed(self.seed)
        layers = side.layers
        for p in side.net.parameters():
            p.grad = None
        x = relaid(torch.randn(self.rows, layers[0].in_features).to(side.dtype), self.layout)
        x.requires_grad_(self.input_grad)
        target = self._target(side, layers[-1].out_features)
        with ambient.entered(self.contexts, exact, ambient.AROUND):
            with ambient.entered(self.contexts, exact, ambient.FORWARD):
                value = self._value(side, x, target)
            found = {"value": value.detach().clone(), "facts": (value.requires_grad, value.dtype)}
            if value.requires_grad:
                value.sum().backward()
        inputs = {f"grad {n}": t for n, t in [("x", x), *side.net.named_parameters()]}
        return found | _named(inputs, [t.grad for t in inputs.values()])

    def _target(self, side: Side, outputs: int) -> Tensor:
        if isinstance(side.loss, nn.MSELoss):
            return torch.randn(self.rows, outputs).to(side.dtype)
        if self.target == "probabilities":
            return torch.rand(self.rows, outputs).softmax(1).to(side.dtype)
        return torch.randint(outputs, (self.rows,))

    def _value(self, side: Side, x: Tensor, target: Tensor) -> Tensor:
        layers = side.layers
        if self.kind == "linear_act":
            return _linear_act(side, x, layers[0], self.act)
        if self.kind == "mlp":
            return _mlp(side, x, layers, self.act, self.plan)
        if self.kind == "closed" and side.ours and isinstance(side.net, fastmlp.Sequential):
            squared = isinstance(side.loss, nn.MSELoss)
            method = side.net.mse_loss if squared else side.net.cross_entropy
            closed = method(x, target, side.loss)  # type: ignore[arg-type]
            if closed is not None:
                return closed[0]
        return side.loss(side.net(x), target)


def _linear_act(side: Side, x: Tensor, layer: nn.Linear, act: str | None) -> Tensor:
    if side.ours:
        return fastmlp.functional.linear_act(x, layer.weight, layer.bias, act)
    return _ACTS[act](F.linear(x, layer.weight, layer.bias))


def _mlp(side: Side, x: Tensor, layers: Sequence[nn.Linear], act: str | None, plan: str) -> Tensor:
    weights, biases = [m.weight for m in layers], [m.bias for m in layers]
    if side.ours:
        return fastmlp.functional.mlp(x, weights, biases, act, plan=plan)
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        x = F.linear(x, weight, bias)
        x = _ACTS[act](x) if i < len(weights) - 1 else x
    return x
