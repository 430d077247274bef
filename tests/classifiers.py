"""Random nets with random data, losses and optimizers, for the tests of the training engine."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastmlp
from tests.problems import SIZES

#: A name for each of the update's rules, and the optimizer that it is.
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.2, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True),
    # A large ε: the sign of a gradient that is all rounding should not decide.
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-2, weight_decay=0.05),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-2, betas=(0.8, 0.95)),
    "groups": lambda p: torch.optim.AdamW(
        [{"params": p[::2], "weight_decay": 0.1}, {"params": p[1::2], "lr": 0.02, "weight_decay": 0.0}],
        lr=0.01,
        eps=1e-2,
    ),
}
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    nn.GELU,
    nn.Tanh,
    nn.SiLU,
    nn.Sigmoid,
    nn.Identity,
    lambda: nn.LeakyReLU(0.2),
    lambda: nn.LeakyReLU(-0.3),
    lambda: nn.GELU("tanh"),
)


@dataclass
class Run:
    """A net, its loss and its optimizer; `copy` gives another that starts the same."""

    net: nn.Sequential
    loss: nn.Module
    optimizer: torch.optim.Optimizer

    def copy(self) -> Run:
        return Run(*copy.deepcopy((self.net, self.loss, self.optimizer)))

    def double(self) -> Run:
        """The same in float64."""
        run = self.copy()
        run.net.double()
        run.loss.double()
        return run

    def parameters(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.net.parameters()]

    def states(self) -> list[Tensor]:
        """The optimizer's tensors of the parameters' shapes, by name."""
        found = []
        for p in self.net.parameters():
            state = self.optimizer.state[p]
            found += [state[k] for k in sorted(state) if k != "step" and state[k] is not None]
        return found

    def step(self, x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        """An ordinary step; 16-bit dtypes by autocast."""
        wide = next(self.net.parameters()).dtype
        x = x.to(wide) / 255 if x.dtype == torch.uint8 else x.to(wide)
        y = y.to(wide) if y.is_floating_point() else y  # backward takes no two dtypes before torch 2.12
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32 and wide == torch.float32):
            value = self.loss(self.net(x), y)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()
        return value.detach()


def random_run(
    rng: random.Random, optimizer: str, device: str, depth: int | None = None, squared: bool = False
) -> Run:
    """Any widths, activations, biases and options of the loss, z_loss too; ``squared`` for an MSELoss."""
    depth = depth or rng.choice([2, 2, 3, 4])
    widths = [rng.choice(SIZES) for _ in range(depth)] + [rng.choice([2, 10, 16, 17, 33])]
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers += [nn.Linear(k, n, bias=rng.random() < 0.8), rng.choice(ACTIVATIONS)()]
    loss = fastmlp.CrossEntropyLoss(
        weight=torch.rand(widths[-1]) + 0.1 if rng.random() < 0.3 else None,
        ignore_index=rng.choice([-100, 1]),
        reduction=rng.choice(["mean", "mean", "sum"]),
        label_smoothing=rng.choice([0.0, 0.0, 0.1]),
        z_loss=rng.choice([0.0, 0.0, 1e-2]),
    )
    net = nn.Sequential(*layers[:-1]).to(device)
    run = Run(net, loss.to(device), OPTIMIZERS[optimizer](list(net.parameters())))
    if squared:
        run.loss = fastmlp.MSELoss(reduction=loss.reduction)
        for group in run.optimizer.param_groups if loss.reduction == "sum" else ():
            group["lr"] *= 1e-4  # the sum's curvature is that of all elements
    return run


def random_data(rng: random.Random, run: Run, rows: int, device: str) -> tuple[Tensor, Tensor]:
    """uint8 or float32 features, in any layout, and labels or, for a squared error, numbers."""
    features, classes = run.net[0].in_features, run.net[-1].out_features
    if rng.random() < 0.6:
        x = torch.randint(256, (rows, features), dtype=torch.uint8, device=device)
    else:
        x = torch.randn(rows, 2 * features, device=device)[:, ::2]
    if rng.random() < 0.2:
        x = x.t().contiguous().t()
    if isinstance(run.loss, nn.MSELoss):
        return x, torch.randn(rows, 2 * classes, device=device)[:, ::2]
    y = torch.randint(classes, (rows,), device=device)
    y[0] = 0  # one row at least is not ignored
    return x, y
