"""Whatever mode or hook autograd is under, value and gradients are those without it."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from fastmlp.kernels import launch
from tests.compatibility.operations import NODES, At, Function, Operation, every_operation, first, weighted


def made(operation: Operation, dtype: torch.dtype, device: str) -> tuple[Function, list[Tensor]]:
    function, _, leaves = operation.make(At(dtype, device))
    return function, [t.requires_grad_() for t in leaves]


WITHOUT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.few(20)
@every_operation("no_grad, inference_mode", NODES)
@pytest.mark.parametrize("name", WITHOUT)
def test_without_grad(name: str, operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    """The same value and nothing to differentiate; grad mode inside is grad mode, but in inference mode."""
    function, leaves = made(operation, dtype, device)
    expected = first(function, leaves)
    inference = name == "inference_mode"
    with WITHOUT[name]():
        value = function(*leaves)
        with torch.enable_grad():
            loud = [function(*leaves), function(leaves[0].clone(), *leaves[1:])]
    assert not value.requires_grad
    for one in (value, *loud):
        torch.testing.assert_close(one, expected[0])
        assert one.is_inference() == inference
    for one in loud:
        assert one.requires_grad != inference
        if not inference:
            assert all(map(torch.equal, expected[1:], torch.autograd.grad(one, leaves, weighted(one))))


@pytest.mark.few(20)
@every_operation("torch.utils.checkpoint", NODES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(
    reentrant: bool, operation: Operation, backend: str, dtype: torch.dtype, device: str
) -> None:
    """Bit for bit the gradients; the value may be one that is computed without any."""
    function, leaves = made(operation, dtype, device)
    expected, *grads = first(function, leaves)
    value = checkpoint(function, *leaves, use_reentrant=reentrant)
    torch.testing.assert_close(value, expected)
    value.backward(weighted(value))
    assert all(map(torch.equal, grads, [t.grad for t in leaves]))


@pytest.mark.few(20)
@every_operation("saved-tensor hooks", NODES)
@pytest.mark.parametrize("how", ["clones", "save_on_cpu"])
def test_hooks(how: str, operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    """What is kept goes through pack and unpack, and the backward works with what unpack gives."""
    function, leaves = made(operation, dtype, device)
    expected = first(function, leaves)
    packed: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t.detach().clone()

    hooks = saved_tensors_hooks(pack, Tensor.clone)
    with save_on_cpu(pin_memory=device == "cuda") if how == "save_on_cpu" else hooks:
        value = function(*leaves)
    assert bool(packed) == (how == "clones")
    assert torch.equal(value, expected[0])
    up = weighted(value)
    for t in packed:
        t.data.fill_(torch.nan if t.is_floating_point() else 0)
    assert all(map(torch.equal, expected[1:], torch.autograd.grad(value, leaves, up)))


@pytest.mark.few(20)
@every_operation("anomaly mode", NODES)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    """The same results; a NaN in a gradient is an error that names the node."""
    function, leaves = made(operation, dtype, device)
    with torch.autograd.detect_anomaly():
        found = first(function, leaves)
        value = function(*leaves)
        with pytest.raises(RuntimeError, match=f"'{value.grad_fn.name()}' returned nan values"):
            torch.autograd.grad(value, leaves, torch.full_like(value, torch.nan))
    assert all(map(torch.equal, first(function, leaves), found))


@contextmanager
def or_refused() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise


@pytest.mark.few(40)
@every_operation("a tensor that is written over")
def test_written_over(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    """A leaf or the value, after the forward: torch's error, or the gradients of what was there."""
    function, _, leaves = operation.make(At(dtype, device))
    expected = first(function, [t.requires_grad_() for t in leaves])[1:]
    places = range(len(leaves) + 1)
    for place in random.Random(f"{dtype} {backend}").sample(places, min(3, len(places))):
        inputs = [t.detach().clone().requires_grad_() for t in leaves]
        value = function(*inputs)
        with torch.no_grad():
            [*inputs, value][place].add_(1)
        with or_refused():
            assert all(map(torch.equal, expected, torch.autograd.grad(value, inputs, weighted(value)))), place


@pytest.mark.few(13)
@every_operation("memory: a graph holds nothing when it is gone", NODES)
def test_freed(
    operation: Operation, backend: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No node refers to itself, and no module to its call: all is freed without the garbage collector."""
    monkeypatch.setattr(launch, "_observers", [])  # a record of launches holds their tensors
    function, leaves = made(operation, dtype, device)
    first(function, leaves)  # a first call imports and compiles
    gc.disable()
    try:
        for backward in (False, True):
            inputs = [t * 1.0 for t in leaves]
            alive = [weakref.ref(t) for t in inputs]
            value = function(*inputs)
            if backward:
                value.sum().backward()
            del value, inputs
            assert not any(ref() is not None for ref in alive), backward
    finally:
        gc.enable()
