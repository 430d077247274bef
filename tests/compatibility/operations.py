"""Every differentiable operation of ours beside torch's own: what the laws in `laws/` hold of.

A law is one test over `every_operation`; an operation that is added here is under all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, func, nn
from torch.nn import functional as F

import fastmlp
from fastmlp import backends
from fastmlp.activations import resolve
from fastmlp.backends.base import LossOptions, SquaredError
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.functional import (
    Layer,
    chain,
    chain_cross_entropy,
    chain_mse_loss,
    cross_entropy,
    linear_act,
    linear_cross_entropy,
    mlp,
    mse_loss,
)
from tests import references

Function = Callable[..., Tensor]


class At(NamedTuple):
    """Where a problem stands, and how many rows its batch has."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    rows: int = 6

    def randn(self, *shape: int) -> Tensor:
        """The same numbers in each dtype, but for their rounding."""
        return torch.randn(shape).to(self.device, self.dtype)

    def labels(self, classes: int) -> Tensor:
        return torch.randint(classes, (self.rows,)).to(self.device)


class Problem(NamedTuple):
    """Ours and torch's as functions of the same leaves, of which the first has the batch's rows.

    Torch's takes leaves of any floating dtype. Its constants are of that of the leaves.
    """

    ours: Function
    torchs: Function
    leaves: list[Tensor]

    def run(self, derive: Callable[[Function, list[Tensor]], list[Tensor]]) -> list[list[Tensor]]:
        """What ``derive`` finds of ours, of torch's and of torch's in float64, each of leaves of its own."""
        found = []
        for function, wide in ((self.ours, False), (self.torchs, False), (self.torchs, True)):
            leaves = [t.detach().double() if wide else t.detach() for t in self.leaves]
            found.append(derive(function, [t.requires_grad_() for t in leaves]))
        return found


def weighted(value: Tensor) -> Tensor:
    """An upstream gradient that is no constant."""
    return torch.linspace(0.5, 1.5, value.numel(), device=value.device).reshape(value.shape).to(value.dtype)


def second(function: Function, leaves: list[Tensor]) -> list[Tensor]:
    """The value, its gradients, and those of the gradients' squares; 0 where there is none."""
    value = function(*leaves)
    first = torch.autograd.grad(value, leaves, weighted(value), create_graph=True)
    penalty = sum(g.square().sum() for g in first)
    return [value, *first, *torch.autograd.grad(penalty, leaves, materialize_grads=True)]


class Operation(NamedTuple):
    """How its problem is made, and what the kernels launch for it: forward, and backward."""

    make: Callable[[At], Problem]
    forward: int
    backward: int
    smooth: bool = True  # has it a curvature everywhere?
    torchs_own: bool = True  # torch has this op: where it computes, ours gives its very bits


#: Modules by the number of features, as torch's MLPs are built of them.
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "no activation": lambda n: nn.Identity(),
    "ReLU": lambda n: nn.ReLU(),
    "LeakyReLU": lambda n: nn.LeakyReLU(0.2),
    "LeakyReLU, negative slope": lambda n: nn.LeakyReLU(-0.3),
    "PReLU, one slope": lambda n: nn.PReLU(),
    "PReLU, a slope each": nn.PReLU,
    "Sigmoid": lambda n: nn.Sigmoid(),
    "Tanh": lambda n: nn.Tanh(),
    "GELU": lambda n: nn.GELU(),
    "GELU, tanh form": lambda n: nn.GELU(approximate="tanh"),
    "SiLU": lambda n: nn.SiLU(),
}
_SMOOTH = ("no activation", "Sigmoid", "Tanh", "GELU", "GELU, tanh form", "SiLU")


def activated(module: nn.Module, slopes: Sequence[Tensor]) -> nn.Module:
    """The module with these very tensors as its slopes."""
    if slopes:
        module = nn.PReLU()
        del module.weight
        (module.weight,) = slopes
    return module


def applied(module: nn.Module | None, x: Tensor) -> Tensor:
    """Of slopes that may be no parameters."""
    if isinstance(module, nn.PReLU):
        return F.prelu(x, module.weight)
    return x if module is None else module(x)


class Net(NamedTuple):
    """Linear layers with an activation between them, of 5 features."""

    widths: tuple[int, ...]
    activation: str = "Tanh"

    def leaves(self, at: At) -> list[Tensor]:
        """The input, and of each layer weight, bias and slopes, these away from 0 and from each other."""
        found = [at.randn(at.rows, self.widths[0])]
        for i, (k, n) in enumerate(itertools.pairwise(self.widths), start=2):
            found += [at.randn(n, k) / k**0.5, at.randn(n)]
            slopes = [*ACTIVATIONS[self.activation](n).parameters()] if i < len(self.widths) else []
            found += [torch.linspace(0.9, 0.1, s.numel()).to(at.device, at.dtype) for s in slopes]
        return found

    def split(self, params: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, nn.Module | None]]:
        """Weight, bias and activation of each layer."""
        left, layers = iter(params), len(self.widths) - 1
        for i, n in enumerate(self.widths[1:], start=1):
            w, b = next(left), next(left)
            module = ACTIVATIONS[self.activation](n) if i < layers else None
            yield w, b, module and activated(module, [next(left) for _ in module.parameters()])

    def layers(self, params: Sequence[Tensor]) -> list[Layer]:
        return [Layer(w, b, resolve(module)) for w, b, module in self.split(params)]

    def torchs(self, x: Tensor, *params: Tensor) -> Tensor:
        for w, b, module in self.split(params):
            x = applied(module, F.linear(x, w, b))
        return x


def by_plan(plan: str, x: Tensor, *params: Tensor) -> str:
    """The plan where the kernels can follow it: elsewhere asking for it is an error."""
    fits = x.dtype in backends.KERNEL_DTYPES and all(p.is_contiguous() for p in (x, *params))
    return plan if fits and isinstance(backends.choose(x).backend, TritonBackend) else "auto"


def _linear_act(activation: str) -> Operation:
    net = Net((5, 7, 1), activation)  # all but its last layer

    def make(at: At) -> Problem:
        def ours(x: Tensor, *params: Tensor) -> Tensor:
            return linear_act(x, *next(net.split(params)))

        def torchs(x: Tensor, *params: Tensor) -> Tensor:
            w, b, module = next(net.split(params))
            return applied(module, F.linear(x, w, b))

        return Problem(ours, torchs, net.leaves(at)[:-2])

    return Operation(make, 1, 1, smooth=activation in _SMOOTH)


def _chain(plan: str, activation: str) -> Operation:
    net = Net((5, 7, 6, 3), activation)

    def make(at: At) -> Problem:
        def ours(x: Tensor, *params: Tensor) -> Tensor:
            return chain(x, net.layers(params), by_plan(plan, x, *params))

        return Problem(ours, net.torchs, net.leaves(at))

    return Operation(make, *((3, 3) if plan == "layers" else (1, 2)), smooth=activation in _SMOOTH)


#: Arguments of cross_entropy; a weight and probabilities are made with the problem.
LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "class weights": {"weight": True},
    "label smoothing": {"label_smoothing": 0.2},
    "ignore_index": {"ignore_index": 1},
    "weights, smoothing, ignore_index": {"weight": True, "label_smoothing": 0.2, "ignore_index": 1},
    "probabilities": {"target": "probabilities"},
    "probabilities, weights, smoothing": {
        "target": "probabilities",
        "weight": True,
        "label_smoothing": 0.2,
    },
    "z_loss": {"z_loss": 0.1},
    "z_loss, weights, ignore_index": {"z_loss": 0.1, "weight": True, "ignore_index": 1},
}
REDUCTIONS = ("none", "mean", "sum")


class Loss(NamedTuple):
    """A row of `LOSSES` with its reduction, over so many classes."""

    name: str
    reduction: str
    classes: int

    def constants(self, at: At, *more: int) -> tuple[Tensor, dict[str, Any]]:
        """A target for logits of (rows, classes, ...), and the other arguments."""
        options = {**LOSSES[self.name], "reduction": self.reduction}
        target = torch.randint(self.classes, (at.rows, *more)).to(at.device)
        if options.pop("target", None):
            target = at.randn(at.rows, self.classes, *more).softmax(1)
        if "weight" in options:
            options["weight"] = torch.linspace(0.3, 1.3, self.classes).to(at.device, at.dtype)
        return target, options


def torchs_cross_entropy(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    """F.cross_entropy, and the z-loss written out; of constants in the logits' dtype."""
    weight = options.pop("weight", None)
    weight = None if weight is None else weight.to(logits.dtype)
    target = target.to(logits.dtype) if target.is_floating_point() else target
    return references.cross_entropy(logits, target, weight, **options)


def _cross_entropy(name: str, reduction: str, *more: int) -> Operation:
    def make(at: At) -> Problem:
        target, options = Loss(name, reduction, 5).constants(at, *more)
        return Problem(
            lambda x: cross_entropy(x, target, **options),
            lambda x: torchs_cross_entropy(x, target, **options),
            [at.randn(at.rows, 5, *more)],
        )

    return Operation(make, 1, 1, torchs_own="z_loss" not in name)


def _linear_cross_entropy(name: str, reduction: str, classes: int) -> Operation:
    """Of few classes the head's, of more than 256 in tiles."""

    def make(at: At) -> Problem:
        target, options = Loss(name, reduction, classes).constants(at)
        return Problem(
            lambda x, w, b: linear_cross_entropy(x, w, target, linear_bias=b, **options),
            lambda x, w, b: torchs_cross_entropy(F.linear(x, w, b), target, **options),
            [at.randn(at.rows, 4), at.randn(classes, 4), at.randn(classes)],
        )

    at_once = "probabilities" in name or (classes > 256 and reduction != "none")  # gradients with the loss
    return Operation(make, *((2, 0) if at_once else (1, 1)))


def _classifier(name: str, reduction: str, widths: tuple[int, ...]) -> Operation:
    """A net and its loss at once: the last layer and the loss are the head."""
    net = Net(widths, "GELU")

    def make(at: At) -> Problem:
        target, options = Loss(name, reduction, widths[-1]).constants(at)
        words = LossOptions(**{k: v for k, v in options.items() if k != "weight"})

        def ours(x: Tensor, *params: Tensor) -> Tensor:
            return chain_cross_entropy(x, net.layers(params), target, options.get("weight"), words)[0]

        def torchs(x: Tensor, *params: Tensor) -> Tensor:
            return torchs_cross_entropy(net.torchs(x, *params), target, **options)

        return Problem(ours, torchs, net.leaves(at))

    return Operation(make, len(widths) - 1, len(widths) - 1, torchs_own="z_loss" not in name)


def _mse(reduction: str, weighted: bool) -> Operation:
    def make(at: At) -> Problem:
        w = torch.linspace(0.3, 1.3, 5 * at.rows).reshape(at.rows, 5).to(at.device, at.dtype)

        def torchs(x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(x, y, reduction=reduction, weight=w.to(x.dtype) if weighted else None)

        return Problem(
            lambda x, y: mse_loss(x, y, reduction=reduction, weight=w if weighted else None),
            torchs,
            [at.randn(at.rows, 5), at.randn(at.rows, 5)],
        )

    return Operation(make, 1, 1)


def _regressor(reduction: str) -> Operation:
    net = Net((5, 7, 3))

    def make(at: At) -> Problem:
        target = at.randn(at.rows, 3)

        def ours(x: Tensor, *params: Tensor) -> Tensor:
            return chain_mse_loss(x, net.layers(params), target, SquaredError(reduction))[0]

        def torchs(x: Tensor, *params: Tensor) -> Tensor:
            return F.mse_loss(net.torchs(x, *params), target.to(x.dtype), reduction=reduction)

        return Problem(ours, torchs, net.leaves(at))

    return Operation(make, 2, 2)


def _mlp() -> Operation:
    net = Net((5, 7, 3))

    def make(at: At) -> Problem:
        return Problem(lambda x, w, b, v, c: mlp(x, (w, v), (b, c), "tanh"), net.torchs, net.leaves(at))

    return Operation(make, 1, 2)


def _module(build: Callable[[], nn.Module], names: Sequence[str], net: Net) -> Operation:
    """A module as a function of its input and its parameters."""

    def make(at: At) -> Problem:
        module = build().to(at.device, at.dtype)

        def ours(x: Tensor, *params: Tensor) -> Tensor:
            return func.functional_call(module, dict(zip(names, params, strict=True)), (x,))

        return Problem(ours, net.torchs, net.leaves(at))

    return Operation(make, 1, 1 if len(net.widths) == 2 else 2)


_TANH = Net((5, 7, 3))
_MIXED = "weights, smoothing, ignore_index"
_WITHOUT_Z = [name for name in LOSSES if "z_loss" not in name]
_LABELS = [name for name in LOSSES if "probabilities" not in name]

OPERATIONS: dict[str, Operation] = {
    **{f"linear_act: {name}": _linear_act(name) for name in ACTIVATIONS},
    **{f"chain by layers: {name}": _chain("layers", name) for name in ACTIVATIONS},
    **{f"chain as a whole: {name}": _chain("whole", name) for name in ACTIVATIONS},
    **{f"chain, recomputed: {name}": _chain("recompute", name) for name in ("ReLU", "GELU")},
    "mlp": _mlp(),
    "Sequential": _module(
        lambda: fastmlp.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)),
        ("0.weight", "0.bias", "2.weight", "2.bias"),
        _TANH,
    ),
    "MLP": _module(
        lambda: fastmlp.MLP(5, [7, 3], activation_layer=nn.Tanh),
        ("0.weight", "0.bias", "3.weight", "3.bias"),
        _TANH,
    ),
    "LinearAct": _module(lambda: fastmlp.LinearAct(5, 7, activation="none"), ("weight", "bias"), Net((5, 7))),
    **{f"cross_entropy: {name}": _cross_entropy(name, "mean") for name in LOSSES},
    **{f"cross_entropy: {_MIXED}, {how}": _cross_entropy(_MIXED, how) for how in ("none", "sum")},
    **{f"cross_entropy: {how}": _cross_entropy("plain", how) for how in ("none", "sum")},
    "cross_entropy: of (N, C, d1)": _cross_entropy("class weights", "mean", 2),
    **{f"linear_cross_entropy: {name}": _linear_cross_entropy(name, "mean", 5) for name in _WITHOUT_Z},
    **{f"linear_cross_entropy: {how}": _linear_cross_entropy("plain", how, 5) for how in ("none", "sum")},
    **{
        f"linear_cross_entropy, 300 classes: {how}": _linear_cross_entropy(_MIXED, how, 300)
        for how in REDUCTIONS
    },
    **{f"net and cross_entropy: {name}": _classifier(name, "mean", (5, 7, 3)) for name in _LABELS},
    "net and cross_entropy: sum": _classifier("plain", "sum", (5, 7, 6, 3)),
    **{f"mse_loss: {how}": _mse(how, weighted=False) for how in REDUCTIONS},
    **{f"mse_loss: {how}, weighted": _mse(how, weighted=True) for how in REDUCTIONS},
    **{f"net and mse_loss: {how}": _regressor(how) for how in REDUCTIONS[1:]},
}

#: One of each autograd node, for laws that do not depend on an operation's arguments.
NODES = (
    "linear_act: GELU",
    "chain by layers: PReLU, a slope each",
    "chain as a whole: Tanh",
    "chain, recomputed: GELU",
    "Sequential",
    "LinearAct",
    f"cross_entropy: {_MIXED}",
    "cross_entropy: none",
    "linear_cross_entropy: label smoothing",
    "linear_cross_entropy, 300 classes: mean",
    "net and cross_entropy: class weights",
    "mse_loss: mean, weighted",
    "net and mse_loss: mean",
)


def every_operation(law: str, names: Iterable[str] = OPERATIONS, **cell: str) -> pytest.MarkDecorator:
    """Parametrize ``operation``: rows of the page by law and function; ``cell`` is a backend and a dtype."""
    return pytest.mark.parametrize(
        "operation",
        [
            pytest.param(
                OPERATIONS[name],
                id=name,
                marks=pytest.mark.feature("Every operation", f"{law}: {name.partition(':')[0]}", **cell),
            )
            for name in names
        ],
    )
