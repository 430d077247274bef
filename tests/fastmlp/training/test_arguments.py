"""A loss, an optimizer and numbers, as `fit` and `evaluate` take them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp.training import TrainingError, accuracy, evaluate, fit
from fastmlp.training.arguments import loss_of, whole
from tests.untouched import untouched

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
        ({"epochs": True}, "epochs: expected a whole number, got True"),
        ({"batch_size": True}, "batch_size: expected a whole number, got True"),
        ({"seed": 1.5}, r"seed: expected a whole number, got 1\.5"),
        ({"lr": "0.1"}, "lr: expected a finite number of at least 0, got '0.1'"),
        ({"lr": float("nan")}, "lr: expected a finite number of at least 0, got nan"),
        ({"lr": float("inf")}, "lr: expected a finite number of at least 0, got inf"),
        ({"on_batch": 3}, "on_batch: expected a function, got 3"),
        ({"on_epoch": "x"}, "on_epoch: expected a function, got 'x'"),
        ({"resume": True}, "resume: expected False without a checkpoint, got True"),
        ({"changed": ["lr"]}, r"changed: expected nothing without resume, got \['lr'\]"),
    ],
)
def test_other_things(options: dict[str, Any], message: str) -> None:
    net = fastmlp.MLP(4, [2])
    with untouched(net), pytest.raises(ValueError, match=message):
        fit(net, (X, Y), **{"loss": nn.MSELoss(), **options})
    if "loss" in options:
        with pytest.raises(ValueError, match=message):
            evaluate(net, (X, Y), options["loss"])


@pytest.mark.parametrize("net", [None, fastmlp.MLP, lambda x: x], ids=["none", "class", "function"])
def test_what_is_no_net(net: Any) -> None:
    for give in (fit, evaluate, accuracy):
        with pytest.raises(
            ValueError, match=r"net: expected a module, such as .*, got (None|the class|<func)"
        ):
            give(net, (X, Y))


@pytest.mark.parametrize(
    ("y", "layers", "said"),
    [
        (Y[:, 0], [], r"targets \(N,\) beside outputs \(N, 1\): .* sees \(N, N\); y\[:, None\]"),
        (Y[:, :1], [nn.Flatten(0)], r"targets \(N, 1\) beside outputs \(N,\): .*; y\[:, 0\]"),
    ],
    ids=["rows", "columns"],
)
def test_targets_that_a_loss_of_ones_own_would_broadcast(
    y: Tensor, layers: list[nn.Module], said: str
) -> None:
    """It may not, so that is a warning; of a loss that is known they are made to fit."""
    net = nn.Sequential(nn.Linear(4, 1), *layers)
    with pytest.warns(UserWarning, match=f"train: {said}"):
        fit(net, (X, y), epochs=1, loss=mean_error)
    with pytest.warns(UserWarning, match=f"data: {said}"):
        evaluate(net, (X, y), mean_error)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(net, (X, y), epochs=1, loss=nn.L1Loss())
        fit(net, (X, net(X).detach()), epochs=1, loss=mean_error)


def test_labels_that_are_all_ignored() -> None:
    with pytest.raises(TrainingError, match="every label is -100, which the loss ignores, and a mean over"):
        fit(fastmlp.MLP(4, [2]), (X, torch.full((12,), -100)), epochs=1)


def test_whole_numbers() -> None:
    assert type(whole(np.int64(3), "n", 1)) is int
    net, labels = fastmlp.MLP(4, [2]), torch.zeros(12, dtype=torch.int64)
    for score in (evaluate, accuracy):
        with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
            score(net, (X, labels), batch_size=0)
