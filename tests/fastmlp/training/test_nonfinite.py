"""A NaN or an infinity in the data is named before anything is learned from it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastmlp
from fastmlp.training import TrainingError, accuracy, evaluate, fit, inputs
from tests.untouched import untouched

X, Y = torch.randn(20, 5), torch.randint(3, (20,))
BAD = X.clone()
BAD[7, 2] = torch.nan
BAD[11, :2] = -torch.inf


def pair(x: Tensor, y: Tensor) -> Any:
    return x, y


def arrays(x: Tensor, y: Tensor) -> Any:
    return x.numpy(), y.numpy()


def loader(x: Tensor, y: Tensor) -> Any:
    return DataLoader(TensorDataset(x, y), batch_size=8)


@pytest.mark.parametrize(
    ("make", "limit", "said"),
    [
        (pair, 1 << 30, "nan in 2 of 20 rows, the first in row 7"),
        (arrays, 1 << 30, "nan in 2 of 20 rows, the first in row 7"),
        (arrays, 0, "(nan|inf) in 1 of 1 rows, the first in row (7|11)"),
        (loader, 1 << 30, "nan in 1 of 8 rows, the first in row 7 of batch 1"),
    ],
    ids=["tensors", "arrays", "streamed", "loader"],
)
def test_where_it_is(make: Any, limit: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of features and of targets, to train on and to test, whatever holds them."""
    monkeypatch.setattr(inputs, "RESIDENT", limit)
    size = 1 if limit == 0 else None
    net = fastmlp.MLP(5, [4, 3])
    for x, y, what, loss in ((BAD, Y, "features", None), (X, BAD[:, :3], "targets", nn.MSELoss())):
        with (
            untouched(net) if limit else nullcontext(),  # the rows before it may be learned from
            pytest.raises(ValueError, match=f"train: expected finite {what}, got {said}"),
        ):
            fit(net, make(x, y), loss=loss, batch_size=size)
        assert all(p.isfinite().all() for p in net.parameters())
        with pytest.raises(ValueError, match=f"test: expected finite {what}"):
            fit(net, make(X, Y if loss is None else X[:, :3]), make(x, y), loss=loss, patience=2)
        with pytest.raises(ValueError, match=f"data: expected finite {what}"):
            evaluate(net, make(x, y), loss)
    with pytest.raises(ValueError, match="data: expected finite features"):
        accuracy(net, make(BAD, Y))


def test_what_the_net_makes_of_it() -> None:
    """A net or a loss that knows what to do with it may have it; a saturated activation does not."""

    class Filled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.nan_to_num(0.0, 1.0, -1.0)

    history = fit(nn.Sequential(Filled(), nn.Linear(5, 3)), (BAD, Y), epochs=2)
    assert history.epochs[1].train_loss < history.epochs[0].train_loss

    def of_those_there(outputs: Tensor, targets: Tensor) -> Tensor:
        there = targets.isfinite()
        return (outputs - targets)[there].square().mean()

    history = fit(fastmlp.MLP(5, [3]), (X, BAD[:, :3]), epochs=2, loss=of_those_there)
    assert history.epochs[1].train_loss < history.epochs[0].train_loss
    infinite = X.clone()
    infinite[3, 0] = torch.inf
    saturated = fastmlp.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(
        ValueError, match="train: expected finite features, got inf in 1 of 20 rows, the first in"
    ):
        fit(saturated, (infinite, Y))


def test_numbers_that_become_infinite() -> None:
    """In the net's dtype; sums that do, of numbers that don't, are no matter."""
    wide = X.double().numpy().copy()
    wide[4, 1] = 1e300
    with pytest.raises(
        ValueError, match=r"features, got inf in 1 of 20 rows, the first in row 4 as torch\.float32"
    ):
        evaluate(fastmlp.MLP(5, [3]), (wide, Y.numpy()))
    large = np.full((20, 5), 3e38, np.float32)
    net = nn.Sequential(nn.Linear(5, 3))
    nn.init.zeros_(net[0].weight)
    assert evaluate(net, (large, Y)).loss > 0
    nn.init.ones_(net[0].weight)
    with pytest.raises(
        TrainingError, match=r"the loss is nan in epoch 1, step 1 of 1, before any update: look for"
    ):
        fit(net, (large, Y), device="cpu")
