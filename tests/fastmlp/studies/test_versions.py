"""From scratch, concise and fused: one curve."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastmlp import studies
from fastmlp.data import synthetic
from fastmlp.studies import exercise
from fastmlp.studies.exercises import mlp
from fastmlp.studies.scratch import concise, from_scratch
from fastmlp.studies.versions import _difference
from fastmlp.training import Epoch, History


def test_the_curves_overlap(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding over 32 steps: in the loss of every epoch, and in every decision on the test set."""
    monkeypatch.setattr(exercise, "_SMALL", (512, 100))
    study = studies.versions(small=True, epochs=2, device=device, say=lambda text: None)
    assert [row["version"] for row in study.rows] == ["from scratch", "concise", "fused"]
    assert "eager" not in study.rows[2]["runs by"]
    for row in study.rows:
        assert row["largest difference of a train loss"] < 1e-5
        assert row["largest difference of a test accuracy"] <= 0.01  # one image may stand on the edge
        assert len(row["test_loss by epoch"][0]) == 2
    first = study.rows[0]
    loss, accuracy, apart = study.plot().axes
    assert list(loss.lines[0].get_ydata()) == first["train_loss by epoch"][0]
    assert len(loss.lines) == len(accuracy.lines) == 6
    assert len(apart.lines) == 2


def test_differences_are_of_either_side() -> None:
    def a_run(*losses: float) -> History:
        return History([Epoch(i, loss, None, None, 1.0, 1.0) for i, loss in enumerate(losses, 1)])

    assert _difference(a_run(1.0, 0.5), a_run(1.25, 1.0), "train_loss") == 0.5


def test_it_trains() -> None:
    """Else equal curves would say little."""
    study = studies.versions(small=True, device="cpu", say=lambda text: None)
    losses = study.rows[2]["train_loss by epoch"][0]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 2.2


def test_from_scratch_is_the_same_step_as_torchs(device: str) -> None:
    """Loss, logits and the parameters after an update, against autograd in float64."""
    train, _ = synthetic(0, 64, 1)
    x, y = train.images.flatten(1).double().to(device) / 255, train.labels.to(device)
    net = mlp([16], start="He").double().to(device)
    step, forward = from_scratch(net, 0.5)
    loss, logits = step(x, y)
    torch.testing.assert_close(loss, F.cross_entropy(net(x), y).detach())
    torch.testing.assert_close(logits, net(x).detach())
    plain = nn.Sequential(*net)
    again, _ = concise(plain, 0.5)
    again(x, y)
    torch.testing.assert_close(forward(x).detach(), plain(x).detach())


def test_epochs_are_checked() -> None:
    with pytest.raises(ValueError, match="epochs: expected at least 1, got 0"):
        studies.versions(epochs=0, small=True)
