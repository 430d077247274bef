"""Second and third derivatives are torch's; of the nodes' own formulas finite differences give the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.autograd.node import Node
from fastmlp.backends import Choice
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.functional import chain
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import OPERATIONS, At, Function, Net, Operation, every_operation, second

#: The nodes in float64, where gradcheck can see them.
BY_TORCH = {"backend": "torch", "dtype": "float64"}


def third(function: Function, leaves: list[Tensor]) -> list[Tensor]:
    """The derivatives of three orders, each of the squares of those before it."""
    value, found = function(*leaves).sum(), []
    for order in range(3):
        grads = torch.autograd.grad(value, leaves, create_graph=order < 2, materialize_grads=True)
        value = sum(g.square().sum() for g in grads) / 64  # float16 ends at 65504
        found += grads
    return found


@pytest.mark.few(60)
@every_operation("double backward")
def test_double_backward(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    found = operation.make(At(dtype, device)).run(second)
    same_or_as_good(*found, operation.judged(backend), "derivative")


@pytest.mark.few(20)
@every_operation("third derivative", [name for name in OPERATIONS if OPERATIONS[name].smooth])
def test_third_derivative(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    found = operation.make(At(dtype, device)).run(third)
    same_or_as_good(*found, operation.judged(backend), "derivative")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our autograd nodes compute, on the torch backend: it knows float64, which gradcheck wants."""
    monkeypatch.setattr(backends, "KERNEL_DTYPES", (*backends.KERNEL_DTYPES, torch.float64))
    monkeypatch.setattr(backends, "choose", lambda tensor: Choice(TorchBackend(), "for gradcheck"))
    monkeypatch.setattr(backends, "off_gpu", lambda input: False)
    monkeypatch.setattr("fastmlp.functional.ways.choose", lambda *_: "layers")  # the plans know no float64


def nodes_of(tensor: Tensor) -> list[type[Node]]:
    """Ours, above a tensor."""
    seen, todo = set[Any](), [tensor.grad_fn]
    while todo:
        at = todo.pop()
        if at is not None and at not in seen:
            seen.add(at)
            todo += [node for node, _ in at.next_functions]
    kinds = (getattr(type(at), "_forward_cls", object) for at in seen)
    return [kind for kind in kinds if issubclass(kind, Node)]


def check(function: Function, leaves: list[Tensor]) -> None:
    """Batches of upstream gradients and undefined ones among them."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    assert nodes_of(function(*leaves))
    # A second backward of a linear cross-entropy sums in another order than the first: not bit for bit.
    options: dict[str, Any] = {"check_batched_grad": True, "fast_mode": True, "nondet_tol": 1e-13}
    assert torch.autograd.gradcheck(function, leaves, **options)
    assert torch.autograd.gradgradcheck(function, leaves, **options)


def is_checked(name: str) -> bool:
    """Not where a module decides for torch's ops; of a lone cross-entropy what `TorchBackend` computes."""
    if name.startswith("cross_entropy"):
        return not any(word in name for word in ("smoothing", "probabilities", "d1"))
    return name not in ("Sequential", "MLP")


@pytest.mark.few(12)
@pytest.mark.usefixtures("nodes")
@every_operation("gradcheck and gradgradcheck of the nodes", filter(is_checked, OPERATIONS), **BY_TORCH)
def test_gradgradcheck(operation: Operation, device: str) -> None:
    problem = operation.make(At(torch.float64, device, rows=4))
    check(problem.ours, problem.leaves)


@pytest.mark.usefixtures("nodes")
@pytest.mark.feature("Every operation", "gradcheck and gradgradcheck of the nodes: dropout", **BY_TORCH)
def test_gradgradcheck_of_dropout(device: str) -> None:
    """The same seed draws the same mask."""
    net = Net((5, 7, 3), "GELU")

    def function(x: Tensor, *params: Tensor) -> Tensor:
        torch.manual_seed(2)
        first, last = net.layers(params)
        return chain(x, [first._replace(dropout=0.4), last])

    check(function, net.leaves(At(torch.float64, device)))
