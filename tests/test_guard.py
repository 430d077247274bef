"""The guard catches what it is for: stores and loads next to, and between, a kernel's arguments."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.launch import INTERPRETED, launch
from tests import guard
from tests.guard import OutOfBoundsError, guarded


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, stride, first, BLOCK: tl.constexpr):
    """y[first:n] = x[0:n - first] * 1."""
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + (i - first) * stride, mask=(i >= first) & (i < n), other=0)
    tl.store(y_ptr + i, x, mask=(i >= first) & (i < n))


@triton.jit
def shifted_kernel(x_ptr, y_ptr, n, shift, BLOCK: tl.constexpr):
    """y = x + x[shift:], as if x were longer."""
    i = tl.arange(0, BLOCK)
    ok = i < n
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=ok) + tl.load(x_ptr + i + shift, mask=ok), mask=ok)


@triton.jit
def unmasked_kernel(y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.zeros((BLOCK,), tl.float32))


@pytest.fixture(params=[True, False] if INTERPRETED else [False])
def addresses(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether loads are checked by address too; without, all is found as it is on a GPU."""
    if not request.param:
        monkeypatch.setattr(guard, "INTERPRETED", False)
    return request.param


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_right_kernel_passes_and_its_results_come_back(
    dtype: torch.dtype, addresses: bool, device: str
) -> None:
    x = torch.arange(39, device=device).to(dtype)[3::3]
    y = torch.zeros(40, device=device, dtype=dtype)
    with guarded() as launches:
        launch(copy_kernel, (1,), x, y[5:17], 12, 3, 0, BLOCK=16)
    assert len(launches) == 1
    assert y.tolist() == [0] * 5 + list(range(3, 39, 3)) + [0] * 23


def off_by_one_store(y: Tensor) -> None:
    launch(copy_kernel, (1,), y.clone(), y, len(y) + 1, 1, 1, BLOCK=16)  # y[n] = x[n - 1]


def store_in_front(y: Tensor) -> None:
    launch(copy_kernel, (1,), y.new_ones(3), y, 2, 1, -1, BLOCK=16)


@triton.jit
def before_kernel(y_ptr):
    tl.store(y_ptr - 1, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_store_behind_the_last_element(dtype: torch.dtype, addresses: bool, device: str) -> None:
    y = torch.ones(40, device=device, dtype=dtype)
    with guarded(), pytest.raises(OutOfBoundsError, match=r"copy_kernel wrote (0 bytes behind|1 elements)"):
        off_by_one_store(y[:7])
    with guarded(), pytest.raises(OutOfBoundsError, match=r"before_kernel wrote (. bytes before|1 elements)"):
        launch(before_kernel, (1,), y[8:9])


def test_a_tail_without_a_mask(addresses: bool, device: str) -> None:
    y = torch.ones(40, device=device)
    with guarded(), pytest.raises(OutOfBoundsError, match="unmasked_kernel wrote"):
        launch(unmasked_kernel, (1,), y[:13], BLOCK=16)
    with guarded():
        launch(unmasked_kernel, (1,), y[:16], BLOCK=16)
    assert y.tolist() == [0.0] * 16 + [1.0] * 24


def test_a_store_into_a_gap(addresses: bool, device: str) -> None:
    """Rows of 5 in memory of 8 each: what lies between is nobody's."""
    rows = torch.ones(4, 8, device=device)[:, :5]
    with guarded(), pytest.raises(OutOfBoundsError, match=r"wrote (in a gap of|\d+ elements)"):
        launch(unmasked_kernel, (1,), rows, BLOCK=16)
    columns = torch.ones(16, 2, device=device)[:, 0]
    with guarded(), pytest.raises(OutOfBoundsError, match=r"wrote (in a gap of|\d+ elements)"):
        launch(unmasked_kernel, (1,), columns, BLOCK=16)


def test_a_load_behind_the_last_element_is_nan(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a result shows it; there is memory behind, so that without the guard all looks well."""
    x, y = torch.ones(40, device=device), torch.zeros(8, device=device)
    launch(shifted_kernel, (1,), x[:8], y, 8, 1, BLOCK=8)
    assert y.tolist() == [2.0] * 8
    monkeypatch.setattr(guard, "INTERPRETED", False)
    with guarded():
        launch(shifted_kernel, (1,), x[:8], y, 8, 1, BLOCK=8)
    assert y[:7].tolist() == [2.0] * 7
    assert y[7].isnan()


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter alone tells where a load goes")
def test_a_load_behind_the_last_element_raises(device: str) -> None:
    x, y = torch.ones(40, device=device), torch.zeros(8, device=device)
    with guarded(), pytest.raises(OutOfBoundsError, match="shifted_kernel read 1 elements"):
        launch(shifted_kernel, (1,), x[:8], y, 8, 1, BLOCK=8)
    with guarded():
        launch(shifted_kernel, (1,), x[:9], y, 8, 1, BLOCK=8)


def test_arguments_that_overlap_still_do(addresses: bool, device: str) -> None:
    """An in-place kernel: what is written by one name is read by the other, and a neighbour stays apart."""
    x = torch.arange(16.0, device=device)
    with guarded():
        launch(copy_kernel, (1,), x, x[4:12], 8, 1, 0, BLOCK=16)
    assert x.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]
    sums = torch.zeros(5, device=device)
    with guarded(), pytest.raises(OutOfBoundsError):
        launch(shifted_kernel, (1,), sums[1:], sums[:1], 4, 0, BLOCK=4)


def test_expanded_arguments(addresses: bool, device: str) -> None:
    x, y = torch.ones(1, device=device).expand(9), torch.zeros(9, device=device)
    with guarded():
        launch(copy_kernel, (1,), x, y, 9, 0, 0, BLOCK=16)
    assert y.tolist() == [1.0] * 9
