"""Our autograd nodes by torch's ``gradcheck`` and ``gradgradcheck``: in float64, on the torch backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp.activations import resolve
from fastmlp.backends import Choice
from fastmlp.backends.base import LossOptions
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.functional import Layer, chain, chain_cross_entropy, cross_entropy, linear_cross_entropy
from tests.compatibility.test_double_backward import (
    ACTIVATIONS,
    LOSSES,
    REDUCTIONS,
    layers_of,
    loss_case,
    net_of,
    rows,
)

#: The nodes in float64, where gradcheck can see them.
BY_TORCH = {"backend": "torch", "dtype": "float64"}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our autograd nodes compute, on the torch backend: it knows float64, which gradcheck wants."""
    monkeypatch.setattr(backends, "KERNEL_DTYPES", (*backends.KERNEL_DTYPES, torch.float64))
    monkeypatch.setattr(backends, "choose", lambda tensor: Choice(TorchBackend(), "for gradcheck"))
    monkeypatch.setattr(backends, "off_gpu", lambda input: False)
    monkeypatch.setattr("fastmlp.functional.ways.choose", lambda *_: "layers")  # the plans know no float64


def check(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> None:
    """First and second derivatives, batches of upstream gradients and undefined ones among them."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    # A second backward of a linear cross-entropy sums in another order than the first: not bit for bit.
    options: dict[str, Any] = {"check_batched_grad": True, "fast_mode": True, "nondet_tol": 1e-13}
    assert torch.autograd.gradcheck(function, leaves, **options)
    assert torch.autograd.gradgradcheck(function, leaves, **options)


def named_in(tensor: Tensor) -> set[str]:
    """The names of the nodes above a tensor."""
    found, todo = set[str](), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            found.add(node.name())
            todo += [n for n, _ in node.next_functions]
    return found


@pytest.mark.few(5)
@rows(list(ACTIVATIONS), "gradcheck and gradgradcheck of the nodes", **BY_TORCH)
@pytest.mark.usefixtures("nodes")
def test_gradgradcheck(name: str, device: str) -> None:
    """Of the chain's node; with a dropout, which draws the same mask from the same seed."""
    net = net_of(ACTIVATIONS[name], torch.float64, device)
    x = torch.randn(4, 5, device=device, dtype=torch.float64)
    for dropout in (0.0, 0.4):

        def function(x: Tensor, *params: Tensor) -> Tensor:
            torch.manual_seed(2)
            left = iter(params)
            layers = [
                Layer(
                    next(left),
                    next(left),
                    act if act.weight is None else act._replace(weight=next(left)),
                    dropout if i < 2 else 0.0,  # noqa: B023
                )
                for i, (_, _, act, _) in enumerate(layers_of(net))
            ]
            return chain(x, layers)

        tensors = [x, *net.parameters()]
        assert "ChainBackward" in named_in(function(*tensors))
        check(function, tensors)


@pytest.mark.few(4)
@rows(list(LOSSES), "gradcheck and gradgradcheck of the losses", **BY_TORCH)
@pytest.mark.usefixtures("nodes")
def test_gradgradcheck_of_losses(name: str, device: str) -> None:
    wide, (n, k, c) = torch.float64, (4, 3, 5)
    target, options = loss_case(name, (n, c), wide, device)
    x, w, b = (torch.randn(s, device=device, dtype=wide) for s in ((n, k), (c, k), (c,)))
    net = fastmlp.Sequential(nn.Linear(k, 4), nn.Tanh(), nn.Linear(4, c)).to(device, wide)
    for reduction in REDUCTIONS:
        given = {**options, "reduction": reduction}
        plain = set(options) <= {"ignore_index"}
        if not target.is_floating_point() and plain:  # all that `TorchBackend.cross_entropy` does
            check(lambda x: cross_entropy(x, target, **given), [torch.randn(n, c, dtype=wide, device=device)])  # noqa: B023
        if "z_loss" not in options:
            check(lambda x, w, b: linear_cross_entropy(x, w, target, linear_bias=b, **given), [x, w, b])  # noqa: B023
        if not target.is_floating_point() and reduction != "none":
            made = LossOptions(**{k: v for k, v in given.items() if k != "weight"})

            def head(x: Tensor, *params: Tensor) -> Tensor:
                one, two = Layer(*params[:2], resolve("tanh")), Layer(*params[2:])
                return chain_cross_entropy(x, [one, two], target, options.get("weight"), made)[0]  # noqa: B023

            assert "ChainLossBackward" in named_in(head(x, *net.parameters()))
            check(head, [x, *net.parameters()])
