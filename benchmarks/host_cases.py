"""The calls whose host time is measured, as made by us, eager PyTorch and Liger-Kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp import functional
from fastmlp.engine.autograd import AutogradExecutor

from . import peers
from .cases import A, net
from .peers import EAGER, LIGER, OF_OURS, OURS, OURS_COMPILED

GROUP = "host time of a call"
NARROW = (64, 64, 64, 64, 64, 10)
_LR = 1e-3
#: Seconds counted for the driver of each launch, whoever's, where none is called.
LAUNCH = 2.5e-6
Call = Callable[[], object]


class _Dropout(nn.Dropout):
    """By the op that GPU tensors get, which is one launch; a CPU's take three."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.native_dropout(input, self.p, self.training)[0]


@dataclass(frozen=True)
class Side:
    """One of those compared, on a device and at certain sizes."""

    peer: str
    device: str
    batch: int = 256

    @property
    def ours(self) -> bool:
        return self.peer in OF_OURS

    @property
    def stubbed(self) -> bool:
        """Whether nothing runs our kernels, and torch's ops are to compute next to nothing."""
        return self.device == "cpu"

    @property
    def tiny(self) -> bool:
        """Whether all sizes are 1."""
        return self.stubbed and self.peer == EAGER

    def normal(self, *shape: int, grad: bool = False) -> Tensor:
        """A random tensor."""
        return torch.randn(self._sizes(shape), device=self.device, requires_grad=grad)

    def labels(self, classes: int) -> Tensor:
        """A class for each row of the batch."""
        rows, classes = self._sizes((self.batch, classes))
        return torch.randint(classes, (rows,), device=self.device)

    def net(
        self, widths: Sequence[int], act: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0
    ) -> nn.Module:
        """Linear layers with activations between."""
        between = lambda: [act(), *([self._dropout(dropout)] if dropout else [])]  # noqa: E731
        return self._fused(net(self._sizes(widths), between))

    def block(self, width: int, hidden: int) -> nn.Module:
        """A transformer block's MLP, as timm has it."""
        layers = peers.library("timm.layers", "timm", self.device, gpu=False)
        width, hidden = self._sizes((width, hidden))
        return self._fused(layers.Mlp(width, hidden))

    def wrap(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """``function``, compiled if this side is."""
        if self.peer == peers.COMPILED:
            return peers.compiled(function, self.peer, self.device)
        return peers.in_one_graph(function) if self.peer == OURS_COMPILED else function

    def _dropout(self, p: float) -> nn.Module:
        return _Dropout(p) if self.tiny else nn.Dropout(p)

    def _sizes(self, sizes: Sequence[int]) -> list[int]:
        return [1 if self.tiny else size for size in sizes]

    def _fused(self, model: nn.Module) -> nn.Module:
        model = model.to(self.device)
        return fastmlp.fuse(model) if self.ours else model


Build = Callable[[Side], Call]


@dataclass(frozen=True)
class HostCase:
    """One call, and how many times eager's time it may take."""

    label: str
    build: Build
    must: float | None = None
    stretch: float | None = None
    peers: tuple[str, ...] = (OURS, EAGER)

    def __str__(self) -> str:
        return f"{GROUP}: {self.label}"


def _linear_act(side: Side) -> Call:
    x, w, b = side.normal(side.batch, 784), side.normal(256, 784), side.normal(256)
    if side.ours:
        return lambda: functional.linear_act(x, w, b)
    function = side.wrap(lambda x, w, b: torch.relu(F.linear(x, w, b)))
    return lambda: function(x, w, b)


def _forward(side: Side, net: Callable[[Side], nn.Module], features: int, grad: bool) -> Call:
    model, x = side.wrap(net(side)), side.normal(side.batch, features)

    def without() -> Tensor:
        with torch.no_grad():
            return model(x)

    return (lambda: model(x)) if grad else without


def _loss(side: Side, backward: bool) -> Call:
    if side.peer == LIGER:
        loss = peers.liger(side.device, gpu=False).LigerCrossEntropyLoss()
    else:
        loss = side.wrap(functional.cross_entropy if side.ours else F.cross_entropy)
    logits, target = side.normal(side.batch, 10, grad=backward), side.labels(10)
    if not backward:
        return lambda: loss(logits, target)
    return lambda: torch.autograd.grad(loss(logits, target), logits)


def _squared_error(side: Side) -> Call:
    loss = functional.mse_loss if side.ours else F.mse_loss
    output, target = side.normal(side.batch, 10, grad=True), side.normal(side.batch, 10)
    return lambda: torch.autograd.grad(loss(output, target), output)


def _head(side: Side, classes: int) -> Call:
    # Beyond some hundred classes the products are torch's, and would be computed on a CPU.
    batch, features = (2, 2) if side.stubbed else (side.batch, 256)
    side = replace(side, batch=batch)
    x, w = side.normal(batch, features, grad=True), side.normal(classes, features, grad=True)
    y = side.labels(classes)
    if side.ours:
        return lambda: torch.autograd.grad(functional.linear_cross_entropy(x, w, y), (x, w))
    if side.peer == LIGER:
        loss = peers.liger(side.device, gpu=False).LigerFusedLinearCrossEntropyLoss()
        return lambda: torch.autograd.grad(loss(w, x, y), (x, w))
    return lambda: torch.autograd.grad(F.cross_entropy(F.linear(x, w), y), (x, w))


def _step(side: Side, net: Callable[[Side], nn.Module], features: int, classes: int) -> Call:
    model, loss = net(side), (fastmlp if side.ours else nn).CrossEntropyLoss()
    x, y = side.normal(side.batch, features), side.labels(classes)
    parameters = list(model.parameters())
    objective = side.wrap(lambda x, y: loss(model(x), y))

    def step() -> None:
        for p in parameters:
            p.grad = None
        objective(x, y).backward()

    return step


def _block_step(side: Side) -> Call:
    model, x = side.block(64, 256), side.normal(side.batch, 64)
    gradient, parameters = side.normal(side.batch, 64), list(model.parameters())
    return lambda: torch.autograd.grad(model(x), parameters, gradient)


def _update(side: Side, autograd: bool = False) -> Call:
    model, loss = side.net(A), (fastmlp if side.ours else nn).CrossEntropyLoss()
    x, y = side.normal(side.batch, A[0]), side.labels(A[-1])
    # foreach is what a GPU's tensors get by default.
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR, foreach=True)
    if side.ours and autograd:
        executor = AutogradExecutor(model, loss, optimizer, x.device, x.dtype)
        return lambda: executor.step(x, y, count=False)
    if side.ours:
        train = fastmlp.TrainStep(model, loss, optimizer)
        return lambda: train(x, y)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    return step


def _net(
    widths: Sequence[int], act: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0
) -> Callable[[Side], nn.Module]:
    return lambda side: side.net(widths, act, dropout)


def _training(widths: Sequence[int], act: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0) -> Build:
    return partial(_step, net=_net(widths, act, dropout), features=widths[0], classes=widths[-1])


_BOOK = partial(_forward, net=_net(A), features=A[0])
_NARROW = partial(_forward, net=_net(NARROW), features=NARROW[0])
_OF_TIMM = partial(_forward, net=lambda side: side.block(64, 256), features=64)
_ALL, _COMPILED = (OURS, EAGER, LIGER), (OURS, OURS_COMPILED, EAGER)
CASES = (
    HostCase("functional.linear_act, no grad", _linear_act, 1.5, 1.0),
    HostCase("net 784-256-10 forward, no grad", partial(_BOOK, grad=False), 1.2, 0.8, _COMPILED),
    HostCase("net 784-256-10 forward, recording", partial(_BOOK, grad=True), 1.5, 1.0),
    HostCase("functional.cross_entropy, no grad", partial(_loss, backward=False), 1.5, 1.0, _ALL),
    HostCase("cross-entropy forward + backward", partial(_loss, backward=True), 1.0, 0.8, _ALL),
    HostCase("net, loss, backward", _training(A), 1.0, 0.8, _COMPILED),
    HostCase("net, loss, backward: tanh", _training(A, nn.Tanh)),
    HostCase("net, loss, backward: GELU", _training(A, nn.GELU)),
    HostCase("net, loss, backward: PReLU", _training(A, nn.PReLU)),
    HostCase("net, loss, backward: dropout", _training(A, dropout=0.5)),
    HostCase("narrow net 64 (x 5)-10 forward, no grad", partial(_NARROW, grad=False)),
    HostCase("narrow net, loss, backward", _training(NARROW)),
    HostCase("squared error forward + backward", _squared_error),
    HostCase("linear cross-entropy, 10 classes, forward + backward", partial(_head, classes=10)),
    HostCase(
        "linear cross-entropy, 1000 classes, forward + backward", partial(_head, classes=1000), peers=_ALL
    ),
    HostCase("training step with SGD, TrainStep", _update),
    HostCase("training step with SGD, engine eager", partial(_update, autograd=True)),
    HostCase("timm's Mlp 64-256-64 by fuse, no grad", partial(_OF_TIMM, grad=False)),
    HostCase("timm's Mlp 64-256-64 by fuse, forward + backward", _block_step),
)  # fmt: skip
