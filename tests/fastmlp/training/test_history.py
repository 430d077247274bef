"""What a history says: the best epoch, when to stop, and itself as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fastmlp.training import Epoch, History
from fastmlp.training.history import stale


def epochs(*losses: float, tested: bool = True) -> list[Epoch]:
    """Whose train loss falls if it is not what counts."""
    return [
        Epoch(i, 1 / i if tested else loss, 0.5, None, 1.0, 10.0, loss if tested else None)
        for i, loss in enumerate(losses, 1)
    ]


@pytest.mark.parametrize("tested", [True, False])
def test_best(tested: bool) -> None:
    assert History().best is None
    assert History(epochs(3, 2, 2, 4, tested=tested)).best == epochs(3, 2, tested=tested)[1]
    assert History(epochs(math.nan, 3, math.nan)).best == epochs(math.nan, 3)[1]
    assert History(epochs(math.nan)).best is None


@pytest.mark.parametrize("tested", [True, False])
def test_stale(tested: bool) -> None:
    """After so many epochs without one that is better by more than min_delta."""
    name = "test" if tested else "train"

    def said(*losses: float, patience: int = 2, min_delta: float = 0.0) -> str:
        return stale(epochs(*losses, tested=tested), patience, min_delta)

    assert said() == said(3) == said(3, 3) == said(3, 4, 2, 2) == ""
    assert said(3, 3, 3) == f"the {name} loss has not improved for 2 epochs since epoch 1"
    assert said(3, 2, 2, patience=1) == f"the {name} loss has not improved for 1 epoch since epoch 2"
    assert said(3, 2.9, 2.8, min_delta=0.25) != ""
    assert said(3, 2.9, 2.7, min_delta=0.25) == ""  # the best that counts is still 3
    assert said(math.nan, math.nan) == f"the {name} loss has not improved for 2 epochs"


def test_json(tmp_path: Path) -> None:
    history = History(epochs(3, math.inf), 2.5, "cpu", "a reason", "stopped")
    text = history.to_json()
    history.save(tmp_path / "deep" / "history.json")
    assert (tmp_path / "deep" / "history.json").read_text() == text
    again = History.from_json(text)
    assert again.epochs[1].test_loss is None  # JSON has no infinity
    assert again.epochs[0] == history.epochs[0]
    assert History.from_json(again.to_json()) == again
    assert json.loads(text)["epochs"][0]["train_accuracy"] == 0.5
    epoch = json.loads(text)["epochs"][0]
    kinds = [epoch | change for change in ({"number": 1.5}, {"train_loss": None}, {"seconds": "1"}, {"x": 1})]
    tops = [{"epochs": 5}, {"epochs": [5]}, *({"epochs": [one]} for one in kinds)]
    tops += [{"epochs": [], "seconds": "1"}, {"epochs": [], "engine": 5}, {"epochs": [], "more": 1}]
    for wrong in ("", "[]", "{}", '{"epochs": [{}]}', "[" * 60_000, *map(json.dumps, tops)):
        with pytest.raises(ValueError, match=r"text: expected a history as History\.to_json gives it"):
            History.from_json(wrong)


def test_a_line() -> None:
    assert str(Epoch(3, 0.5, 0.25, 0.125, 1.0, 1234.0, 0.75)) == (
        "epoch   3  train loss 0.5000  train accuracy 0.2500  test loss 0.7500  test accuracy 0.1250  "
        "1,234 examples/s"
    )
    assert str(Epoch(3, 0.5, None, None, 1.0, 5.0)) == "epoch   3  train loss 0.5000  5 examples/s"
