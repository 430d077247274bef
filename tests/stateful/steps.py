"""Programs over a training step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.stateful import ambient
from tests.stateful.sides import Side, relaid

#: Of those around a forward: what a whole step can stand in.
CONTEXTS = ("autocast", "hooks", "function mode", "overriding mode")


class StepCall(NamedTuple):
    """Steps on one batch."""

    rows: int = 3
    layout: str = "contiguous"
    target: str = "classes"
    contexts: tuple[str, ...] = ()
    stale: bool = False  # whether the parameter outside the net has a gradient of something else
    steps: int = 1
    seed: int = 0

    def run(self, side: Side, exact: bool) -> dict[str, Any]:
        """Do it to one side; ``exact`` for its copy in float64."""
        x, y = self._batch(side, exact)
        if self.stale:
            side.stranger.grad = torch.ones_like(side.stranger)
        tables = {**ambient.AROUND, **{name: ambient.FORWARD[name] for name in CONTEXTS}}
        found: dict[str, Any] = {}
        for i in range(self.steps):
            # Anew for each: autocast keeps the cast parameters as long as it is entered, which a loop minds.
            with ambient.entered(self.contexts, exact, tables):
                found[f"loss {i}"] = side.step(x, y).detach()
        for p in side.net.parameters():
            p.grad = None  # the engines neither read nor fill them
        found |= {name: p.detach().clone() for name, p in side.net.named_parameters()}
        found |= {"outside": side.stranger.detach().clone()}
        for i, p in enumerate([*side.net.parameters(), side.stranger]):
            state = side.optimizer.state.get(p, {})
            found |= {
                f"state {i} {k}": state[k].clone() for k in sorted(state) if isinstance(state[k], Tensor)
            }
        return found

    def _batch(self, side: Side, exact: bool) -> tuple[Tensor, Tensor]:
        torch.default_generator.manual_seed(self.seed)
        layers = side.layers
        dtype = side.dtype
        x = relaid(torch.randn(self.rows, layers[0].in_features).to(dtype), self.layout)
        outputs = layers[-1].out_features
        if isinstance(side.loss, nn.MSELoss):
            return x, torch.randn(self.rows, outputs).to(dtype)
        if self.target == "probabilities":
            return x, torch.rand(self.rows, outputs).softmax(1).to(dtype)
        classes = torch.randint(outputs, (self.rows,))
        return x, classes[: self.rows - 1] if self.target == "shorter" else classes
