"""A backward may run again, add to what is there, and be of any of the leaves: each gets its own gradient."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import (
    NODES,
    At,
    Function,
    Operation,
    every_operation,
    weighted,
)


@pytest.mark.few(40)
@every_operation("a second backward")
def test_again(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    """Bit for bit the first one's, or its negative of a negative upstream; torch's error of a freed graph."""
    function, _, leaves = operation.make(At(dtype, device))
    value = function(*(t.requires_grad_() for t in leaves))
    up = weighted(value)
    grads = torch.autograd.grad(value, leaves, up, retain_graph=True)
    for factor in (1, -1):
        again = torch.autograd.grad(value, leaves, factor * up, retain_graph=factor == 1)
        assert all(map(torch.equal, [factor * g for g in grads], again))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(value, leaves, up)


@pytest.mark.few(20)
@every_operation("gradients accumulate", NODES)
def test_accumulate(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    """In place."""
    function, _, leaves = operation.make(At(dtype, device))
    for t in leaves:
        t.requires_grad_()
    value = function(*leaves)
    value.backward(weighted(value))
    kept = [t.grad for t in leaves]
    once = [t.grad.clone() for t in leaves]
    value = function(*leaves)
    value.backward(weighted(value))
    for leaf, grad, one in zip(leaves, kept, once, strict=True):
        assert leaf.grad is grad
        assert torch.equal(grad, 2 * one)


@pytest.mark.few(40)
@every_operation("some leaves alone require grad")
def test_some(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    """A subset of the leaves has gradients, the others None."""
    problem = operation.make(At(dtype, device))
    rng = random.Random(f"{dtype} {backend}")
    wanted = {i for i in range(len(problem.leaves)) if rng.random() < 0.5} or {
        rng.randrange(len(problem.leaves))
    }

    def derive(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        for i, t in enumerate(leaves):
            t.requires_grad_(i in wanted)
        value = function(*leaves)
        value.backward(weighted(value))
        assert {i for i, t in enumerate(leaves) if t.grad is not None} == wanted
        return [value, *(t.grad for t in leaves if t.grad is not None)]

    same_or_as_good(*problem.run(derive), operation.judged(backend), "result")


class Swallow(torch.autograd.Function):
    """Whose gradient is None."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@pytest.mark.few(13)
@every_operation("an undefined upstream gradient", NODES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_undefined_upstream(operation: Operation, backend: str, dtype: str, device: str) -> None:
    """It adds nothing to any leaf's gradient."""
    function, _, leaves = operation.make(At(getattr(torch, dtype), device))
    value = Swallow.apply(function(*(t.requires_grad_() for t in leaves)))
    (value.sum() + sum(t.sum() for t in leaves)).backward()
    assert all(torch.equal(t.grad, torch.ones_like(t)) for t in leaves)
