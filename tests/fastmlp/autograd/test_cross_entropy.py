"""The losses' autograd nodes: a whole classifier with its loss, launches, second backwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

from fastmlp import backends
from fastmlp.activations import NAMES
from fastmlp.backends.base import LossOptions
from fastmlp.functional import chain, chain_cross_entropy, cross_entropy
from fastmlp.kernels.launch import dry_run, record_launches
from tests.chains import Results, assert_closed, chain_of, differentiated


def results(
    backend: str, widths: tuple[int, ...], name: str, device: str, wide: bool = False, **options: Any
) -> Results:
    layers, leaves = chain_of(widths, name, device, wide=wide)
    dtype = torch.float64 if wide else torch.float32
    torch.manual_seed(2)
    x = torch.randn(77, widths[0]).to(device, dtype).requires_grad_()
    t = torch.randint(widths[-1], (77,)).to(device)
    t[::5] = -100
    weight = torch.rand(widths[-1]).to(device, dtype)
    with backends.use(backend), record_launches() as launches:
        closed = chain_cross_entropy(x, layers, t, weight, LossOptions(**options), with_logits=True)
        found = differentiated(*closed, [*leaves, x])
    return found, [one.name for one in launches]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("widths", [(30, 20, 7), (30, 20, 15, 256), (12, 3)])
def test_classifier(name: str, widths: tuple[int, ...], device: str) -> None:
    """Loss, logits and every gradient, scaled by an upstream of 1.5."""
    options = {"label_smoothing": 0.1, "z_loss": 1e-2} if name in ("gelu", "relu") else {}
    ours = results("triton", widths, name, device, **options)
    theirs = results("torch", widths, name, device, **options)
    exact = results("torch", widths, name, device, wide=True, **options)
    assert_closed(ours, theirs, exact, len(widths) - 1)


class CountOps(TorchDispatchMode):
    """Names the ATen ops that launch a kernel: all but views and allocations."""

    FREE = (
        "empty",
        "empty_like",
        "view",
        "_unsafe_view",
        "detach",
        "select",
        "slice",
        "unsqueeze",
        "squeeze",
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in self.FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_launches_of_a_textbook_step(device: str) -> None:
    """784-256-10 at batch 256: six launches by the modules (eager makes 13), five with the loss in the head.

    `.backward()` adds torch's own fill of the upstream gradient, and nothing else: seven and six.
    """
    layers, leaves = chain_of((784, 256, 10), "relu", device)
    x, t = torch.rand(256, 784, device=device), torch.randint(10, (256,), device=device)

    def modular_step() -> None:
        cross_entropy(chain(x, layers), t).backward()

    def headed_step() -> None:
        chain_cross_entropy(x, layers, t)[0].backward()

    # Dry, since the interpreter's own copies are no launches.
    with backends.use("triton"), dry_run(GPUTarget("cuda", 90, 32)):
        for step in (modular_step, headed_step):
            for leaf in leaves:
                leaf.grad = None
            with CountOps() as ops:
                step()
            assert ops.names == ["ones_like"]
        with record_launches() as modular:
            modular_step()
        with record_launches() as headed:
            headed_step()
    assert [one.name for one in modular] == [
        "linear_act_kernel",
        "linear_act_kernel",
        "cross_entropy_forward_kernel",
        "cross_entropy_backward_kernel",
        "linear_backward_kernel",
        "linear_backward_kernel",
    ]
    assert [one.name for one in headed] == [
        "linear_act_kernel",
        "head_kernel",
        "finish_loss_kernel",
        "linear_backward_kernel",
        "linear_backward_kernel",
    ]


def test_frozen_stem(device: str) -> None:
    """Only the last layer trains: neither dZ nor anything below it is computed."""
    layers, leaves = chain_of((9, 8, 4), "relu", device)
    for leaf in leaves[:2]:
        leaf.requires_grad_(False)
    x, t = torch.randn(11, 9, device=device), torch.randint(4, (11,), device=device)
    with backends.use("triton"), record_launches() as launches:
        loss, _ = chain_cross_entropy(x, layers, t)
        grads = torch.autograd.grad(loss, leaves[2:])
    assert [one.name for one in launches] == ["linear_act_kernel", "head_kernel", "linear_backward_kernel"]
    assert launches[1].named["out"].dz is None
    logits = F.linear(F.linear(x, layers[0].weight, layers[0].bias).relu(), layers[1].weight, layers[1].bias)
    for ours, theirs in zip(grads, torch.autograd.grad(F.cross_entropy(logits, t), leaves[2:])):
        torch.testing.assert_close(ours, theirs)
