"""The grouped update by itself: gradients, the sums of a step, and what it must leave alone."""

from __future__ import annotations

import random

import pytest
import torch

from fastmlp.kernels.common import quantized
from fastmlp.kernels.linear import backward as linear_backward
from fastmlp.kernels.linear.backward import split_batch
from fastmlp.kernels.tiles.configs import Tile
from fastmlp.kernels.training.layer_table import ALIGNMENT, LayerMemory, table
from fastmlp.kernels.training.optimizers import HYPERS
from fastmlp.kernels.training.recipe import Recipe
from fastmlp.kernels.training.update import Accumulators, update
from tests.problems import SIZES

TILE = Tile(16, 32, 16, 2, 4, 1)


def guarded(*shape: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A random matrix with 64 poisoned elements on either side, and the whole of it."""
    size = torch.Size(shape).numel()
    whole = torch.full((size + 128,), 7.0, device=device)
    inner = whole[64 : 64 + size].view(shape)
    inner.normal_()
    return inner, whole


def buffer(rows: int, features: int, device: str) -> torch.Tensor:
    """A random matrix whose rows are padded with NaN."""
    whole = torch.full((rows, -(-features // ALIGNMENT) * ALIGNMENT), float("nan"), device=device)
    return whole[:, :features].normal_()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("splits", [False, True])
def test_random_problem(splits: bool, seed: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers: W -= lr * scale * dZᵀX and b likewise, in place, and nothing beside."""
    if splits:
        monkeypatch.setattr(linear_backward, "_ROWS_PER_SPLIT", 16)
    rng = random.Random(f"{splits}{seed}")
    m, k, n, c = (rng.choice(SIZES) for _ in range(4))
    if splits:
        m += 100
    pixels, gather = rng.random() < 0.5, rng.random() < 0.5
    x = torch.randn(200 if gather else m, k, device=device)
    if pixels:
        x = torch.randint(256, x.shape, dtype=torch.uint8, device=device)
    index = torch.randint(len(x), (m,), device=device) if gather else None
    scale = 1 / 255 if pixels else 1.0
    h = buffer(m, n, device)
    weights = [guarded(n, k, device=device), guarded(c, n, device=device)]
    biases = [guarded(n, device=device), guarded(c, device=device)]
    grads = [buffer(m, features, device) for features in (n, c)]
    layers = [
        LayerMemory(w, b, w, source, None, None, dz, (None,) * 4)
        for (w, _), (b, _), source, dz in zip(weights, biases, (None, h), grads)
    ]
    net = table(layers, TILE.BLOCK_M, TILE.BLOCK_N)
    partial = torch.rand(3 * 5, device=device) + 0.5
    loss, right, denominator = (partial[i : i + 5].double().sum().item() for i in (0, 10, 5))
    hypers = torch.zeros(1, HYPERS.value, device=device)
    hypers[0, 0] = 0.25
    before = [[t.double() for t in (w, b)] for (w, _), (b, _) in zip(weights, biases)]
    into = Accumulators(
        partial,
        torch.full((), float("nan"), device=device),
        torch.tensor([10.0, 3.0], dtype=torch.float64, device=device),
        torch.zeros(net.tiles, dtype=torch.int32, device=device),
    )
    recipe = Recipe("cross_entropy", "mean", "sgd", torch.float32, "ieee")
    update(net, recipe, quantized.source(x, index, scale, None), m, hypers, into, 5, TILE)
    inputs = [(x if index is None else x[index]).double() * scale, h.double()]
    for (w, whole), (b, whole_b), old, dz, source in zip(weights, biases, before, grads, inputs):
        for new, start, gradient in ((w, old[0], dz.double().t() @ source), (b, old[1], dz.double().sum(0))):
            change = 0.25 / denominator * gradient
            wrong = (new - (start - change)).norm()
            assert wrong <= 4e-7 * (start.norm() + change.norm() + dz.norm())
        for margin in (whole[:64], whole[-64:], whole_b[:64], whole_b[-64:]):
            assert bool((margin == 7).all())
    assert into.loss.item() == pytest.approx(loss / denominator, rel=1e-6)
    assert into.sums.tolist() == pytest.approx([10 + loss / denominator * m, 3 + right], rel=1e-6)
    assert not into.arrived.any()
    if splits:
        assert split_batch(m, net.tiles, TILE.BLOCK_K, 132)[0] > 1
