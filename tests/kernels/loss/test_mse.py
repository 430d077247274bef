"""The squared error's kernels against float64, and against torch's own op in float32, rounded once."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.loss import mse as kernels
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, SIZES, matrix

INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Problem:
    """Predictions, targets and weights (M, C)."""

    input: Tensor
    target: Tensor
    weight: Tensor | None = None
    reduction: str = "mean"


def ours(p: Problem, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss and the input's gradient by the kernels; ``grad`` by default that of a scalar 1."""
    loss, denominator = kernels.forward(p.input, p.target, p.weight, reduction=p.reduction)
    grad = torch.ones_like(loss) if grad is None else grad
    return loss, kernels.backward(grad, p.input, p.target, p.weight, denominator, reduction=p.reduction)


def torchs(p: Problem, dtype: torch.dtype, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The same by torch's own ops in ``dtype``."""
    x = p.input.detach().to(dtype).requires_grad_()
    weight = {} if p.weight is None else {"weight": p.weight.to(dtype)}
    loss = F.mse_loss(x, p.target.to(dtype), reduction=p.reduction, **weight)
    (dx,) = torch.autograd.grad(loss, x, torch.ones_like(loss) if grad is None else grad.to(dtype))
    return loss.detach(), dx


def check(p: Problem, grad: Tensor | None = None, what: str = "") -> None:
    """Loss and gradient are never worse than twice torch's error in float32, rounded to the dtype once."""
    runs = ours(p, grad), torchs(p, torch.float32, grad), torchs(p, torch.float64, grad)
    for name, a, b, c in zip(("loss", "gradient"), *runs):
        assert_as_good_as_torch(a, b.to(p.input.dtype), c, f"{name} {what} {tuple(p.input.shape)}")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_problem(dtype: torch.dtype, seed: int, device: str) -> None:
    """3 x 20 problems: sizes, every layout, also of an upstream gradient for each element."""
    rng = random.Random(f"{seed}{dtype}")
    m, c = rng.choice(SIZES), rng.choice(SIZES)
    x, t = (matrix(rng, m, c, dtype, device) for _ in range(2))
    weight = rng.choice([None, None, matrix(rng, m, c, dtype, device).abs()])
    p = Problem(x, t if rng.random() < 0.7 else t[:1].expand(m, c), weight, ["none", "mean", "sum"][seed % 3])
    upstream = matrix(rng, m, c, dtype, device)
    if rng.random() < 0.4:
        upstream = upstream[:1, :1].expand(m, c)
    check(p, upstream if p.reduction == "none" else upstream[0, 0], f"seed {seed}")


@pytest.mark.usefixtures("poisoned")
def test_sizes_around_the_blocks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One program, several, and programs with several blocks each, the last of them short."""
    for count in (1, 1023, 1024, 1025, kernels._ONE_PROGRAM, kernels._ONE_PROGRAM + 1):
        check(Problem(torch.randn(count, 1, device=device), torch.randn(count, 1, device=device)))
    monkeypatch.setattr(kernels, "_MOST_PROGRAMS", 3)
    x, t = (torch.randn(5000, 7, device=device) for _ in range(2))
    for reduction in ("mean", "sum", "none"):
        check(Problem(x, t, None, reduction))
        check(Problem(x, t, torch.rand(5000, 7, device=device), reduction))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("columns", "padding", "offset"),
    [(1000, 0, 0), (1000, 0, 1), (1000, 0, 4), (1000, 8, 0), (1000, 1, 0), (1004, 2, 0), (1001, 0, 0)],
)
def test_rows_of_every_alignment(
    dtype: torch.dtype, columns: int, padding: int, offset: int, device: str
) -> None:
    """The kernels are compiled for what divides strides, sizes and addresses, and all of it is true."""
    memory = torch.randn(2, offset + 3 * (columns + padding), device=device).to(dtype)
    x, t = (each[offset:].view(3, columns + padding)[:, :columns] for each in memory)
    check(Problem(x, t))
    check(Problem(x, t.contiguous(), x.abs(), "none"), t)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_torch_gives_for_what_is_not_finite(dtype: torch.dtype, device: str) -> None:
    huge = torch.finfo(dtype).max / 8
    values = torch.tensor([0.0, 1.0, -1.0, INF, -INF, NAN, huge], device=device).to(dtype)
    x, t = torch.meshgrid(values, values, indexing="ij")
    for weight in (None, torch.ones_like(x), torch.zeros_like(x)):
        for reduction in ("none", "mean"):
            p = Problem(x, t, weight, reduction)
            for got, expected in zip(ours(p), torchs(p, torch.float32)):
                torch.testing.assert_close(got, expected.to(dtype), equal_nan=True)


def test_no_weight_at_all(device: str) -> None:
    """A mean over no weight is NaN."""
    x, t = torch.randn(5, 3, device=device), torch.randn(5, 3, device=device)
    p = Problem(x, t, torch.zeros(5, 3, device=device))
    assert all(got.isnan().all() for got in (*ours(p), *torchs(p, torch.float32)))


def test_large_numbers_close_to_each_other(device: str) -> None:
    """The difference is formed in float32, whatever the dtype, before it is squared."""
    for dtype in DTYPES:
        x = (torch.randn(33, 10, device=device) + 300).to(dtype)
        check(Problem(x, (x.float() + torch.randn(33, 10, device=device)).to(dtype)))


def test_launches(device: str) -> None:
    """A batch of a small regression: one launch forward with the mean in it, one backward."""
    small = [torch.randn(256, 10, device=device) for _ in range(2)]
    large = [torch.randn(4000, 10, device=device) for _ in range(2)]
    for data, reduction, names in (
        (small, "mean", ["mse_forward_kernel", "mse_backward_kernel"]),
        (large, "sum", ["mse_forward_kernel", "finish_loss_kernel", "mse_backward_kernel"]),
        (large, "none", ["mse_forward_kernel", "mse_backward_kernel"]),
    ):
        with record_launches() as launches:
            ours(Problem(*data, None, reduction))
        assert [launch.name for launch in launches] == names


def test_an_expanded_upstream_gradient_is_one_number(device: str) -> None:
    """As ``loss.sum()`` of reduction "none" gives; contiguous operands stay a flat run of elements."""
    x, t = torch.randn(9, 10, device=device), torch.randn(9, 10, device=device)
    with record_launches() as launches:
        ours(Problem(x, t, None, "none"), torch.ones(1, 1, device=device).expand(9, 10))
    assert not launches[1].options["EACH"]
    assert launches[1].args[0].row is None


def test_runs_are_bitwise_repeatable(device: str) -> None:
    p = Problem(torch.randn(3001, 10, device=device), torch.randn(3001, 10, device=device))
    assert all(map(torch.equal, ours(p), ours(p)))
