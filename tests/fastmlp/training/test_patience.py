"""Early stopping, alone and with checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp.training import Epoch, History, fit, load_into, position

X, Y = torch.randn(24, 6), torch.randint(3, (24,))
TEST = torch.randn(12, 6), torch.randint(3, (12,))


def net() -> fastmlp.Sequential:
    torch.manual_seed(0)
    return fastmlp.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.Linear(30, 3))


def run(device: str, model: nn.Module | None = None, test: Any = TEST, **options: Any) -> History:
    """On labels that mean nothing, so that the test loss soon rises."""
    options = {"epochs": 40, "batch_size": 8, "lr": 0.5, **options}
    return fit(model or net(), (X, Y), test, device=device, **options)


def test_it_stops(device: str) -> None:
    """Where the losses of the whole run say so, with the parameters of the last epoch."""
    whole = run(device)
    seen: list[Epoch] = []
    history = run(device, model := net(), patience=3, on_epoch=seen.append)
    losses = [epoch.test_loss or 0.0 for epoch in whole.epochs]
    best = next(i for i in range(40) if min(losses[i + 1 : i + 4]) >= min(losses[: i + 1]))
    assert best < 20
    assert [e.test_loss for e in history.epochs] == losses[: best + 4]
    assert history.epochs == seen
    assert history.best == history.epochs[best]
    assert history.stopped == f"the test loss has not improved for 3 epochs since epoch {best + 1}"
    run(device, short := net(), epochs=best + 4)
    assert all(map(torch.equal, model.parameters(), short.parameters()))
    assert whole.stopped == run(device, epochs=best + 4, patience=3).stopped == ""  # that is no early end


def test_without_a_test_set(device: str) -> None:
    assert run(device, test=None, patience=5, epochs=10).stopped == ""
    history = run(device, test=None, patience=2, min_delta=10.0)
    assert history.stopped == "the train loss has not improved for 2 epochs since epoch 1"
    assert len(history.epochs) == 3


def test_resume(device: str, tmp_path: Path) -> None:
    """The end is saved, whatever `every`; going on does nothing but say so, or has more patience."""
    path = tmp_path / "run"
    first = run(device, model := net(), patience=3, checkpoint=path, every=100)
    ended = len(first.epochs)
    assert position(path)[:2] == (ended, 0)
    assert position(path).finished
    load_into(saved := net(), path)
    assert all(torch.equal(p.cpu(), q) for p, q in zip(model.parameters(), saved.parameters()))
    again = run(device, unmoved := net(), patience=3, checkpoint=path, resume=True)
    assert (again.epochs, again.stopped) == (first.epochs, first.stopped)
    assert all(map(torch.equal, model.parameters(), unmoved.parameters()))
    for options, said in (
        ({"patience": 4}, "patience epochs was 3 and is 4"),
        ({"patience": 3, "min_delta": 0.5}, r"patience min_delta was 0\.0 and is 0\.5"),
        ({"patience": 3, "test": (TEST[0] + 1, TEST[1])}, "patience test data's content is another"),
        ({}, "patience was .* and is None"),
    ):
        with pytest.raises(ValueError, match=f"the checkpoint of another run: {said}"):
            run(device, checkpoint=path, resume=True, **options)
    more = run(device, checkpoint=path, resume=True, patience=6, changed=("patience",))
    assert len(more.epochs) > ended
    assert [e.test_loss for e in more.epochs] == [e.test_loss for e in run(device, patience=6).epochs]


def test_interrupted_within_its_patience(device: str, tmp_path: Path) -> None:
    """What it has waited so far is in the history: it stops where an unbroken run does."""
    expected = run(device, patience=4)

    def stop(epoch: Epoch) -> None:
        if epoch.number == len(expected.epochs) - 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(device, patience=4, checkpoint=tmp_path / "run", on_epoch=stop)
    history = run(device, patience=4, checkpoint=tmp_path / "run", resume=True)
    assert [e.test_loss for e in history.epochs] == [e.test_loss for e in expected.epochs]
    assert history.stopped == expected.stopped != ""


def test_bad_numbers(device: str) -> None:
    with pytest.raises(ValueError, match="patience: expected at least 1, got 0"):
        run(device, patience=0)
    with pytest.raises(ValueError, match=r"min_delta: expected at least 0, got -0\.1"):
        run(device, patience=1, min_delta=-0.1)
    with pytest.raises(ValueError, match=r"min_delta: expected 0 without patience, got 0\.1"):
        run(device, min_delta=0.1)
