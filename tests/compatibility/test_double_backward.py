"""Derivatives of derivatives: gradient penalties, eikonal losses, PINNs.

The kernels' own results are judged against float64 and torch's error; what the nodes do with them in
``test_gradgradcheck.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp.activations import resolve
from fastmlp.functional import (
    Layer,
    chain,
    cross_entropy,
    linear_act,
    linear_cross_entropy,
    mse_loss,
)
from tests import references
from tests.compatibility.compare import same_or_as_good

GROUP = "Autograd"
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
SMOOTH = ("Sigmoid", "Tanh", "GELU", "GELU, tanh form", "SiLU")


def rows(names: Sequence[str], feature: str, **cell: str) -> pytest.MarkDecorator:
    """Parametrize ``name``, each in a row of the page of its own; ``cell`` is a backend and a dtype."""
    marked = [pytest.param(n, marks=pytest.mark.feature(GROUP, f"{feature}: {n}", **cell)) for n in names]
    return pytest.mark.parametrize("name", marked)


def net_of(act: Callable[[int], nn.Module], dtype: torch.dtype, device: str) -> nn.Sequential:
    """5-7-6-3 in plain torch, slopes away from 0 and from each other."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), act(7), nn.Linear(7, 6), act(6), nn.Linear(6, 3))
    for module in net:
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.9)
    return net.to(device, dtype)


def layers_of(net: nn.Sequential) -> list[Layer]:
    """The same parameters as the functional form wants them."""
    acts = [*(net[i] for i in range(1, len(net), 2)), None]
    return [Layer(net[2 * i].weight, net[2 * i].bias, resolve(act)) for i, act in enumerate(acts)]


def derivatives(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The value, all its gradients, and those of the gradients' squares; 0 where there is none."""
    value = function()
    torch.manual_seed(1)
    upstream = torch.randn(value.shape, device=value.device).to(value.dtype)
    first = torch.autograd.grad(value, tensors, upstream, create_graph=True)
    penalty = sum(g.square().sum() for g in first)
    return [value, *first, *torch.autograd.grad(penalty, tensors, materialize_grads=True)]


@pytest.mark.few(22)
@rows(list(ACTIVATIONS), "double backward")
def test_activation(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """A chain, layer by layer and as a whole net."""
    x = torch.randn(6, 5, device=device).to(dtype)
    nets = [net_of(ACTIVATIONS[name], dtype, device) for _ in range(3)]
    nets[2].double()
    ours, theirs, exact = ((net, x.to(net[0].weight.dtype, copy=True).requires_grad_()) for net in nets)
    expected = [derivatives(lambda: net(xi), [xi, *net.parameters()]) for net, xi in (theirs, exact)]  # noqa: B023
    kernels = backend == "triton" and dtype != torch.float64
    for plan in ("layers", "whole", "recompute") if kernels else ("auto",):
        net, xi = ours
        found = derivatives(lambda: chain(xi, layers_of(net), plan), [xi, *net.parameters()])  # noqa: B023
        same_or_as_good(found, *expected, backend, plan)


@rows(SMOOTH, "third derivative")
def test_third_derivative(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    runs = []
    x = torch.randn(6, 5, device=device).to(dtype)
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        net = net_of(ACTIVATIONS[name], dtype, device).to(kind)
        net = fastmlp.fuse(net) if ours else net
        xi = x.to(kind, copy=True).requires_grad_()
        wanted = [xi, *net.parameters()]
        value, found = net(xi).sum(), []
        for order in range(3):
            grads = torch.autograd.grad(value, wanted, create_graph=order < 2, materialize_grads=True)
            value = sum(g.square().sum() for g in grads) / 64  # float16 ends at 65504
            found += grads
        runs.append(found)
    same_or_as_good(*runs, backend, name)


LOSSES: dict[str, dict[str, Any]] = {
    "plain": {},
    "class weights": {"weight": (5,)},
    "label smoothing": {"label_smoothing": 0.2},
    "ignore_index": {"ignore_index": 1},
    "weights, smoothing, ignore_index": {"weight": (5,), "label_smoothing": 0.2, "ignore_index": 1},
    "probabilities": {"target": "probabilities"},
    "probabilities, weights, smoothing": {
        "target": "probabilities",
        "weight": (5,),
        "label_smoothing": 0.2,
    },
    "z_loss": {"z_loss": 0.1},
    "z_loss, weights, ignore_index": {"z_loss": 0.1, "weight": (5,), "ignore_index": 1},
}
REDUCTIONS = ("none", "mean", "sum")


def loss_case(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str
) -> tuple[Tensor, dict[str, Any]]:
    """A target for logits of that shape, (N, C, ...), and the other arguments."""
    options = dict(LOSSES[name])
    n, c, *more = shape
    target = torch.randint(c, (n, *more), device=device)
    if options.pop("target", None):
        target = torch.randn(shape, device=device).softmax(1).to(dtype)
    if "weight" in options:
        options["weight"] = (torch.rand(c, device=device) + 0.3).to(dtype)
    return target, options


def by_torch(logits: Tensor, target: Tensor, reduction: str, **options: Any) -> Tensor:
    """F.cross_entropy, and the z-loss written out; of constants in the logits' dtype."""
    weight = options.pop("weight", None)
    weight = None if weight is None else weight.to(logits.dtype)
    target = target.to(logits.dtype) if target.is_floating_point() else target
    return references.cross_entropy(logits, target, weight, reduction=reduction, **options)


@rows(list(LOSSES), "double backward of cross_entropy")
def test_cross_entropy(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """Every reduction of matrices and of (N, C, d1) in float32; the mean over a matrix in the others."""
    cases = [((6, 5), "mean")]
    if dtype == torch.float32:
        cases = list(itertools.product([(6, 5), (3, 5, 2)], REDUCTIONS))
    for shape, reduction in cases:
        data = torch.randn(shape, device=device).to(dtype)
        target, options = loss_case(name, shape, dtype, device)
        runs = []
        for kind, function in ((dtype, cross_entropy), (dtype, by_torch), (torch.float64, by_torch)):
            x = data.to(kind, copy=True).requires_grad_()
            runs.append(derivatives(lambda: function(x, target, reduction=reduction, **options), [x]))  # noqa: B023
        # Of a z-loss torch has no op: the formula above rounds otherwise.
        same_or_as_good(*runs, "triton" if "z_loss" in options else backend, f"{shape} {reduction}")


@rows(REDUCTIONS, "double backward of mse_loss, weights and the target's gradient too")
def test_mse_loss(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    data = [torch.randn(6, 5, device=device).to(dtype) for _ in range(2)]
    w = torch.rand(6, 5, device=device).to(dtype)
    for weight in (None, w):
        runs = []
        for kind, function in ((dtype, mse_loss), (dtype, F.mse_loss), (torch.float64, F.mse_loss)):
            leaves = [t.to(kind, copy=True).requires_grad_() for t in data]
            given = {"reduction": name, "weight": None if weight is None else weight.to(kind)}
            runs.append(derivatives(lambda: function(*leaves, **given), leaves))  # noqa: B023
        same_or_as_good(*runs, backend, name)


@rows(REDUCTIONS[1:], "double backward of net and loss as one, Sequential.mse_loss")
def test_net_and_squared_error(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    data, target = (torch.randn(6, n, device=device).to(dtype) for n in (5, 3))
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        net = net_of(ACTIVATIONS["Tanh"], dtype, device).to(kind)
        x = data.to(kind, copy=True).requires_grad_()
        loss = fastmlp.MSELoss(reduction=name) if ours else nn.MSELoss(reduction=name)

        def function() -> Tensor:
            fused = fastmlp.fuse(net)  # noqa: B023
            found = fused.mse_loss(x, target, loss) if ours else None  # noqa: B023
            assert (found is not None) == (ours and backend == "triton" and dtype != torch.float64)  # noqa: B023
            return loss(net(x), target.to(kind)) if found is None else found[0]  # noqa: B023

        runs.append(derivatives(function, [x, *net.parameters()]))
    same_or_as_good(*runs, backend, name)


@rows([name for name in LOSSES if "z_loss" not in name], "double backward of linear_cross_entropy")
def test_linear_cross_entropy(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    n, k, c = 6, 4, 5
    tensors = [torch.randn(n, k), torch.randn(c, k), torch.randn(c)]
    data = [t.to(device, dtype) for t in tensors]
    target, options = loss_case(name, (n, c), dtype, device)

    def reference(x: Tensor, w: Tensor, target: Tensor, linear_bias: Tensor, **options: Any) -> Tensor:
        return by_torch(F.linear(x, w, linear_bias), target, **options)

    for reduction in REDUCTIONS if dtype == torch.float32 else ("mean",):
        runs = []
        for kind, function in (
            (dtype, linear_cross_entropy),
            (dtype, reference),
            (torch.float64, reference),
        ):
            x, w, b = leaves = [t.to(kind, copy=True).requires_grad_() for t in data]
            runs.append(
                derivatives(
                    lambda: function(x, w, target, linear_bias=b, reduction=reduction, **options),  # noqa: B023
                    leaves,
                )
            )
        same_or_as_good(*runs, backend, reduction)


@rows(
    [name for name in LOSSES if "probabilities" not in name],
    "double backward of net and loss as one, Sequential.cross_entropy",
)
def test_classifier(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """The head's node. On the torch backend there is none, and net and loss are called."""
    data = torch.randn(6, 5, device=device).to(dtype)
    target, options = loss_case(name, (6, 3), dtype, device)
    if "weight" in options:
        options["weight"] = options["weight"][:3]
    for reduction in ("mean", "sum") if dtype == torch.float32 else ("mean",):
        loss = fastmlp.CrossEntropyLoss(reduction=reduction, **options)
        runs = []
        for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
            net = net_of(ACTIVATIONS["GELU"], dtype, device).to(kind)
            x = data.to(kind, copy=True).requires_grad_()
            fused = fastmlp.fuse(net_of(ACTIVATIONS["GELU"], dtype, device))

            def value() -> Tensor:
                if not ours:  # noqa: B023
                    return by_torch(net(x), target, reduction, **options)  # noqa: B023
                found = fused.cross_entropy(x, target, loss)  # noqa: B023
                assert (found is not None) == (backend == "triton" and dtype != torch.float64)
                return loss(fused(x), target) if found is None else found[0]  # noqa: B023

            runs.append(derivatives(value, [x, *(fused if ours else net).parameters()]))
        same_or_as_good(*runs, "triton" if "z_loss" in options else backend, reduction)


def _double(
    loss: Callable[[nn.Module, Tensor], Tensor], backend: str, dtype: torch.dtype, device: str
) -> None:
    """The parameters' gradients of a loss that has a gradient in it."""
    x = torch.randn(8, 5, device=device).to(dtype)
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        net = net_of(ACTIVATIONS["SiLU"], dtype, device).to(kind)
        net = fastmlp.fuse(net) if ours else net
        value = loss(net, x.to(kind))
        value.backward()
        runs.append([value, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert len(runs[0]) == len(runs[1])
    same_or_as_good(*runs, backend, "loss")


@pytest.mark.feature(GROUP, "gradient penalty (WGAN-GP)")
def test_gradient_penalty(backend: str, dtype: torch.dtype, device: str) -> None:
    def critic_loss(net: nn.Module, real: Tensor) -> Tensor:
        fake = real.flip(0) * 0.5
        mixed = (0.3 * real + 0.7 * fake).requires_grad_()
        (grad,) = torch.autograd.grad(net(mixed).sum(), mixed, create_graph=True)
        penalty = (grad.norm(2, dim=1) - 1).square().mean()
        return net(fake).mean() - net(real).mean() + 10 * penalty

    _double(critic_loss, backend, dtype, device)


@pytest.mark.feature(GROUP, "eikonal loss")
def test_eikonal_loss(backend: str, dtype: torch.dtype, device: str) -> None:
    def eikonal(net: nn.Module, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        distance = net(x)[:, 0]
        (grad,) = torch.autograd.grad(distance, x, torch.ones_like(distance), create_graph=True)
        return (grad.norm(dim=1) - 1).abs().mean() + distance.abs().mean()

    _double(eikonal, backend, dtype, device)


@pytest.mark.feature(GROUP, "Laplacian of a net in a loss (PINN)")
def test_laplacian(backend: str, dtype: torch.dtype, device: str) -> None:
    def residual(net: nn.Module, x: Tensor) -> Tensor:
        x = x.requires_grad_()
        (grad,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        laplacian = sum(
            torch.autograd.grad(grad[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(x.shape[1])
        )
        return (laplacian + x[:, 0]).square().mean()

    _double(residual, backend, dtype, device)


@pytest.mark.feature(GROUP, "double backward with dropout")
def test_dropout(backend: str, dtype: torch.dtype, device: str) -> None:
    """The kernels draw the mask again: of a linear layer it shows in the output, and torch's ops take it."""
    k, n = 5, 40
    data = [torch.randn(6, k), torch.randn(n, k), torch.randn(3, n)]
    tensors = [t.to(device, dtype) for t in data]
    torch.manual_seed(3)
    ones = [torch.zeros(n, k).to(device, dtype), torch.ones(n).to(device, dtype)]
    mask = chain(tensors[0], [Layer(ones[0], ones[1], dropout=0.5)]) / 2
    assert 0.2 < mask.mean() < 0.8
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        x, w, v = leaves = [t.to(kind, copy=True).requires_grad_() for t in tensors]

        def function() -> Tensor:
            if not ours:  # noqa: B023
                return (F.linear(x, w).tanh() * mask.to(kind) * 2) @ v.t()  # noqa: B023
            torch.manual_seed(3)
            return chain(x, [Layer(w, None, resolve("tanh"), 0.5), Layer(v, None)])  # noqa: B023

        runs.append(derivatives(function, leaves))
    same_or_as_good(*runs, "triton", "dropout")


@pytest.mark.feature(GROUP, "double backward: one layer, linear_act")
def test_linear_act(backend: str, dtype: torch.dtype, device: str) -> None:
    """Of more than two dimensions too."""
    data = [torch.randn(2, 3, 5), torch.randn(4, 5), torch.randn(4)]
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        leaves = [t.to(device, dtype).to(kind, copy=True).requires_grad_() for t in data]
        function = (lambda *t: linear_act(*t, "gelu")) if ours else (lambda *t: F.gelu(F.linear(*t)))
        runs.append(derivatives(lambda: function(*leaves), leaves))  # noqa: B023
    same_or_as_good(*runs, backend, "linear_act")
