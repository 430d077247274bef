"""The backward kernel against float64 and against torch's own ops."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from fastmlp.activations import NAMES, TABLE, Act
from fastmlp.backends.base import BackwardOptions, Scale, Undo
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.linear import backward as module
from tests.gradients import check
from tests.problems import DTYPES, SIZES, activation, matrix


@pytest.mark.few(36)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_problem(name: str, dtype: torch.dtype, seed: int, device: str) -> None:
    """8 x 9 x 3 = 216 problems: prologue and epilogue activations, strides, missing parts, scale."""
    rng = random.Random(f"{name}{dtype}{seed}")
    m, n, k = (rng.choice(SIZES) for _ in range(3))
    grad = matrix(rng, m, n, dtype, device)
    if rng.random() < 0.2:
        grad = torch.randn((), device=device).to(dtype).expand(m, n)  # what .sum() sends back
    act = activation(rng, name, n, dtype, device)
    previous = activation(rng, rng.choice([a for a in NAMES if a != "prelu"]), k, dtype, device)
    scale = Scale(torch.randn((), device=device), torch.tensor(7.0, device=device))
    options = {
        "after": Undo(act, None if name == "none" else act(matrix(rng, m, n, dtype, device))),
        "before": Undo(
            previous, None if previous.name == "none" else previous(matrix(rng, m, k, dtype, device))
        ),
        "scale": scale if rng.random() < 0.4 else None,
        "scale_input": False,
        "need_input": rng.random() < 0.8,
        "need_params": True,
        "bias_dtype": dtype if rng.random() < 0.7 else None,
        "dtype": dtype,
    }
    check(grad, matrix(rng, m, k, dtype, device), matrix(rng, n, k, dtype, device), **options)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("rows", [1024, 1500, 4097])
@pytest.mark.parametrize("name", ["none", "prelu"])
def test_split_batch(rows: int, name: str, device: str) -> None:
    """A long batch over a small layer is split, summed in a fixed order, and scaled once."""
    act = Act(TABLE[name], weight=torch.randn(13, device=device) if name == "prelu" else None)
    grad, x = torch.randn(rows, 13, device=device), torch.randn(rows, 21, device=device)
    options: dict[str, Any] = {
        "after": Undo(act, torch.randn(rows, 13, device=device) if name == "prelu" else None),
        "scale": Scale(torch.tensor(3.0, device=device), torch.tensor(5.0, device=device)),
        "bias_dtype": torch.float32,
        "dtype": torch.float32,
    }
    w = torch.randn(13, 21, device=device)
    with record_launches() as launches:
        first = check(grad, x, w, **options)
    assert [launch.name for launch in launches] == ["linear_backward_kernel", "sum_splits_kernel"]
    again = TritonBackend().linear_backward(grad, x, w, BackwardOptions(**options))
    assert all(a is b or torch.equal(a, b) for a, b in zip(first, again)), "not repeatable to the bit"


def test_splits_cover_the_batch() -> None:
    """Every row is reduced exactly once, whatever the sizes."""
    for rows in (1, 31, 256, 1023, 1024, 60000, 1 << 20):
        for tiles in (1, 5, 131, 132, 4096):
            splits, each = module.split_batch(rows, tiles, 64, 132)
            assert (splits - 1) * each < rows <= splits * each
            assert splits == 1 or each % 64 == 0


def test_scaled_input(device: str) -> None:
    grad, x, w = (torch.randn(s, device=device) for s in ((30, 5), (30, 8), (5, 8)))
    scale = Scale(torch.tensor(2.0, device=device), torch.tensor(3.0, device=device))
    check(grad, x, w, scale=scale, scale_input=True, dtype=torch.float32)
    check(grad, x, w, scale=scale, scale_input=False, dtype=torch.float32)


def test_only_the_input(device: str) -> None:
    grad, x, w = (torch.randn(s, device=device) for s in ((30, 5), (30, 8), (5, 8)))
    grads = check(grad, x, w, need_params=False, dtype=torch.float32)
    assert grads.weight is None
    assert grads.bias is None


def test_one_launch_for_all_gradients(device: str) -> None:
    grad, x, w = (torch.randn(s, device=device) for s in ((256, 10), (256, 256), (10, 256)))
    with record_launches() as launches:
        before = Undo(Act(TABLE["relu"]), x.relu())
        options = BackwardOptions(torch.float32, before=before, bias_dtype=torch.float32)
        TritonBackend().linear_backward(grad, x, w, options)
    assert len(launches) == 1


def test_zero_gradient_times_infinite_saved_output(device: str) -> None:
    """relu(inf) = inf has derivative 1: no 0 * inf may leak in from masked lanes."""
    saved = torch.full((3, 5), float("inf"), device=device)
    grad = torch.randn(3, 5, device=device)
    x, w = torch.randn(3, 7, device=device), torch.randn(5, 7, device=device)
    undo = Undo(Act(TABLE["relu"]), saved)
    check(grad, x, w, after=undo, bias_dtype=torch.float32, dtype=torch.float32)
