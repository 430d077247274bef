"""A net with its squared error as one node: numerics, launches, derivatives of derivatives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.activations import NONE, TABLE, Act
from fastmlp.backends.base import SquaredError
from fastmlp.functional import Layer, chain_mse_loss
from fastmlp.kernels.launch import record_launches
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES


def net(
    widths: tuple[int, ...], name: str, device: str, dtype: torch.dtype = torch.float32, wide: bool = False
) -> tuple[list[Layer], list[Tensor]]:
    """Layers with ``name`` between them, and their parameters: numbers in ``dtype``, ``wide`` in float64."""
    torch.manual_seed(1)
    layers = []
    for i, (k, n) in enumerate(itertools.pairwise(widths)):
        w, b = (t.to(device, dtype) for t in (torch.randn(n, k) / k**0.5, torch.randn(n)))
        w, b = (t.to(torch.float64 if wide else dtype).requires_grad_() for t in (w, b))
        layers.append(Layer(w, b, NONE if i == len(widths) - 2 else Act(TABLE[name], 0.0)))
    return layers, [t for w, b, *_ in layers for t in (w, b) if t is not None]


def results(
    backend: str, widths: tuple[int, ...], dtype: torch.dtype, device: str, reduction: str, wide: bool = False
) -> tuple[list[Tensor], list[str]]:
    """Loss, output and every gradient, for an upstream of 1.5; and the launches."""
    layers, leaves = net(widths, "gelu", device, dtype, wide)
    torch.manual_seed(2)
    x, t = (torch.randn(77, n).to(device, dtype) for n in (widths[0], widths[-1]))
    x, t = (v.to(torch.float64 if wide else dtype) for v in (x, t))
    x.requires_grad_()
    with backends.use(backend), record_launches() as launches:
        loss, output = chain_mse_loss(x, layers, t, SquaredError(reduction), with_output=True)
        upstream = torch.tensor(1.5, device=device, dtype=loss.dtype)
        grads = torch.autograd.grad(loss, [*leaves, x], upstream)
    assert output is not None
    assert not output.requires_grad
    return [loss, output, *grads], [one.name for one in launches]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("widths", "how"), [((30, 20, 7), "mean"), ((12, 9, 15, 256), "sum"), ((12, 1), "mean")]
)
def test_a_net(widths: tuple[int, ...], how: str, dtype: torch.dtype, device: str) -> None:
    ours, names = results("triton", widths, dtype, device, how)
    theirs, _ = results("torch", widths, dtype, device, how)
    exact, _ = results("torch", widths, dtype, device, how, wide=True)
    depth = len(widths) - 1
    assert names.count("head_kernel") == 1
    assert names.count("linear_act_kernel") == depth - 1
    assert names.count("linear_backward_kernel") == depth
    for i, (a, b, c) in enumerate(zip(ours, theirs, exact)):
        assert_as_good_as_torch(a, b, c, f"tensor {i}", roundings=2 * depth + 2)


def test_what_the_head_does_not_take(device: str) -> None:
    """More outputs, a target that wants a gradient, reduction "none": a chain and then the loss."""
    x = torch.randn(9, 6, device=device)
    with backends.use("triton"):
        for outputs, wants, how in ((257, False, "mean"), (3, True, "mean"), (3, False, "none")):
            layers, leaves = net((6, 5, outputs), "relu", device)
            t = torch.randn(9, outputs, device=device, requires_grad=wants)
            with record_launches() as launches:
                loss, _ = chain_mse_loss(x, layers, t, SquaredError(how))
            assert "head_kernel" not in [one.name for one in launches]
            h = F.linear(x, *layers[0][:2]).relu()
            expected = F.mse_loss(F.linear(h, *layers[1][:2]), t, reduction=how)
            torch.testing.assert_close(loss, expected)
            tensors = [*leaves, *([t] if wants else [])]
            torch.testing.assert_close(
                torch.autograd.grad(loss.sum(), tensors), torch.autograd.grad(expected.sum(), tensors)
            )


def test_a_gradient_penalty(device: str) -> None:
    def penalty(backend: str) -> tuple[Tensor, ...]:
        layers, leaves = net((9, 8, 4), "tanh", device)
        torch.manual_seed(3)
        x, t = torch.randn(11, 9).to(device).requires_grad_(), torch.randn(11, 4).to(device)
        with backends.use(backend):
            loss, _ = chain_mse_loss(x, layers, t)
            (gx,) = torch.autograd.grad(loss, x, create_graph=True)
            return torch.autograd.grad(gx.square().sum(), leaves[:-1])

    for ours, theirs in zip(penalty("triton"), penalty("torch")):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
