"""A net without activations is one linear layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastmlp import studies
from fastmlp.studies import collapse as study_of  # the function, which has its module's name
from fastmlp.studies import exercise
from fastmlp.studies.collapse import merged, spirals
from fastmlp.studies.exercises import mlp


def test_the_study(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exercise, "_SMALL", (512, 100))
    study = studies.collapse(small=True, epochs=1, device=device, say=lambda text: None)
    line, flat, bent = study.rows[:3]
    assert flat["layers"] == 3
    for row in study.rows:
        linear = "ReLU" not in row["net"]
        assert (row["difference from one layer"] is not None) == linear
        if linear:
            assert row["difference from one layer"] < 1e-5
            assert row["same decisions"] > 0.99
    assert abs(flat["accuracy"] - line["accuracy"]) < 0.05
    assert bent["accuracy"] > 0.95 > 0.6 > flat["accuracy"]
    *planes, curves = study.plot().axes
    assert [plane.get_title().split(":")[0] for plane in planes] == [row["net"] for row in study.rows[:3]]
    accuracies = [list(line.get_ydata()) for line in curves.lines]
    assert accuracies == [row["test accuracies"][0] for row in study.rows[3:]]


@pytest.mark.parametrize("hidden", [[], [5], [7, 3, 6]])
def test_merged_is_the_chain(hidden: list[int]) -> None:
    net = mlp(hidden, "none", sizes=(9, 4)).double()
    for layer in net:
        nn.init.normal_(layer.bias)
    one = merged(net).double()
    x = torch.randn(50, 9, dtype=torch.float64)
    torch.testing.assert_close(one(x), net(x), rtol=1e-5, atol=1e-5)  # the one layer is float32


def test_merged_refuses_activations() -> None:
    with pytest.raises(ValueError, match="net: expected linear layers and nothing else"):
        merged(mlp([5], "relu", sizes=(9, 4)))
    with pytest.raises(ValueError, match="net: expected linear layers"):
        merged(nn.Sequential())


def test_spirals_are_the_same_every_time() -> None:
    points, arms = spirals()
    assert points.shape == (600, 2)
    assert points.abs().max() <= 1
    assert arms.bincount().tolist() == [200, 200, 200]
    torch.testing.assert_close(spirals()[0], points, rtol=0, atol=0)


def test_epochs_are_checked() -> None:
    with pytest.raises(ValueError, match="epochs: expected at least 1, got 0"):
        study_of(epochs=0, small=True)
