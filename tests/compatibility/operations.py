"""Every differentiable operation of ours beside torch's own: what the laws in `laws/` hold of.

A law is one test over `every_operation`; an operation that is added here is under all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, func, nn
from torch.nn import functional as F

import fastmlp
from fastmlp.backends.base import LossOptions, SquaredError
from fastmlp.functional import (
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
from tests.compatibility.problems import (
    ACTIVATIONS,
    At,
    Function,
    Net,
    Problem,
    activated,
    by_plan,
    on_kernels,
)


def weighted(value: Tensor) -> Tensor:
    """An upstream gradient that is no constant."""
    return torch.linspace(0.5, 1.5, value.numel(), device=value.device).reshape(value.shape).to(value.dtype)


def first(function: Function, leaves: list[Tensor]) -> list[Tensor]:
    """The value and its gradients."""
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, weighted(value))]


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

    def judged(self, backend: str) -> str:
        """As whose results `same_or_as_good` judges: a formula of ours in torch's ops rounds otherwise."""
        return backend if self.torchs_own else "triton"


_SMOOTH = ("no activation", "Sigmoid", "Tanh", "GELU", "GELU, tanh form", "SiLU")


def _linear_act(activation: str, k: int = 5, n: int = 7) -> Operation:
    net = Net((k, n, 1), activation)  # all but its last layer

    def make(at: At) -> Problem:
        def ours(x: Tensor, *params: Tensor) -> Tensor:
            w, b, act, slopes = next(net.split(params))
            return linear_act(x, w, b, activated(act, slopes))

        def torchs(x: Tensor, *params: Tensor) -> Tensor:
            w, b, act, slopes = next(net.split(params))
            return activated(act, slopes)(F.linear(x, w, b))

        return Problem(ours, torchs, net.leaves(at)[:-2])

    return Operation(make, 1, 1, smooth=activation in _SMOOTH)


def _chain(plan: str, activation: str, *widths: int) -> Operation:
    net = Net(widths or (5, 7, 6, 3), activation)

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
    "z_loss, probabilities": {"z_loss": 0.1, "target": "probabilities"},
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
        target = at.labels(self.classes, *more)
        if options.pop("target", None):
            target = at.randn(at.rows, self.classes, *more).softmax(1)
        if "weight" in options:
            options["weight"] = torch.linspace(0.3, 1.3, self.classes).to(at.device, at.dtype)
        return target, options


def torchs_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, **options: Any
) -> Tensor:
    """F.cross_entropy, and the z-loss written out; of constants that are as wide as the logits."""
    widest = partial(torch.promote_types, logits.dtype)
    target = target.to(widest(target.dtype)) if target.is_floating_point() else target
    weight = None if weight is None else weight.to(widest(weight.dtype))
    return references.cross_entropy(logits, target, weight, **options)


def _cross_entropy(name: str, reduction: str, *more: int, classes: int = 5) -> Operation:
    def make(at: At) -> Problem:
        target, options = Loss(name, reduction, classes).constants(at, *more)
        return Problem(
            lambda x: cross_entropy(x, target, **options),
            lambda x: torchs_cross_entropy(x, target, **options),
            [at.randn(at.rows, classes, *more)],
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
            if weighted and torch.is_autocast_enabled(x.device.type) and on_kernels(x):
                x, y = x.float(), y.float()  # as a GPU's pow under autocast; a CPU's does not
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


def _tied(plan: str) -> Operation:
    """A weight that stands twice, and between that one which is computed from it."""

    def make(at: At) -> Problem:
        def ours(x: Tensor, w: Tensor) -> Tensor:
            return mlp(x, (w, 2 * w, w), activation="tanh", plan=by_plan(plan, x, w))

        def torchs(x: Tensor, w: Tensor) -> Tensor:
            double = 2 * w  # before its use: gradients are summed in the order in which things were made
            return F.linear(F.linear(F.linear(x, w).tanh(), double).tanh(), w)

        return Problem(ours, torchs, [at.randn(at.rows, 5), at.randn(5, 5) / 3])

    return Operation(make, *((3, 3) if plan == "layers" else (1, 2)))


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
    "linear_act: several tiles": _linear_act("GELU", 33, 70),
    "chain by layers: several tiles": _chain("layers", "SiLU", 33, 65, 3, 20),
    "chain as a whole: several tiles": _chain("whole", "PReLU, a slope each", 33, 64, 17, 20),
    "mlp": _mlp(),
    **{f"mlp: tied weights, {plan}": _tied(plan) for plan in ("layers", "whole")},
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
    **{f"cross_entropy: z_loss, {how}": _cross_entropy("z_loss", how) for how in ("none", "sum")},
    **{f"cross_entropy: {how}": _cross_entropy("plain", how) for how in ("none", "sum")},
    "cross_entropy: of (N, C, d1)": _cross_entropy("class weights", "mean", 2),
    "cross_entropy: 600 classes": _cross_entropy("class weights", "sum", classes=600),
    **{f"linear_cross_entropy: {name}": _linear_cross_entropy(name, "mean", 5) for name in _WITHOUT_Z},
    **{f"linear_cross_entropy: {how}": _linear_cross_entropy("plain", how, 5) for how in ("none", "sum")},
    **{
        f"linear_cross_entropy, 300 classes: {how}": _linear_cross_entropy(_MIXED, how, 300)
        for how in REDUCTIONS
    },
    **{f"net and cross_entropy: {name}": _classifier(name, "mean", (5, 7, 3)) for name in _LABELS},
    "net and cross_entropy: 200 classes": _classifier("class weights", "mean", (33, 65, 200)),
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


def operations(names: Sequence[str]) -> pytest.MarkDecorator:
    """Parametrize ``operation`` alone: the test has a row of its own, or none."""
    return pytest.mark.parametrize("operation", [OPERATIONS[name] for name in names], ids=names)


every_node = operations(NODES)
