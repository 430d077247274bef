"""Quantized inputs of the functional forms: values, gradients, launches, errors, on both backends."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.activations import TABLE, Act
from fastmlp.functional import Layer, Quantized, chain, chain_cross_entropy, linear_act, mlp
from fastmlp.kernels.launch import record_launches
from tests.kernels.common.test_quantized import quantized
from tests.numerics import assert_as_good_as_torch


@pytest.fixture(params=["torch", "triton"], autouse=True)
def backend(request: pytest.FixtureRequest):
    with backends.use(request.param):
        yield request.param


def layers(widths: list[int], dtype: torch.dtype, device: str) -> list[Layer]:
    torch.manual_seed(1)
    made = []
    for k, n in itertools.pairwise(widths):
        weight, bias = torch.randn(n, k, device=device) / k**0.5, torch.randn(n, device=device)
        made.append(
            Layer(weight.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_(), Act(TABLE["gelu"]))
        )
    return [*made[:-1], made[-1]._replace(act=Act(TABLE["none"]))]


def leaves(made: list[Layer]) -> list[Tensor]:
    return [t for layer in made for t in (layer.weight, layer.bias) if t is not None]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_chain(seed: int, dtype: torch.dtype, device: str, backend: str) -> None:
    """Output and gradients; nothing is launched to gather or cast."""
    rng = random.Random(seed)
    widths = [rng.choice([17, 40]), *rng.choice([[9], [33, 9], [33, 20, 9]])]
    q = quantized(rng, 37, widths[0], device)
    runs = []
    for source, kind in ((q, dtype), (q.dense(dtype), dtype), (q.dense(torch.float64), torch.float64)):
        made = layers(widths, dtype, device)
        made = [x._replace(weight=x.weight.to(kind), bias=x.bias.to(kind)) for x in made]  # type: ignore[union-attr]
        with backends.use(backend if source is q else "torch"), record_launches() as launches:
            y = chain(source, made)
            grads = torch.autograd.grad(y.square().sum(), leaves(made))
        if source is q and backend == "triton":
            assert len(launches) == 2 * len(made)
        runs.append([y, *grads])
    for i, (ours, theirs, exact) in enumerate(zip(*runs)):
        assert_as_good_as_torch(ours, theirs, exact, f"tensor {i}", roundings=2 * len(widths))


def test_autocast(device: str) -> None:
    rng = random.Random(4)
    q = quantized(rng, 37, 40, device)
    made = layers([40, 33, 9], torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        y = chain(q, made)
        theirs = chain(q.dense(torch.float32), made)
    wide = [Layer(w.double(), None if b is None else b.double(), a) for w, b, a, _ in made]
    assert y.dtype == torch.bfloat16
    assert_as_good_as_torch(y, theirs, chain(q.dense(torch.float64), wide), roundings=4)
    grads = torch.autograd.grad(y.float().sum(), leaves(made))
    assert all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.parametrize("widths", [[20, 16, 5], [20, 5]])
def test_classifier(widths: list[int], device: str) -> None:
    """With a hidden layer the head closes it; without one the loss is apart."""
    q = Quantized(
        torch.randint(-128, 128, (50, 20), dtype=torch.int8, device=device),
        0.02,
        0.1,
        torch.randint(50, (30,), device=device),
    )
    made = layers(widths, torch.float32, device)
    target = torch.randint(5, (30,), device=device)
    loss, logits = chain_cross_entropy(q, made, target, with_logits=True)
    with backends.use("torch"):
        dense = chain(q.dense(torch.float32), made)
    torch.testing.assert_close(logits, dense.detach(), rtol=1e-4, atol=1e-5)
    expected = F.cross_entropy(dense, target)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(loss, leaves(made)), torch.autograd.grad(expected, leaves(made))
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_double_backward(device: str) -> None:
    """A penalty on a parameter's gradient."""
    q = Quantized(torch.randint(256, (9, 20), dtype=torch.uint8, device=device), 1 / 255, -0.5)
    found = []
    for source in (q, q.dense(torch.float32)):
        made = layers([20, 7, 3], torch.float32, device)
        (grad,) = torch.autograd.grad(chain(source, made).tanh().sum(), made[0].weight, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), leaves(made), allow_unused=True))
    for ours, theirs in zip(*found):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_scales_that_learn_go_to_torch(device: str) -> None:
    scale = torch.ones(20, device=device, requires_grad=True)
    q = Quantized(torch.randint(256, (9, 20), dtype=torch.uint8, device=device), scale)
    w = torch.randn(4, 20, device=device)
    (grad,) = torch.autograd.grad(linear_act(q, w, activation=None).sum(), scale)
    torch.testing.assert_close(grad, (q.values.float().sum(0) * w.sum(0)), rtol=1e-4, atol=1e-2)


def test_leading_dimensions_and_empty_batches(device: str) -> None:
    values = torch.randint(256, (4, 3, 20), dtype=torch.uint8, device=device)
    w = torch.randn(5, 20, device=device)
    y = mlp(Quantized(values, 0.01), [w])
    torch.testing.assert_close(y, F.linear(values * 0.01, w), rtol=1e-4, atol=1e-5)
    assert mlp(Quantized(values[:0], 0.01), [w]).shape == (0, 3, 5)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    assert mlp(Quantized(values[0], index=none), [w]).shape == (0, 5)


def test_an_index_that_lies_apart(device: str) -> None:
    """Every second entry of another, backwards or forwards; and one entry for all rows."""
    values = torch.randint(256, (30, 20), dtype=torch.uint8, device=device)
    order = torch.randperm(30, device=device)
    for index in (order[::2], torch.stack([order, order.flip(0)], 1)[:, 1], order[:1].expand(7)):
        (made,) = layers([20, 5], torch.float32, device)
        x = values[index].float() / 255
        y = chain(Quantized(values, 1 / 255, index=index), [made])
        torch.testing.assert_close(y, F.linear(x, made.weight, made.bias), rtol=1e-4, atol=1e-5)
        (grad,) = torch.autograd.grad(y.sum(), made.weight)
        torch.testing.assert_close(grad, x.sum(0).expand(5, 20), rtol=1e-4, atol=1e-5)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Q = torch.zeros(6, 5, dtype=torch.uint8, device=DEVICE)
W = torch.randn(4, 5, device=DEVICE)
ROWS = torch.zeros(3, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize(
    ("input", "error", "match"),
    [
        (Quantized(Q.int()), TypeError, r"values: expected torch\.uint8 or torch\.int8, got torch\.int32"),
        (Quantized(W), TypeError, r"values: expected .* got torch\.float32"),
        (Quantized(Q[0, 0]), ValueError, r"values: expected \(\.\.\., features\), got \(\)"),
        (
            Quantized(Q[0], index=ROWS),
            ValueError,
            r"values: expected \(N, features\) to take rows of, got \(5,\)",
        ),
        (Quantized(Q[:, :3]), ValueError, r"weight: expected \(N, 3\) to fit input \(6, 3\), got \(4, 5\)"),
        (Quantized(Q, W[0, :3]), ValueError, r"scale: expected a number or \(5,\), got \(3,\)"),
        (Quantized(Q, 1.0, W), ValueError, r"shift: expected a number or \(5,\), got \(4, 5\)"),
        (Quantized(Q, Q[0]), TypeError, r"scale: expected a floating dtype, got torch\.uint8"),
        (Quantized(Q, index=ROWS.float()), TypeError, r"index: expected torch\.int64 or torch\.int32, got"),
        (Quantized(Q, index=ROWS[None]), ValueError, r"index: expected \(M,\), .* got \(1, 3\)"),
        (Quantized(Q, W[0].to("meta")), RuntimeError, r"scale: expected on \S+ as the weight, got meta"),
    ],
)
def test_bad_input(input: Quantized, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        linear_act(input, W)


@pytest.mark.parametrize("wrong", [-1, 6])
def test_an_index_that_is_no_row(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMLP_DEBUG", "1")
    with pytest.raises(IndexError, match=f"index: {wrong} is out of bounds for 6 rows"):
        linear_act(Quantized(Q, index=ROWS + wrong), W)
