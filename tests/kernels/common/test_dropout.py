"""Dropout in the layer's kernels: the masks' statistics, and that forward and backward draw the same ones."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from fastmlp.activations import NAMES, NONE, TABLE, Act
from fastmlp.backends.base import BackwardOptions, Dropout, Undo
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.linear import backward as linear_backward
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.tiles.configs import Tile
from tests.kernels.linear.test_backward import check
from tests.numerics import assert_as_good_as_torch
from tests.problems import DTYPES, SIZES, activation, matrix, vector

TRITON = TritonBackend()


def dropout(p: float, seed: int, site: int, device: str) -> Dropout:
    return Dropout(p, torch.tensor([seed], device=device), site)


def signs(p: float, seed: int, site: int, device: str, rows: int = 512, features: int = 256) -> Tensor:
    """The mask as numbers of mean 0 and variance 1."""
    mask = TRITON.dropout_mask(dropout(p, seed, site, device), rows, features)
    return (mask.double() - (1 - p)) / (p * (1 - p)) ** 0.5


@pytest.mark.few(1)
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_drop_rate_is_p(p: float, device: str) -> None:
    """Overall, in every row and in every column: within 5 standard deviations (6 where there are many)."""
    s = signs(p, 12345, 1, device)
    assert abs(s.mean() * s.numel() ** 0.5) < 5
    for dim in (0, 1):
        assert (s.mean(dim) * s.shape[dim] ** 0.5).abs().max() < 6


@pytest.mark.deep
def test_nothing_is_correlated(device: str) -> None:
    """With the next elements along rows and columns, within and across the fours; layers; seeds."""
    s = signs(0.3, 7, 0, device)
    pairs = [(s[:, k:], s[:, :-k]) for k in (1, 2, 3, 4, 8)] + [(s[k:], s[:-k]) for k in (1, 2, 16)]
    others = [signs(0.3, 7, 1, device), signs(0.3, 8, 0, device), signs(0.3, 7 + 2**32, 0, device)]
    pairs += [(s, other) for other in others]
    pairs += [(s[:256], s[:256].T)]
    for a, b in pairs:
        assert abs((a * b).sum() / a.numel() ** 0.5) < 5


@pytest.mark.parametrize("shape", [(1, 1), (17, 3), (33, 257), (16, 128)])
def test_the_mask_is_philox(shape: tuple[int, int], device: str) -> None:
    """Bit by bit what the statement in torch's ops gives, whatever the size."""
    for seed, site in ((0, 0), (2**63 - 2, 3), (1 << 40, 1)):
        one = dropout(0.37, seed, site, device)
        assert torch.equal(TRITON.dropout_mask(one, *shape), TorchBackend().dropout_mask(one, *shape))


@pytest.mark.few(12)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(name: str, dtype: torch.dtype, seed: int, device: str) -> None:
    rng = random.Random(f"{name}{dtype}{seed}")
    m, n, k = (rng.choice(SIZES) for _ in range(3))
    x, w = matrix(rng, m, k, dtype, device), matrix(rng, n, k, dtype, device)
    bias = vector(rng, n, dtype, device) if rng.random() < 0.7 else None
    act = activation(rng, name, n, dtype, device)
    one = dropout(rng.choice([0.1, 0.5, 0.8]), rng.getrandbits(63), rng.randrange(3), device)
    y, z = TRITON.linear_act(x, w, bias, act, True, dtype, one)
    theirs, theirs_z = TorchBackend().linear_act(x, w, bias, act, True, dtype, one)
    wide = act._replace(weight=None if act.weight is None else act.weight.double())
    exact, exact_z = TorchBackend().linear_act(
        x.double(), w.double(), None if bias is None else bias.double(), wide, True, torch.float64, one
    )
    assert_as_good_as_torch(y, theirs, exact, f"y {(m, n, k)}")
    assert z is not None
    assert theirs_z is not None
    assert exact_z is not None
    assert_as_good_as_torch(z, theirs_z, exact_z, "z is what comes before the dropout")


@pytest.mark.few(12)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward(name: str, dtype: torch.dtype, seed: int, device: str) -> None:
    """In the prologue, in the epilogue or in both, from outputs that were dropped."""
    rng = random.Random(f"{name}{dtype}{seed}")
    m, n, k = (rng.choice(SIZES) for _ in range(3))

    def layer(name: str, features: int, p: float) -> Undo:
        act = activation(rng, name, features, dtype, device)
        one = dropout(p, rng.getrandbits(63), rng.randrange(3), device) if p else None
        z = matrix(rng, m, features, dtype, device)
        if not act.saves_output or name == "none":
            return Undo(act, None if name == "none" else z, one)
        return Undo(act, TorchBackend()._dropped(act(z), one), one)

    after = layer(name, n, rng.choice([0.1, 0.5, 0.8]))
    before = layer(
        rng.choice([a for a in NAMES if a != "prelu"]) if seed else name.replace("prelu", "silu"),
        k,
        rng.choice([0.0, 0.5, 0.8]) if seed else 0.4,
    )
    check(
        matrix(rng, m, n, dtype, device),
        matrix(rng, m, k, dtype, device),
        matrix(rng, n, k, dtype, device),
        after=after,
        before=before,
        need_input=rng.random() < 0.8,
        bias_dtype=dtype if rng.random() < 0.7 else None,
        dtype=dtype,
    )


@pytest.mark.few(1)
@pytest.mark.parametrize("tile", [Tile(16, 32, 16, 2, 4, 1), Tile(32, 16, 32, 1, 4, 1)], ids=str)
def test_the_mask_does_not_depend_on_the_tile(
    tile: Tile, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor on how the batch is split: gradients of ones are the mask itself."""
    monkeypatch.setattr(linear_backward, "_ROWS_PER_SPLIT", 32)
    one = dropout(0.4, 99, 1, device)
    m, n = 100, 40
    mask = TRITON.dropout_mask(one, m, n)
    x, w = torch.ones(m, 1, device=device), torch.ones(n, 1, device=device)
    grad = torch.ones(m, n, device=device)
    options = BackwardOptions(torch.float32, after=Undo(dropout=one), bias_dtype=torch.float32)
    with configs.override("linear", tile):
        y, _ = TRITON.linear_act(x, w, None, NONE, False, torch.float32, one)
    with configs.override("linear_backward_prologue", tile), record_launches() as launches:
        grads = TRITON.linear_backward(grad, x, w, options)
    assert [launch.name for launch in launches] == ["linear_backward_kernel", "sum_splits_kernel"]
    assert torch.equal(y != 0, mask)
    torch.testing.assert_close(grads.bias, mask.sum(0) / 0.6)
    torch.testing.assert_close(grads.input, mask.sum(1, keepdim=True) / 0.6)
    with configs.override("linear_backward_extra", tile):
        undone = BackwardOptions(torch.float32, before=Undo(dropout=one))
        dx = TRITON.linear_backward(x, grad, torch.ones(1, n, device=device), undone).input
    assert dx is not None
    assert torch.equal(dx != 0, mask)


@pytest.mark.parametrize("name", ["relu", "sigmoid"])
def test_no_mask_is_drawn_where_the_output_tells(name: str, device: str) -> None:
    """Another seed gives the same gradient: what was dropped is read off the output."""
    one, other = dropout(0.5, 1, 0, device), dropout(0.5, 2, 0, device)
    saved = TorchBackend()._dropped(TABLE[name].function(torch.randn(9, 8, device=device), None), one)
    grad, w = torch.randn(9, 5, device=device), torch.randn(5, 8, device=device)
    act = Act(TABLE[name])
    dx = [
        TRITON.linear_backward(
            grad, saved, w, BackwardOptions(torch.float32, before=Undo(act, saved, d))
        ).input
        for d in (one, other)
    ]
    assert dx[0] is not None
    assert torch.equal(dx[0], dx[1])
    assert torch.equal(dx[0] != 0, saved != 0)


def test_infinities_are_torchs(device: str) -> None:
    """A dropped infinity is NaN, a kept one stays."""
    one = dropout(0.5, 3, 0, device)
    mask = TRITON.dropout_mask(one, 4, 8)
    x, w = torch.full((4, 1), float("inf"), device=device), torch.ones(8, 1, device=device)
    y, _ = TRITON.linear_act(x, w, None, NONE, False, torch.float32, one)
    torch.testing.assert_close(y, torch.where(mask, float("inf"), float("nan")), equal_nan=True)
