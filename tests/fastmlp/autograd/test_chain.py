"""The chain's autograd node: gradients, what is skipped, second backwards, launches."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.activations import NAMES, TABLE, Act
from fastmlp.functional.linear import Layer, chain
from fastmlp.functional.ways import aten_chain
from fastmlp.kernels.launch import record_launches
from tests.numerics import assert_as_good_as_torch
from tests.problems import SIZES, activation, matrix, vector


@pytest.fixture(autouse=True)
def _triton():
    with backends.use("triton"):
        yield


def draw(seed: int, dtype: torch.dtype, device: str, name: str | None = None) -> tuple[Tensor, list[Layer]]:
    """A random input and 1 to 4 layers of random widths and activations."""
    rng = random.Random(seed)
    widths = [rng.choice(SIZES) for _ in range(rng.randint(2, 5))]
    x = matrix(rng, rng.choice(SIZES), widths[0], dtype, device)
    layers = []
    for k, n in itertools.pairwise(widths):
        act = activation(rng, name or rng.choice(NAMES), n, dtype, device)
        bias = vector(rng, n, dtype, device) if rng.random() < 0.7 else None
        layers.append(Layer(matrix(rng, n, k, dtype, device) / k**0.5, bias, act))
    return x, layers


def tensors_of(x: Tensor, layers: list[Layer]) -> list[Tensor]:
    return [x, *(t for w, b, a, *_ in layers for t in (w, b, a.weight) if t is not None)]


def with_grad(x: Tensor, layers: list[Layer], dtype: torch.dtype | None = None) -> tuple[Tensor, list[Layer]]:
    def leaf(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().clone().to(dtype or t.dtype).requires_grad_()

    fresh = [Layer(leaf(w), leaf(b), a._replace(weight=leaf(a.weight))) for w, b, a, *_ in layers]  # type: ignore[arg-type]
    return leaf(x), fresh  # type: ignore[return-value]


@pytest.mark.few(12)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_random_chain(seed: int, dtype: torch.dtype, device: str) -> None:
    """Output and every gradient, against float64 and torch's own error."""
    x, layers = draw(seed, dtype, device)
    runs = []
    for function, kind in ((chain, dtype), (aten_chain, dtype), (aten_chain, torch.float64)):
        xi, li = with_grad(x, layers, kind)
        y = function(xi, li)
        torch.manual_seed(seed)
        grad = torch.randn(y.shape, device=device).to(dtype)
        runs.append([y, *torch.autograd.grad(y, tensors_of(xi, li), grad.to(kind))])
    for i, (ours, theirs, exact) in enumerate(zip(*runs)):
        assert_as_good_as_torch(ours, theirs, exact, f"seed {seed}, tensor {i}", roundings=2 * len(layers))


def test_leading_dimensions_and_empty_batches(device: str) -> None:
    _, layers = draw(3, torch.float32, device, name="gelu")
    k = layers[0].weight.shape[1]
    for shape in [(k,), (0, k), (2, 0, k), (3, 5, k)]:
        x, li = with_grad(torch.randn(shape, device=device), layers)
        y = chain(x, li)
        assert y.shape == (*shape[:-1], layers[-1].weight.shape[0])
        grads = torch.autograd.grad(y.sum(), tensors_of(x, li))
        expected = torch.autograd.grad(aten_chain(x, li).sum(), tensors_of(x, li))
        for a, b in zip(grads, expected):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_frozen_layers_are_skipped(device: str) -> None:
    """No gradient for the input: no dX of the first layer; a frozen stem: nothing below is launched."""
    w = [torch.randn(9, 8, device=device), torch.randn(7, 9, device=device), torch.randn(5, 7, device=device)]
    x = torch.randn(6, 8, device=device)
    for weight in w[1:]:
        weight.requires_grad_()
    y = chain(x, [Layer(weight, None) for weight in w])
    with record_launches() as launches:
        y.sum().backward()
    made = [(s.named["dx"] is not None, s.named["out"] is not None) for s in launches]
    assert made == [(True, True), (False, True)]
    assert w[0].grad is None
    torch.testing.assert_close(w[1].grad, (torch.ones_like(y) @ w[2].detach()).t() @ (x @ w[0].t()))


def test_launches_of_a_step(device: str) -> None:
    """Depth L: L launches forward, L backward; nothing masks or sums in a pass of its own."""
    act = Act(TABLE["relu"])
    widths = (784, 256, 64, 10)
    layers = [
        Layer(
            torch.randn(n, k, device=device, requires_grad=True),
            torch.randn(n, device=device, requires_grad=True),
            act,
        )
        for k, n in itertools.pairwise(widths)
    ]
    with record_launches() as launches:
        chain(torch.randn(256, 784, device=device), layers).sum().backward()
    assert [s.name for s in launches] == ["linear_act_kernel"] * 3 + ["linear_backward_kernel"] * 3


def test_inference_keeps_nothing(device: str) -> None:
    _, layers = draw(3, torch.float32, device, name="gelu")
    x = torch.randn(4, layers[0].weight.shape[1], device=device)
    with torch.no_grad(), record_launches() as launches:
        chain(x, layers)
    assert all(s.named["z"] is None for s in launches)
