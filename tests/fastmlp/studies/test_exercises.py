"""Width, depth, learning rate, activation, initialization, each in a small run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

import fastmlp
from fastmlp import studies
from fastmlp.data import DataError, synthetic
from fastmlp.studies import exercise
from fastmlp.studies.exercises import STARTS, mlp
from fastmlp.studies.study import Study


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the small set."""
    monkeypatch.setattr(exercise, "_SMALL", (256, 100))


def silent(text: str) -> None:
    pass


def run(name: str, device: str) -> Study:
    return studies.STUDIES[name](small=True, device=device, epochs=2, say=silent)


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("width", "width", [4, 64]),
        ("depth", "hidden layers", [1, 2, 1, 2]),
        ("learning_rate", "learning rate", [0.01, 0.1]),
        ("activation", "activation", ["none", "relu", "gelu"]),
        ("initialization", "start", ["He", "zeros", "constant 0.001"]),
    ],
)
def test_a_small_run(name: str, key: str, values: list[object], device: str) -> None:
    study = run(name, device)
    assert [row[key] for row in study.rows] == values
    assert json.loads(study.to_json())["rows"] == study.rows
    assert "synthetic (seed 0), 256 examples" in study.caption()
    for row in study.rows:
        assert row["test accuracy"] == [row["test accuracies"][0][-1]]
        assert row["train loss"] == [row["train losses"][0][-1]]
    figure = study.plot()
    ends, curves = figure.axes
    drawn = [list(line.get_ydata()) for line in curves.lines]
    assert drawn == [row["train losses"][0] for row in study.rows]
    heights = [container.lines[0].get_ydata()[0] for container in ends.containers]
    assert heights == [row["test accuracy"][0] for row in study.rows]
    ticks = [tick.get_text().replace("\n", " ") for tick in ends.get_xticklabels()]
    assert ticks == [str(v) for v in dict.fromkeys(values)]


def test_a_run_is_fits(device: str) -> None:
    """The same seed, order and schedule as a call of `fit` by hand."""
    study = studies.width([8], seeds=[3], epochs=2, small=True, device=device, say=silent)
    train, test = synthetic(0, 256, 100)
    torch.manual_seed(3)
    net = mlp([8]).to(device)
    history = fastmlp.fit(net, train, test, epochs=2, batch_size=32, lr=0.1, seed=3, schedule="linear")
    assert study.rows[0]["train losses"] == [[epoch.train_loss for epoch in history.epochs]]
    assert study.rows[0]["test accuracy"] == [history.epochs[-1].test_accuracy]
    assert study.rows[0]["parameters"] == 784 * 8 + 8 + 8 * 10 + 10


def test_divergence_is_a_result(device: str) -> None:
    """Said in the table, left out of the means, and marked in the picture."""
    study = studies.learning_rate([0.1, 1e30], seeds=[0, 1], epochs=2, small=True, device=device, say=silent)
    fine, lost = study.rows
    assert None not in fine["test accuracy"]
    assert lost["test accuracy"] == [None, None]
    assert study.table().splitlines()[-1].count("diverged") == 2
    ends = study.plot().axes[0]
    assert any(line.get_marker() == "x" for line in ends.lines)
    assert "diverged" in [text.get_text() for text in ends.get_legend().get_texts()]


def test_alike_weights_stay_alike(device: str) -> None:
    """From zeros or a constant, whatever the width, the first layer has no second unit to offer."""
    ranks = [row["rank of W1"][0] for row in run("initialization", device).rows]
    assert ranks[0] > 200
    assert ranks[1:] == [0, 1]


@pytest.mark.parametrize("start", STARTS)
def test_starts(start: str) -> None:
    torch.manual_seed(0)
    weight = mlp([2000], start=start)[0].weight.detach()
    spread = {"std 0.01": 0.01, "Xavier": (2 / 2784) ** 0.5, "He": (2 / 784) ** 0.5}
    assert weight.std().item() == pytest.approx(spread.get(start, 0.0), rel=0.01)
    assert weight.mean().item() == pytest.approx(0.001 if start == "constant 0.001" else 0.0, abs=1e-4)


def test_what_does_not_fit(tmp_path: Path, device: str) -> None:
    for option in ({"values": []}, {"seeds": []}, {"epochs": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected at least one"):
            studies.width(**option, small=True)
    with pytest.raises(ValueError, match=r"values: expected some of std 0.01, .*, got 'ones'"):
        studies.initialization(["ones"], small=True, say=silent)
    with pytest.raises(DataError):
        studies.width(small=True, data=tmp_path)


def test_what_is_said() -> None:
    said: list[str] = []
    studies.width([4, 8], seeds=[0], epochs=1, small=True, device="cpu", say=said.append)
    assert [text.partition(":")[0] for text in said] == ["width 4", "width 8"]


def test_names() -> None:
    assert {*studies.STUDIES} == {*studies.__all__} - {"STUDIES", "Study"}
    exercises = itertools.islice(studies.STUDIES.items(), 5)
    assert all(study.name == name for name, study in exercises)
