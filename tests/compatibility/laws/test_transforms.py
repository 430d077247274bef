"""Transforms and tangents see torch's own ops: forward-mode AD, torch.func, torch.autograd.functional."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.autograd import functional as AF

from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import NODES, At, Function, Operation, every_node, operations

GROUP = "Autograd"
Transform = Callable[[Function, list[Tensor]], Any]


def total(function: Function) -> Function:
    """A scalar of the function's output that has curvature."""
    return lambda *tensors: function(*tensors).square().sum()


def ones(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(map(torch.ones_like, tensors))


def all_of(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple(range(len(tensors)))


def dual(function: Function, tensors: list[Tensor]) -> Tensor:
    """The tangent of every tensor along 1, half of it for the next, and so on."""
    with forward_ad.dual_level():
        seen = [forward_ad.make_dual(t, torch.full_like(t, 0.5**i)) for i, t in enumerate(tensors)]
        tangent = forward_ad.unpack_dual(function(*seen)).tangent
    assert tangent is not None
    return tangent.clone()


def dual_of_last(function: Function, tensors: list[Tensor]) -> Tensor:
    """A tangent of the last tensor alone: the input is plain, where there are several."""
    return dual(lambda last: function(*tensors[:-1], last), tensors[-1:])


def over(place: int) -> Transform:
    """A batch of one of the tensors."""

    def mapped(function: Function, tensors: list[Tensor]) -> Tensor:
        at = place % len(tensors)
        dims = tuple(0 if i == at else None for i in all_of(tensors))
        given = [torch.stack([t, t / 2]) if i == at else t for i, t in enumerate(tensors)]
        return func.vmap(function, dims)(*given)

    return mapped


def each(transform: Callable[..., Any]) -> Transform:
    """A transform that takes ``argnums``, of the first tensor and of the last."""
    return lambda f, t: [transform(f, argnums=i)(*t) for i in (0, len(t) - 1)]


def batched_grads(function: Function, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """``is_grads_batched``."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    ups = torch.arange(2.0 * value.numel(), device=value.device).to(value.dtype).view(2, *value.shape) / 8
    return torch.autograd.grad(value, leaves, ups, is_grads_batched=True)


#: Rows of the page, and what each computes of a function and tensors. Those that begin with "torch.func" or
#: "forward-mode" must give torch's own bits.
TRANSFORMS: dict[str, Transform] = {
    "torch.func.grad": lambda f, t: func.grad(total(f), argnums=all_of(t))(*t),
    "torch.func.vjp": lambda f, t: (lambda y, pull: pull(torch.ones_like(y)))(*func.vjp(f, *t)),
    "torch.func.jvp": lambda f, t: func.jvp(f, tuple(t), ones(t)),
    "torch.func.linearize": lambda f, t: func.linearize(f, *t)[1](*ones(t)),
    "torch.func.jacrev": each(func.jacrev),
    "torch.func.jacfwd": each(func.jacfwd),
    "torch.func.hessian": lambda f, t: func.hessian(total(f))(*t),
    "torch.func.grad of grad": lambda f, t: func.grad(
        lambda *s: func.grad(total(f))(*s).square().sum(), argnums=all_of(t)
    )(*t),
    "torch.func.vmap over copies of the batch": over(0),
    "torch.func.vmap over weights": over(1),
    "forward-mode: dual tensors": dual,
    "forward-mode: a tangent of one tensor alone": dual_of_last,
    "torch.autograd.functional.vjp": lambda f, t: AF.vjp(f, tuple(t), torch.ones_like(f(*t)))[1],
    "torch.autograd.functional.jvp": lambda f, t: AF.jvp(f, tuple(t), ones(t))[1],
    "torch.autograd.functional.jacobian": lambda f, t: AF.jacobian(lambda *s: f(*s).flatten()[:2], tuple(t)),
    "torch.autograd.functional.jacobian, vectorize": lambda f, t: AF.jacobian(f, tuple(t), vectorize=True),
    "torch.autograd.functional.jacobian, forward-mode": lambda f, t: AF.jacobian(
        f, tuple(t), vectorize=True, strategy="forward-mode"
    ),
    "torch.autograd.functional.hessian": lambda f, t: AF.hessian(lambda s: total(f)(*t[:-1], s), t[-1]),
    "torch.autograd.functional.hvp": lambda f, t: AF.hvp(total(f), tuple(t), ones(t)),
    "torch.autograd.functional.vhp": lambda f, t: AF.vhp(total(f), tuple(t), ones(t)),
    "torch.autograd.grad, is_grads_batched": batched_grads,
}


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(itertools.chain(*map(flat, value)))


@pytest.mark.few(40)
@every_node
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.feature(GROUP, name)) for name in TRANSFORMS]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"], indirect=True)
def test_transform(name: str, operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    def derive(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        return flat(TRANSFORMS[name](function, [t.detach() for t in leaves]))

    own_bits = name.startswith(("torch.func", "forward-mode"))
    same_or_as_good(
        *operation.make(At(dtype, device, rows=4)).run(derive), "torch" if own_bits else backend, name
    )


@pytest.mark.few(13)
@operations([name for name in NODES if "mse" not in name])  # of torch's own a tangent is an error
@pytest.mark.feature(GROUP, "transforms of a backward whose forward ran before: vmap, tangents")
def test_transformed_backward(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    """The graph is there already, made by kernels; what comes in is a batch, or has a tangent."""

    def derive(function: Function, leaves: list[Tensor]) -> list[Tensor]:
        value = function(*leaves)
        ups = torch.stack([torch.ones_like(value), torch.full_like(value, 0.25)]).detach()

        def pull(up: Tensor) -> Tensor:
            return torch.autograd.grad(value, leaves[0], up, retain_graph=True)[0]

        batch = func.vmap(pull)(ups)
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(pull(forward_ad.make_dual(ups[0], ups[1])))
            return [batch, found.primal.clone(), found.tangent.clone()]

    same_or_as_good(*operation.make(At(dtype, device, rows=4)).run(derive), backend, "result")
