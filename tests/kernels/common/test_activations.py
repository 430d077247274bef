"""The device functions on a dense grid, in units of float32's epsilon."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from fastmlp.activations import NAMES, TABLE, Act
from fastmlp.kernels.common.activations import activate, derivative
from fastmlp.kernels.launch import launch


@triton.jit
def evaluate_kernel(z_ptr, saved_ptr, f_ptr, d_ptr, slope, n, ACT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(z_ptr + i, mask=i < n, other=0.0)
    tl.store(f_ptr + i, activate(z, slope, ACT), mask=i < n)
    if ACT != "none":
        saved = tl.load(saved_ptr + i, mask=i < n, other=0.0)
        tl.store(d_ptr + i, derivative(saved, slope, ACT), mask=i < n)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_derivative(name: str, device: str) -> None:
    """Within a few ulp of float64 from -20 to 20, and near 0 where a naive tanh cancels."""
    z = torch.cat([torch.linspace(-20, 20, 4001), torch.logspace(-8, -1, 500)]).to(device)
    slope = 0.25 if name in ("leaky_relu", "prelu") else 0.0
    act = Act(TABLE[name], slope)
    exact = act(z.double()) if name != "prelu" else torch.where(z > 0, z, slope * z).double()
    saved = exact.float() if act.saves_output else z
    f, d = torch.empty_like(z), torch.ones_like(z)
    launch(evaluate_kernel, (triton.cdiv(len(z), 1024),), z, saved, f, d, slope, len(z), ACT=name, BLOCK=1024)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(f.double(), exact, rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(d.double(), act.derivative(saved.double()), rtol=8 * eps, atol=8 * eps)


def test_tanh_is_relatively_accurate_near_0(device: str) -> None:
    z = torch.logspace(-12, 0.3, 1000).to(device)
    f = torch.empty_like(z)
    launch(evaluate_kernel, (1,), z, z, f, torch.empty_like(z), 0.0, len(z), ACT="tanh", BLOCK=1024)
    exact = z.double().tanh()
    assert ((f.double() - exact) / exact).abs().max() < 4 * torch.finfo(torch.float32).eps
