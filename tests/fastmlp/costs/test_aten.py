"""What torch's own ops take, from their recorded arguments."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastmlp.costs import aten
from fastmlp.costs.floors import Work
from fastmlp.profiling.session import exported, profile
from tests.reached import CEILINGS

M, K, N = 6, 5, 4


def recorded(name: str, call: Callable[[], Any]) -> dict[str, Any]:
    """What torch's profiler says of an op in ``call``."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as prof:
        call()
    return next(e["args"] for e in json.loads(exported(prof))["traceEvents"] if e["name"] == name)


X, W, B, Y = torch.randn(M, K), torch.randn(N, K), torch.randn(N), torch.randn(M, N)
PRODUCT = 2 * M * K * N
CASES: dict[str, tuple[Callable[[], Any], int, int]] = {
    # op: a call, operations, elements of float32 through memory
    "aten::mm": (lambda: X @ W.t(), PRODUCT, M * K + K * N + M * N),
    "aten::addmm": (lambda: torch.addmm(B, X, W.t()), PRODUCT, N + M * K + K * N + M * N),
    "aten::addmm_": (lambda: Y.clone().addmm_(X, W.t()), PRODUCT, 2 * M * N + M * K + K * N),
    "aten::bmm": (lambda: torch.bmm(X[None], W.t()[None]), PRODUCT, M * K + K * N + M * N),
    "aten::relu": (lambda: Y.relu(), 0, 2 * M * N),
    "aten::relu_": (lambda: Y.clone().relu_(), 0, 2 * M * N),
    "aten::add": (lambda: Y + B, 0, 2 * M * N + N),
    "aten::sum": (lambda: Y.sum(0), 0, M * N + N),
    "aten::copy_": (lambda: torch.empty(M, N).copy_(B), 0, M * N + N),
    "aten::zero_": (lambda: Y.clone().zero_(), 0, M * N),
    "aten::_softmax": (lambda: Y.softmax(1), 0, 2 * M * N),
}


@pytest.mark.parametrize("name", CASES)
def test_operands_once_and_results_once(name: str) -> None:
    call, operations, elements = CASES[name]
    args = recorded(name, call)
    assert aten.is_kernel(name, args)
    assert aten.count(name, args) == (Work(operations, 4 * elements, 1, 4 * elements), "float32")


def test_what_is_written_over_is_not_read() -> None:
    out = torch.empty(M, N)
    args = recorded("aten::addmm", lambda: torch.addmm(B, X, W.t(), out=out))
    found = aten.count("aten::addmm", args).work
    assert found is not None
    assert (found.operations, found.bytes) == (PRODUCT, 4 * (N + M * K + K * N + M * N))


def test_rows_that_are_picked_are_read_alone() -> None:
    data, index = torch.randn(1000, K), torch.tensor([3, 4])
    args = recorded("aten::index_select", lambda: data.index_select(0, index))
    found = aten.count("aten::index_select", args).work
    assert found is not None
    assert found.bytes == 2 * 4 * 2 * K + 2 * 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_dtype(dtype: torch.dtype) -> None:
    x = torch.zeros(M, K, dtype=dtype)
    found = aten.count("aten::mm", recorded("aten::mm", lambda: x @ x.t()))
    assert found.dtype == str(dtype).removeprefix("torch.")
    assert found.work is not None
    assert found.work.bytes == dtype.itemsize * (2 * M * K + M * M)


def test_views_memory_and_compositions_are_no_kernels() -> None:
    for name, call in {
        "aten::t": lambda: X.t(),
        "aten::view": lambda: X.view(-1),
        "aten::empty": lambda: torch.empty(3),
        "aten::linear": lambda: torch.nn.functional.linear(X, W),
        "aten::detach": lambda: X.detach(),
    }.items():
        assert not aten.is_kernel(name, recorded(name, call)), name
    assert not aten.is_kernel("fastmlp::chain", {})
    assert not aten.is_kernel("AddmmBackward0", {"Input type": ["float"]})


def test_nothing_is_guessed() -> None:
    """Where indices decide what is touched, and where dtypes are not recorded."""
    target = torch.zeros(M, dtype=torch.int64)
    loss = recorded("aten::nll_loss_forward", lambda: torch.nn.functional.nll_loss(Y, target))
    assert aten.is_kernel("aten::nll_loss_forward", loss)
    assert aten.count("aten::nll_loss_forward", loss).work is None
    many = recorded("aten::cat", lambda: torch.cat([X, X]))
    assert aten.count("aten::cat", many).work is None
    assert aten.count("aten::mm", {}).work is None


def test_unknown_work_leaves_cells_empty() -> None:
    with profile(ceilings=CEILINGS) as prof:
        torch.cat([X, X])
    if torch.cuda.is_available() and not prof.found.kernels:
        pytest.skip("CPU ops are no kernels where a GPU worked")
    row = next(row for row in prof.rows if row.name == "aten::cat")
    assert (row.bytes, row.operations, row.bandwidth, row.peak, row.floor) == (None,) * 5
    assert row.seconds > 0
