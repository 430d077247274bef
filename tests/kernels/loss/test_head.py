"""The head against float64 and against torch's own ops."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmlp.activations import NAMES, TABLE, Act
from fastmlp.backends.base import HeadOptions, HeadResult, LossOptions, SquaredError, Undo, Wanted
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.kernels.launch import record_launches
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, SIZES, activation, matrix, vector

CLASSES = (1, 2, 3, 10, 16, 17, 31, 100, 255, 256)


def exactly(value: Any) -> Any:
    if isinstance(value, Undo):
        return value._replace(saved=exactly(value.saved))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def check(h: Tensor, w: Tensor, b: Tensor | None, *options: Any) -> HeadResult:
    """Loss, logits, dlogits and dZ, each within twice the error of torch's own ops."""
    arguments, asked = (h, w, b), HeadOptions(*options)
    ours = TritonBackend().head(*arguments, asked)
    theirs = TorchBackend().head(*arguments, asked)
    exact_asked = HeadOptions(*map(exactly, asked))._replace(dtype=torch.float64, loss_dtype=torch.float64)
    exact = TorchBackend().head(*map(exactly, arguments), exact_asked)
    for name, a, c, e in zip(HeadResult._fields, ours, theirs, exact):
        assert (a is None) == (e is None), name
        if a is not None:
            assert_as_good_as_torch(a, c.to(a.dtype), e, f"{name} {tuple(h.shape)} -> {len(w)}", roundings=2)
    return ours


@pytest.mark.few(24)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(9))
@pytest.mark.parametrize("name", [name for name in NAMES if name != "prelu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_problem(name: str, dtype: torch.dtype, seed: int, device: str) -> None:
    """9 x 8 x 3 = 216 problems: classes, weights, ignored rows, smoothing, z-loss, layouts."""
    rng = random.Random(f"{name}{dtype}{seed}")
    m, k, c = rng.choice(SIZES), rng.choice(SIZES), rng.choice(CLASSES)
    act = activation(rng, name, k, dtype, device)
    pre = matrix(rng, m, k, dtype, device)
    h = act(pre)
    t = torch.randint(c, (m,), device=device)
    if rng.random() < 0.4:
        t[rng.randrange(m) :: 3] = -100
    if bool((t == -100).all()):
        t[0] = 0  # all ignored is a test of its own
    options = LossOptions(
        reduction=rng.choice(["mean", "sum"]),
        label_smoothing=rng.choice([0.0, 0.0, 0.1]),
        z_loss=rng.choice([0.0, 0.0, 1e-2]),
    )
    check(
        h,
        matrix(rng, c, k, dtype, device) / k**0.5,
        vector(rng, c, dtype, device) if rng.random() < 0.7 else None,
        t,
        torch.rand(c, device=device).to(dtype) + 0.1 if rng.random() < 0.4 else None,
        options,
        Wanted(rng.random() < 0.5, True, rng.random() < 0.8),
        dtype,
        dtype,
        Undo(act, None if name == "none" else (h if act.saves_output else pre)),
    )


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_squared_error(dtype: torch.dtype, seed: int, device: str) -> None:
    """3 x 6 problems of one activation each: outputs, layouts of the targets, what is kept."""
    rng = random.Random(f"mse{dtype}{seed}")
    m, k, c = rng.choice(SIZES), rng.choice(SIZES), CLASSES[seed] if seed < 2 else rng.choice(CLASSES)
    act = activation(rng, ["none", "relu", "tanh", "gelu", "silu", "leaky_relu"][seed], k, dtype, device)
    pre = matrix(rng, m, k, dtype, device)
    h = act(pre)
    target = matrix(rng, m, c, rng.choice([torch.float32, dtype]), device)
    check(
        h,
        matrix(rng, c, k, dtype, device) / k**0.5,
        vector(rng, c, dtype, device) if rng.random() < 0.7 else None,
        target if rng.random() < 0.8 else target[:1].expand(m, c),
        None,
        SquaredError(rng.choice(["mean", "sum"])),
        Wanted(rng.random() < 0.5, True, rng.random() < 0.8),
        dtype,
        dtype,
        Undo(act, None if act.name == "none" else (h if act.saves_output else pre)),
    )


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_a_target_that_is_not_finite_spoils_its_row_alone(value: float, device: str) -> None:
    """More rows than a program takes, fewer outputs than its block: no padding is mixed in."""
    h, w = torch.randn(20, 8, device=device), torch.randn(5, 8, device=device)
    t = torch.randn(20, 5, device=device)
    t[3, 2] = value
    wanted = Wanted(False, True, True)
    options = HeadOptions(t, None, SquaredError("sum"), wanted, torch.float32, torch.float32)
    ours, theirs = (backend.head(h, w, None, options) for backend in (TritonBackend(), TorchBackend()))
    assert ours.dlogits is not None
    finite = torch.isfinite(ours.dlogits.double().square())
    assert finite.sum() >= 99
    for a, b in zip(ours, theirs):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, equal_nan=True)


def run(t: Tensor, classes: int = 5, **options: Any) -> HeadResult:
    torch.manual_seed(0)
    h, w = torch.randn(len(t), 8, device=t.device), torch.randn(classes, 8, device=t.device)
    wanted = Wanted(False, True, True)
    asked = HeadOptions(t, None, LossOptions(**options), wanted, torch.float32, torch.float32)
    return TritonBackend().head(h, w, None, asked)


def test_all_rows_ignored(device: str) -> None:
    result = run(torch.full((7,), -100, device=device))
    assert torch.isnan(result.loss)
    assert result.denominator == 0
    assert torch.equal(result.dlogits, torch.zeros(7, 5, device=device))
    assert run(torch.full((7,), -100, device=device), reduction="sum").loss == 0


@pytest.mark.parametrize("wrong", [-1, 5, 2**40, -(2**40)])
def test_a_target_that_is_no_class_is_nan_in_its_row_alone(wrong: int, device: str) -> None:
    t = torch.tensor([0, wrong, 4], device=device)
    result = run(t)
    assert torch.isnan(result.loss)
    assert result.dlogits is not None
    assert torch.isnan(result.dlogits).all(1).tolist() == [False, True, False]


def test_one_launch_while_one_program_holds_the_rows(device: str) -> None:
    with record_launches() as launches:
        run(torch.zeros(16, dtype=torch.int64, device=device))
        run(torch.zeros(500, dtype=torch.int64, device=device))
    assert [one.name for one in launches] == ["head_kernel", "head_kernel", "finish_loss_kernel"]


def test_evaluation_computes_no_gradient(device: str) -> None:
    h, w = torch.randn(20, 8, device=device), torch.randn(5, 8, device=device)
    t = torch.randint(5, (20,), device=device)
    relu, wanted = Undo(Act(TABLE["relu"]), h), Wanted(True, False, False)
    result = check(h, w, None, t, None, LossOptions(), wanted, torch.float32, torch.float32, relu)
    assert result.dlogits is None
    assert result.dz is None
