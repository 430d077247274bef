"""A net with its squared error as one node: numerics, launches, derivatives of derivatives."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.backends.base import SquaredError
from fastmlp.functional import chain_mse_loss
from fastmlp.kernels.launch import record_launches
from tests.chains import Results, assert_closed, chain_of, differentiated
from tests.problems import DTYPES


def results(
    backend: str, widths: tuple[int, ...], dtype: torch.dtype, device: str, reduction: str, wide: bool = False
) -> Results:
    layers, leaves = chain_of(widths, "gelu", device, dtype, wide)
    torch.manual_seed(2)
    x, t = (torch.randn(77, n).to(device, dtype) for n in (widths[0], widths[-1]))
    x, t = (v.to(torch.float64 if wide else dtype) for v in (x, t))
    x.requires_grad_()
    with backends.use(backend), record_launches() as launches:
        closed = chain_mse_loss(x, layers, t, SquaredError(reduction), with_output=True)
        found = differentiated(*closed, [*leaves, x])
    return found, [one.name for one in launches]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("widths", "how"), [((30, 20, 7), "mean"), ((12, 9, 15, 256), "sum"), ((12, 1), "mean")]
)
def test_a_net(widths: tuple[int, ...], how: str, dtype: torch.dtype, device: str) -> None:
    ours = results("triton", widths, dtype, device, how)
    theirs = results("torch", widths, dtype, device, how)
    exact = results("torch", widths, dtype, device, how, wide=True)
    assert_closed(ours, theirs, exact, len(widths) - 1)


def test_what_the_head_does_not_take(device: str) -> None:
    """More outputs, a target that wants a gradient, reduction "none": a chain and then the loss."""
    x = torch.randn(9, 6, device=device)
    with backends.use("triton"):
        for outputs, wants, how in ((257, False, "mean"), (3, True, "mean"), (3, False, "none")):
            layers, leaves = chain_of((6, 5, outputs), "relu", device)
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
