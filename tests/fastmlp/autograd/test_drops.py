"""Dropout in a chain's autograd nodes: gradients, double backward, what is stored, launches, seeds."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp.activations import NAMES
from fastmlp.autograd.chain import Drops, reference_chain
from fastmlp.autograd.cross_entropy import reference_loss
from fastmlp.backends.base import LossOptions
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.functional import Layer, chain, chain_cross_entropy, linear_act
from fastmlp.functional.layer import Layers
from fastmlp.functional.ways import draw_seed
from fastmlp.kernels.launch import record_launches
from tests.fastmlp.autograd.test_chain import tensors_of, with_grad
from tests.numerics import assert_as_good_as_torch
from tests.problems import SIZES, activation, matrix, vector

SMOOTH = ("none", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu")


@pytest.fixture(autouse=True)
def _triton():
    with backends.use("triton"):
        yield


def draw(seed: int, dtype: torch.dtype, device: str, last: bool = True) -> tuple[Tensor, list[Layer]]:
    """A random chain with dropouts; after the last layer only if ``last``.

    In 16 bits of smooth activations: a z that rounds to the other side of a kink changes an element of dZ
    as a whole. One layer at a time, from the same z, tests/kernels/common/test_dropout.py has them all.
    """
    rng = random.Random(seed)
    names = NAMES if dtype == torch.float32 else SMOOTH
    widths = [rng.choice(SIZES) for _ in range(rng.randint(2, 4))] + [rng.choice([3, 17, 33])]
    x = matrix(rng, rng.choice(SIZES), widths[0], dtype, device)
    layers = []
    for i, (k, n) in enumerate(itertools.pairwise(widths)):
        open_ended = last or i < len(widths) - 2
        act = activation(rng, rng.choice(names) if open_ended else "none", n, dtype, device)
        bias = vector(rng, n, dtype, device) if rng.random() < 0.7 else None
        p = rng.choice([0.0, 0.2, 0.6, 0.6]) if open_ended else 0.0
        layers.append(Layer(matrix(rng, n, k, dtype, device) / k**0.5, bias, act, p))
    return x, layers


def cloned(x: Tensor, layers: list[Layer], dtype: torch.dtype) -> tuple[Tensor, list[Layer]]:
    x, fresh = with_grad(x, layers, dtype)
    return x, [new._replace(dropout=old.dropout) for new, old in zip(fresh, layers)]


def by_torch(x: Tensor, layers: list[Layer], dtype: torch.dtype) -> Tensor:
    """The chain in torch's ops, under the mask that the next seed gives."""
    chain = Layers(layers)
    drops = Drops(chain.dropouts, draw_seed(x.device))
    return reference_chain(TorchBackend(), x, chain.params, chain.acts, dtype, drops)


@pytest.mark.few(8)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_random_chain(seed: int, dtype: torch.dtype, device: str) -> None:
    """Output and every gradient under one mask, against float64 and torch's own error."""
    x, layers = draw(seed, dtype, device)
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        xi, li = cloned(x, layers, kind)
        torch.manual_seed(seed)
        y = chain(xi, li) if ours else by_torch(xi, li, kind)
        torch.manual_seed(seed)
        grad = torch.randn(y.shape, device=device).to(dtype)
        runs.append([y, *torch.autograd.grad(y, tensors_of(xi, li), grad.to(kind))])
    for i, (ours, theirs, exact) in enumerate(zip(*runs)):
        assert_as_good_as_torch(ours, theirs, exact, f"seed {seed}, tensor {i}", roundings=2 * len(layers))


@pytest.mark.few(4)
@pytest.mark.parametrize("seed", range(8))
def test_random_classifier(seed: int, device: str) -> None:
    """The head leaves a gradient in which the layer below undoes its dropout."""
    x, layers = draw(seed, torch.float32, device, last=False)
    target = torch.randint(layers[-1].weight.shape[0], (len(x),), device=device)
    runs = []
    for kind, ours in ((torch.float32, True), (torch.float32, False), (torch.float64, False)):
        xi, li = cloned(x, layers, kind)
        torch.manual_seed(seed)
        if ours:
            with record_launches() as launches:
                loss, _ = chain_cross_entropy(xi, li, target)
        else:
            loss = reference_loss(by_torch(xi, li, kind), target, None, LossOptions())
        runs.append([loss, *torch.autograd.grad(loss, tensors_of(xi, li))])
    assert "head_kernel" in [one.name for one in launches]
    for i, (ours, theirs, exact) in enumerate(zip(*runs)):
        assert_as_good_as_torch(ours, theirs, exact, f"tensor {i}", roundings=2 * len(layers) + 2)


@pytest.mark.parametrize("head", [False, True])
def test_double_backward(head: bool, device: str) -> None:
    """A gradient penalty under one mask equals the one through torch's ops."""
    x, layers = draw(5, torch.float32, device, last=not head)
    target = torch.randint(layers[-1].weight.shape[0], (len(x),), device=device)

    def penalty_grads(ours: bool) -> tuple[Tensor | None, ...]:
        xi, li = cloned(x, layers, torch.float32)
        torch.manual_seed(4)
        if head and ours:
            value = chain_cross_entropy(xi, li, target)[0]
        else:
            y = chain(xi, li) if ours else by_torch(xi, li, torch.float32)
            value = reference_loss(y, target, None, LossOptions()) if head else y.tanh().sum()
        (gx,) = torch.autograd.grad(value, xi, create_graph=True)
        return torch.autograd.grad(gx.square().sum(), tensors_of(xi, li), allow_unused=True)

    assert any(layer.dropout for layer in layers)
    for ours, theirs in zip(penalty_grads(True), penalty_grads(False)):
        if theirs is not None:
            assert ours is not None
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_seed_is_torchs(device: str) -> None:
    """The same ``manual_seed`` gives the same bits, another one others; each call draws anew."""
    x, w = torch.randn(9, 8, device=device), torch.randn(64, 8, device=device)
    layers = [Layer(w, None, dropout=0.5), Layer(w[:, :1].expand(64, 64), None, dropout=0.5)]

    def run(seed: int | None) -> Tensor:
        if seed is not None:
            torch.manual_seed(seed)
        return chain(x, layers)

    first = run(1)
    assert not torch.equal(run(None), first)
    assert torch.equal(run(1), first)
    assert not torch.equal(run(2), first)


def stored(net: nn.Module, x: Tensor) -> int:
    """Bytes that the forward keeps for the backward, each tensor once."""
    sizes = {}

    def pack(t: Tensor) -> Tensor:
        sizes[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(x)
    return sum(sizes.values())


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, nn.Tanh])
def test_no_mask_is_stored_or_launched(act: Any, device: str) -> None:
    """A chain with dropouts keeps a seed of 8 bytes more than one without, and launches no more.

    Hidden activations that differ keep the one without from running whole.
    """

    def net(p: float) -> fastmlp.Sequential:
        layers = nn.Linear(20, 64), act(), nn.Dropout(p), nn.Linear(64, 32), nn.SiLU(), nn.Dropout(p)
        return fastmlp.Sequential(*layers, nn.Linear(32, 5), nn.Dropout(p)).to(device)

    x = torch.randn(40, 20, device=device)
    sizes, names = [], []
    for p in (0.0, 0.5):
        sizes.append(stored(net(p), x))
        with record_launches() as launches:
            net(p)(x).sum().backward()
        names.append([one.name for one in launches])
    assert sizes[1] == sizes[0] + 8
    assert names[0] == names[1] == ["linear_act_kernel"] * 3 + ["linear_backward_kernel"] * 3


def test_torchvisions_mlp(device: str) -> None:
    """Fused, its dropouts are part of its layers; in evaluation it gives torchvision's numbers."""
    ops = pytest.importorskip("torchvision.ops")
    net = ops.MLP(12, [32, 6], dropout=0.25).to(device)
    x = torch.randn(50, 12, device=device)
    expected = net.eval()(x)
    fastmlp.fuse(net)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    with record_launches() as launches:
        y = net.train()(x)
    assert [one.named["dropout"] is not None for one in launches] == [True, True]
    assert abs((y == 0).double().mean() - 0.25) < 5 * (0.1875 / y.numel()) ** 0.5


def test_the_mean_is_kept(device: str) -> None:
    torch.manual_seed(1)
    x, w = torch.ones(2000, 1, device=device), torch.ones(50, 1, device=device)
    y = chain(x, [Layer(w, None, dropout=0.3)])
    assert abs(y.double().mean() - 1) < 5 * (0.3 / 0.7 / y.numel()) ** 0.5


def test_a_probability_of_1_is_torchs(device: str) -> None:
    x, w = torch.randn(9, 8, device=device), torch.randn(6, 8, device=device)
    with record_launches() as launches:
        assert not chain(x, [Layer(w, None, dropout=1.0)]).any()
    assert not launches
    with pytest.raises(ValueError, match=r"dropout of layer 0: expected a probability in \[0, 1\], got 1.5"):
        chain(x, [Layer(w, None, dropout=1.5)])
    assert linear_act(x, w).shape == (9, 6)


def test_no_dropout_draws_nothing(device: str) -> None:
    """The generator is left alone where nothing is dropped."""
    layers = [Layer(torch.ones(2, 2, device=device), None)]
    before = torch.random.get_rng_state()
    chain(torch.ones(3, 2, device=device), layers)
    assert torch.equal(before, torch.random.get_rng_state())
