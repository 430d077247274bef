"""An exercise: nets that differ in one thing, trained alike from the same seeds in the same batch orders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastmlp.data import Images, load
from fastmlp.data.synthetic import synthetic
from fastmlp.studies.study import Study, cell, check_some, machine, place
from fastmlp.training import Epoch, TrainingError
from fastmlp.training.fit import fit
from fastmlp.training.inputs import Data

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Say = Callable[[str], None]
_SMALL = (2000, 500)  # examples for training and test


@dataclass(frozen=True)
class Variant:
    """One of the nets that are compared."""

    row: dict[str, Any]  # what tells it from the others
    make: Callable[[], nn.Module]  # called under the run's seed
    lr: float = 0.1


@dataclass(frozen=True)
class Exercise:
    """A study that varies one thing; call it to run it."""

    name: str
    question: str
    vary: Callable[[Sequence[Any]], list[Variant]]
    values: Sequence[Any]  # that are tried
    few: Sequence[Any]  # of these, in a small run
    draw: Callable[[Study], Figure]
    also: Callable[[nn.Module], dict[str, float]] = lambda net: {}  # more numbers of a trained net

    def __call__(
        self,
        values: Sequence[Any] | None = None,
        *,
        seeds: Sequence[int] | None = None,
        epochs: int | None = None,
        small: bool = False,
        data: Path | str | None = None,
        device: torch.device | str | None = None,
        say: Say = print,
    ) -> Study:
        """Train every variant from every seed, by SGD with a learning rate that falls to 0 linearly.

        Args:
            values: what is tried, instead of the study's own.
            seeds: of initial weights and batch order; by default 0, 1, 2, or 0 in a small run.
            epochs: of each run; by default 5, or 3.
            small: in seconds: few values, on 2000 examples.
            data: the folder that holds FashionMNIST/raw; None to download it, or, in a small run, for the
                embedded synthetic set.
            device: where; None for the GPU if there is one.
            say: told what is done.

        Returns:
            A row for each variant: train loss and test accuracy by seed, and both by epoch.

        Raises:
            ValueError: nothing to try.
            DataError: ``data`` is given, and what is there is missing or broken.
        """
        seeds = (range(1) if small else range(3)) if seeds is None else seeds
        epochs = (3 if small else 5) if epochs is None else epochs
        values = (self.few if small else self.values) if values is None else values
        check_some(values=values, seeds=seeds, epochs=range(epochs))
        where, batch = place(device), batch_size(small)
        train, test = sets(data, small, say)
        setup = {
            "data": f"{train.name}, {len(train):,} examples",
            "training": f"{epochs} epochs, batch {batch}, SGD, learning rate falls to 0 linearly",
            "seeds": len(seeds),
            "machine": machine(where),
        }
        train, test = train.to(where), test.to(where)
        rows = []
        for variant in self.vary(values):
            row = dict(variant.row)
            for seed in seeds:
                torch.manual_seed(seed)
                net = variant.make().to(where)
                row["parameters"] = sum(parameter.numel() for parameter in net.parameters())
                options = {"epochs": epochs, "batch_size": batch, "lr": variant.lr, "seed": seed}
                for name, number in {**run(net, train, test, **options), **self.also(net)}.items():
                    row.setdefault(name, []).append(number)
            rows.append(row)
            what = ", ".join(f"{key} {cell(value)}" for key, value in variant.row.items())
            say(f"{what}: test accuracy {cell(row['test accuracy'])}")
        return Study(self.name, self.question, rows, setup, self.draw)


def sets(data: Path | str | None, small: bool, say: Say) -> tuple[Images, Images]:
    """Training and test set: Fashion-MNIST, or the embedded set where that is not available, or ``small``.

    Raises:
        DataError: ``data`` is given, and what is there is missing or broken.
    """
    if small and data is None:
        return synthetic(0, *_SMALL)
    train, test = load(None if data is None else Path(data), say)
    return (train.subset(_SMALL[0]), test.subset(_SMALL[1])) if small else (train, test)


def batch_size(small: bool) -> int:
    """The book's, or so few that a small set makes steps enough to learn something."""
    return 32 if small else 256


def epochs_of(asked: int | None, usual: int, small: bool) -> int:
    """So many epochs as are asked for; else the usual number, or 3 in a small run.

    Raises:
        ValueError: none is asked for.
    """
    epochs = (3 if small else usual) if asked is None else asked
    if epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")
    return epochs


def run(net: nn.Module, train: Data, test: Data | None, **options: Any) -> dict[str, Any]:
    """Train ``net`` as `fit` is asked to; by default the learning rate falls to 0 linearly.

    Returns:
        The last epoch's numbers, None if the training diverged, and the curves up to there.
    """
    done: list[Epoch] = []
    try:
        fit(net, train, test, **{"schedule": "linear", "on_epoch": done.append, **options})
        last: Epoch | None = done[-1]
    except TrainingError:
        last = None
    return {
        "train loss": last and last.train_loss,
        "test accuracy": last and last.test_accuracy,
        "train losses": [epoch.train_loss for epoch in done],
        "test accuracies": [epoch.test_accuracy for epoch in done],
    }
