"""Three versions of one training: from scratch, concise, fused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastmlp.modules import Sequential
from fastmlp.studies.exercise import Say, batch_size, epochs_of, sets
from fastmlp.studies.exercises import mlp
from fastmlp.studies.scratch import concise, from_scratch, loop
from fastmlp.studies.study import Study, machine, place
from fastmlp.training import History
from fastmlp.training.fit import fit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUESTION = "Do the book's version from scratch, the concise one and the fused engine give the same curve?"


def versions(
    *,
    epochs: int | None = None,
    seed: int = 0,
    lr: float = 0.1,
    small: bool = False,
    data: Path | str | None = None,
    device: torch.device | str | None = None,
    say: Say = print,
) -> Study:
    """Train 784-256-10 three times from the same weights in the same batch order.

    From scratch and concise run in a plain loop, `fastmlp.studies.scratch`; the third by `fastmlp.fit`.

    Args:
        epochs: by default the book's 10, or 3 in a small run.
        seed: of the weights and the batch order.
        lr: of SGD, constant.
        small: in seconds, on 2000 examples.
        data: the folder that holds FashionMNIST/raw; None to download it, or, in a small run, for the
            embedded synthetic set.
        device: where; None for the GPU if there is one.
        say: told what is done.

    Returns:
        A row for each version, with its curves and its largest differences from the first.

    Raises:
        DataError: ``data`` is given, and what is there is missing or broken.
    """
    where, batch = place(device), batch_size(small)
    epochs = epochs_of(epochs, 10, small)
    train, test = (part.to(where) for part in sets(data, small, say))
    torch.manual_seed(seed)
    net = mlp([256], start="std 0.01").to(where)
    runs: dict[str, History] = {}
    for name, make in (("from scratch", from_scratch), ("concise", concise)):
        plain = nn.Sequential(*copy.deepcopy(list(net)))
        runs[name] = loop(*make(plain, lr), train, test, epochs=epochs, batch_size=batch, seed=seed)
        say(f"{name}: {runs[name].epochs[-1]}")
    fused = Sequential(*net)
    runs["fused"] = fit(fused, train, test, epochs=epochs, batch_size=batch, lr=lr, seed=seed)
    say(f"fused: {runs['fused'].epochs[-1]}")
    first = runs["from scratch"]
    rows = [
        {
            "version": name,
            "runs by": run.engine,
            "train loss": run.epochs[-1].train_loss,
            "test accuracy": run.epochs[-1].test_accuracy,
            "largest difference of a train loss": _difference(run, first, "train_loss"),
            "largest difference of a test accuracy": _difference(run, first, "test_accuracy"),
            **{f"{field} by epoch": [_values(run, field)] for field in _FIELDS},
        }
        for name, run in runs.items()
    ]
    setup = {
        "data": f"{train.name}, {len(train):,} examples",
        "training": f"784-256-10, weights of std 0.01, {epochs} epochs, batch {batch}, SGD {lr}, seed {seed}",
        "machine": machine(where),
    }

    def draw(study: Study) -> Figure:
        return _draw(study, runs)

    return Study("versions", QUESTION, rows, setup, draw)


_FIELDS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def _values(run: History, field: str) -> list[float]:
    return [getattr(epoch, field) for epoch in run.epochs]


def _difference(run: History, first: History, field: str) -> float:
    return max(abs(a - b) for a, b in zip(_values(run, field), _values(first, field)))


def _draw(study: Study, runs: dict[str, History]) -> Figure:
    """The curves over each other, and how far they are apart."""
    from fastmlp.plots.history import agreement  # matplotlib is needed by pictures alone

    return agreement(runs, title=study.question, note=study.caption())
