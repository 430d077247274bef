"""The shared device functions on their own."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from fastmlp.kernels.common.device import store, tile_of
from fastmlp.kernels.launch import launch


@triton.jit
def store_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    store(y_ptr + i, tl.load(x_ptr + i, mask=i < n, other=0.0), i < n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stores_round_to_nearest_even(dtype: torch.dtype, device: str) -> None:
    """Bit for bit torch's rounding, with zeros of both signs, halfway cases, infinities and NaN."""
    special = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1 + 2**-8, 1 + 3 * 2**-8, 65504.0, -1e-3]
    x = torch.cat([torch.tensor(special), torch.randn(500)]).to(device)
    y = torch.empty_like(x, dtype=dtype)
    launch(store_kernel, (1,), x, y, len(x), BLOCK=512)
    torch.testing.assert_close(y, x.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.signbit(y[:4]), torch.signbit(x[:4]))


@triton.jit
def order_kernel(m_ptr, n_ptr, num_m, num_n, GROUP_M: tl.constexpr):
    pid = tl.program_id(0)
    m, n = tile_of(pid, num_m, num_n, GROUP_M)
    tl.store(m_ptr + pid, m)
    tl.store(n_ptr + pid, n)


@pytest.mark.parametrize(("num_m", "num_n"), [(1, 1), (3, 5), (8, 2), (17, 3), (9, 1)])
def test_every_tile_is_taken_once(num_m: int, num_n: int, device: str) -> None:
    m = torch.empty(num_m * num_n, dtype=torch.int32, device=device)
    n = torch.empty_like(m)
    launch(order_kernel, (num_m * num_n,), m, n, num_m, num_n, GROUP_M=4)
    tiles = set(zip(m.tolist(), n.tolist()))
    assert tiles == {(i, j) for i in range(num_m) for j in range(num_n)}
