"""Kernels in poisoned memory (tests/guard.py), with what no operation of the registry has.

Options that training alone uses, TMA, dropout, quantized inputs, and the engine's own kernels.

The kernels' sums have a fixed order, so that with poison around the same bits must come out as without.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp import functional as fastmlp_functional
from fastmlp.activations import NAMES, NONE, TABLE, Act
from fastmlp.backends.base import BackwardOptions, Dropout, Quantized, Scale, Undo
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.kernels.linear import backward
from fastmlp.kernels.tiles import decisions
from tests.classifiers import OPTIMIZERS, Run, random_data
from tests.guard import guarded
from tests.problems import activation, matrix, vector

BACKEND = TritonBackend()
Results = list[Tensor | None]
#: One, a part of a tile, a tile, a tile and a tail, one number more than that.
FEW = (1, 3, 16, 17, 33, 64, 65)


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(backward, "_ROWS_PER_SPLIT", 32)  # a short batch is split as a long one
    with backends.use("triton"):
        yield


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What the kernels compute in; of float16 no address is another than of bfloat16."""
    return request.param


def check(run: Callable[[], Results], kernels: set[str]) -> None:
    """``run`` guarded gives the same bits, and launches these kernels."""
    torch.manual_seed(1)
    with guarded() as launches:  # first: what writes outside would break more than this test
        found = [None if t is None else t.detach().clone() for t in run()]
    torch.manual_seed(1)
    expected = run()
    assert {launch.name for launch in launches} >= kernels
    for i, (a, b) in enumerate(zip(found, expected)):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)), f"result {i}"
            assert not a.isnan().any(), f"result {i}"


def sizes(rng: random.Random) -> tuple[int, int, int]:
    return rng.choice(FEW), rng.choice(FEW), rng.choice(FEW)


@pytest.mark.feature("Fuzzing", "guarded launches: linear backward", backend="triton")
@pytest.mark.parametrize("name", NAMES)
def test_linear_backward(name: str, dtype: torch.dtype, device: str) -> None:
    rng = random.Random(f"{name}{dtype}")
    m, n, k = sizes(rng)
    m = max(m, 65)  # which is split
    act = activation(rng, name, n, dtype, device)
    previous = NONE if name == "prelu" else Act(TABLE[name], act.slope)
    options: dict[str, Any] = {
        "after": Undo(act, None if name == "none" else matrix(rng, m, n, dtype, device)),
        "before": Undo(previous, None if previous is NONE else matrix(rng, m, k, dtype, device)),
        "scale": Scale(torch.ones((), device=device), torch.full((), 3.0, device=device)),
        "scale_input": True,
        "bias_dtype": dtype,
        "dtype": dtype,
    }
    grad, x, w = (matrix(rng, *size, dtype, device) for size in ((m, n), (m, k), (n, k)))
    run = lambda: [*BACKEND.linear_backward(grad, x, w, BackwardOptions(**options))]  # noqa: E731
    check(run, {"linear_backward_kernel", "sum_splits_kernel"})


@pytest.mark.feature("Fuzzing", "guarded launches: products fed by TMA", backend="triton")
@pytest.mark.parametrize("act", ["relu", "gelu"])
def test_tma(act: str, dtype: torch.dtype, device: str) -> None:
    if device == "cuda" and (torch.cuda.get_device_capability()[0] < 9 or dtype == torch.float32):
        pytest.skip("this GPU has no TMA, or none for float32 without TF32")
    each = 16 // dtype.itemsize
    m, n, k = 70, 9 * each, 17 * each
    x = torch.randn(m + 3, k + 2 * each, device=device).to(dtype)[2:-1, each:-each]
    w, grad = torch.randn(n, k, device=device).to(dtype), torch.randn(m, n, device=device).to(dtype)
    bias, saved = torch.randn(n, device=device).to(dtype), torch.randn(m, k, device=device).to(dtype)
    kind = Act(TABLE[act])

    def run() -> Results:
        with decisions.force("tma"):
            y = BACKEND.linear_act(x, w, bias, kind, True, dtype)
            options = BackwardOptions(dtype, before=Undo(kind, saved), bias_dtype=dtype)
            grads = BACKEND.linear_backward(grad, x, w, options)
        return [*y, *grads]

    check(run, {"matmul_kernel"})


@pytest.mark.feature("Fuzzing", "guarded launches: dropout", backend="triton")
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_dropout(name: str, dtype: torch.dtype, device: str) -> None:
    rng = random.Random(f"{name}{dtype}")
    m, n, k = sizes(rng)
    x, w = matrix(rng, m, k, dtype, device), matrix(rng, n, k, dtype, device)
    grad, saved = matrix(rng, m, n, dtype, device), matrix(rng, m, k, dtype, device)
    act, seed = Act(TABLE[name]), torch.tensor([5], device=device)
    drop, before = Dropout(0.3, seed, 1), Dropout(0.4, seed, 0)

    def run() -> Results:
        y, z = BACKEND.linear_act(x, w, None, act, True, dtype, drop)
        after = Undo(act, y if act.saves_output else z, drop)
        options = BackwardOptions(dtype, after, before=Undo(act, saved, before))
        grads = BACKEND.linear_backward(grad, x, w, options)
        return [y, z, *grads, BACKEND.dropout_mask(drop, m, n)]

    check(run, {"linear_act_kernel", "linear_backward_kernel", "dropout_mask_kernel"})


@pytest.mark.feature("Fuzzing", "guarded launches: quantized inputs", backend="triton")
@pytest.mark.parametrize("kind", ["scale", "affine"])
def test_quantized(kind: str, dtype: torch.dtype, device: str) -> None:
    rng = random.Random(f"{kind}{dtype}")
    m, n, k = sizes(rng)
    values = torch.randint(256, (50, 2 * k), dtype=torch.uint8, device=device)[:, ::2]
    index = torch.randint(50, (2 * m,), device=device)[::2]
    numbers: Any = (1 / 255, None)
    if kind == "affine":
        numbers = torch.rand(k, device=device), torch.rand(2 * k, device=device)[::2]
    x = Quantized(values, *numbers, index.contiguous())
    w, bias = matrix(rng, n, k, dtype, device), vector(rng, n, dtype, device)
    grad = matrix(rng, m, n, dtype, device)

    def run() -> Results:
        y = BACKEND.linear_act(x, w, bias, NONE, False, dtype)
        options = BackwardOptions(dtype, need_input=False, bias_dtype=dtype)
        grads = BACKEND.linear_backward(grad, x, w, options)
        return [*y, *grads]

    check(run, {"linear_act_kernel", "linear_backward_kernel"})


@pytest.mark.feature("Fuzzing", "guarded launches: cross-entropy", backend="triton")
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_cross_entropy(reduction: str, dtype: torch.dtype, device: str) -> None:
    """More classes than a program holds at once."""
    x = torch.randn(2, 4500, device=device).to(dtype).requires_grad_()
    target = torch.randint(4500, (2,), device=device)

    def run() -> Results:
        loss = fastmlp_functional.cross_entropy(x, target, reduction=reduction, z_loss=1e-3)
        return [loss, *torch.autograd.grad(loss.sum(), x)]

    check(run, {"cross_entropy_forward_kernel", "cross_entropy_backward_kernel"})


@pytest.mark.feature("Fuzzing", "guarded launches: linear cross-entropy", backend="triton")
def test_linear_cross_entropy(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(37, 12, device=device).to(dtype).requires_grad_()
    w = torch.randn(300, 12, device=device).to(dtype).requires_grad_()
    target = torch.randint(300, (37,), device=device)

    def run() -> Results:
        loss = fastmlp_functional.linear_cross_entropy(x, w, target, workspace=8000)
        return [loss, *torch.autograd.grad(loss, (x, w))]

    check(run, {"cross_entropy_forward_kernel", "cross_entropy_backward_kernel"})


@pytest.mark.few(2)
@pytest.mark.feature("Fuzzing", "guarded launches: training step", backend="triton")
@pytest.mark.parametrize("name", ["sgd", "nesterov", "groups"])
def test_step(name: str, dtype: torch.dtype, device: str) -> None:
    rng = random.Random(f"{name}{dtype}")
    net = nn.Sequential(
        nn.Linear(17, 33), nn.SiLU(), nn.Linear(33, 20, bias=False), nn.ReLU(), nn.Linear(20, 10)
    )
    loss = fastmlp.CrossEntropyLoss(
        torch.rand(10), label_smoothing=0.1, reduction=rng.choice(["mean", "sum"])
    )
    start = Run(net.to(device), loss.to(device), OPTIMIZERS[name](list(net.parameters())))
    x, y = random_data(rng, start, 81, device)

    def run() -> Results:
        again = start.copy()
        step = fastmlp.TrainStep(again.net, again.loss, again.optimizer, dtype=dtype)
        losses = [step(x[:65], y[:65]), step(x[65:], y[65:])]
        assert step.engine == "fused"
        return [*losses, *again.parameters(), *again.states()]

    check(run, {"head_kernel", "update_kernel"})


@pytest.mark.feature("Fuzzing", "guarded launches: epoch in one launch", backend="triton")
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_epoch(name: str, dtype: torch.dtype, device: str) -> None:
    x = torch.randint(256, (45, 20), dtype=torch.uint8, device=device)
    y = torch.randint(10, (45,), device=device)

    def run() -> Results:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(20, 33), nn.GELU(), nn.Linear(33, 10)).to(device)
        optimizer = OPTIMIZERS[name](list(net.parameters()))
        fastmlp.fit(
            net,
            (x, y),
            epochs=1,
            batch_size=32,
            optimizer=optimizer,
            engine="persistent",
            dtype=dtype,
            seed=3,
        )
        return list(net.parameters())

    check(run, {"epoch_kernel"})
