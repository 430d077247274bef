"""A loss, an optimizer and numbers, as `fit` and `evaluate` take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp.training import accuracy, evaluate, fit
from fastmlp.training.arguments import loss_of, whole

X, Y = torch.randn(12, 4), torch.randn(12, 2)


def mean_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean()


def test_functions() -> None:
    """A known one is its module, and so runs by the engines; any other is called as it is."""
    net = fastmlp.MLP(4, [2])
    for function in (F.mse_loss, fastmlp.functional.mse_loss, F.l1_loss, mean_error):
        assert evaluate(net, (X, Y), function).loss == pytest.approx(function(net(X), Y).item())
    assert type(loss_of(F.cross_entropy)) is nn.CrossEntropyLoss
    assert type(loss_of(None)) is fastmlp.CrossEntropyLoss
    assert fit(net, (X, Y), epochs=1, loss=F.mse_loss).engine != "eager"
    history = fit(net, (X, Y), (X, Y), epochs=2, loss=mean_error)
    assert history.epochs[1].train_loss == pytest.approx(history.epochs[0].test_loss, rel=1e-5)
    assert loss_of(mean_error).function == "mean_error"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": nn.MSELoss}, r"loss: expected a loss, got the class MSELoss; MSELoss\(\) makes one"),
        ({"loss": "mse"}, r"loss: expected a module or a function of \(outputs, targets\), got 'mse'"),
        (
            {"loss": nn.MSELoss(reduction="none")},
            r"loss: expected one number for a batch, got MSELoss with red",
        ),
        (
            {"loss": lambda outputs, y: outputs - y},
            r"loss: expected a single number for a batch, got \(12, 2\)",
        ),
        (
            {"loss": lambda outputs, y: (outputs, y)},
            r"loss: expected a single number for a batch, got a tuple",
        ),
        (
            {"optimizer": torch.optim.SGD},
            r"optimizer: expected one over the net's parameters, such as torch\.op",
        ),
        ({"patience": 1.5}, r"patience: expected a whole number, got 1\.5"),
    ],
)
def test_other_things(options: dict[str, Any], message: str) -> None:
    net = fastmlp.MLP(4, [2])
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=message):
        fit(net, (X, Y), **{"loss": nn.MSELoss(), **options})
    assert all(map(torch.equal, net.parameters(), before))
    if "loss" in options:
        with pytest.raises(ValueError, match=message):
            evaluate(net, (X, Y), options["loss"])


def test_whole_numbers() -> None:
    assert type(whole(np.int64(3), "n", 1)) is int
    net, labels = fastmlp.MLP(4, [2]), torch.zeros(12, dtype=torch.int64)
    for score in (evaluate, accuracy):
        with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
            score(net, (X, labels), batch_size=0)
