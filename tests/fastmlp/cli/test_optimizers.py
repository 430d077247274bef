"""``--optimizer``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmlp.cli import optimizers
from fastmlp.cli.options import Optimizer, Settings
from tests.commands import assert_fails, run

EXPECTED = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}, "SGD 0.1"),
    "momentum": (
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
        "SGD 0.05, momentum 0.9",
    ),
    "nesterov": (
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0},
        "SGD 0.05, Nesterov momentum 0.9",
    ),
    "adam": (torch.optim.Adam, {"lr": 0.001, "weight_decay": 0.0}, "Adam 0.001"),
    "adamw": (torch.optim.AdamW, {"lr": 0.001, "weight_decay": 0.01}, "AdamW 0.001, weight decay 0.01"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_defaults(name: str) -> None:
    kind, numbers, said = EXPECTED[name]
    settings = optimizers.resolved(Settings(optimizer=Optimizer(name)))
    found = optimizers.make(settings, nn.Linear(2, 2))
    assert type(found) is kind
    assert {key: found.param_groups[0][key] for key in numbers} == numbers
    assert optimizers.said(settings) == said


def test_numbers_of_ones_own() -> None:
    settings = Settings(optimizer=Optimizer.nesterov, lr=0.5, momentum=0.25, weight_decay=0.125)
    group = optimizers.make(optimizers.resolved(settings), nn.Linear(2, 2)).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.25, 0.125)
    assert optimizers.resolved(settings) == settings


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_momentum_that_there_is_none(name: str) -> None:
    result = run("train", "--optimizer", name, "--momentum", 0.9)
    assert_fails(result, 2, f"--momentum: --optimizer {name} has none; expected momentum or nesterov")
