"""The results of training."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fastmlp import files, markup

_NAMES = ("train loss", "train accuracy", "test loss", "test accuracy")
_MOST = 12  # rows of a notebook's table


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch. Regression has no accuracies."""

    number: int  # from 1
    train_loss: float  # mean over the examples, each before its own step
    train_accuracy: float | None  # likewise, in [0, 1]
    test_accuracy: float | None  # after the epoch; None without a test set
    seconds: float  # of training, without the test
    examples_per_second: float
    test_loss: float | None = None  # after the epoch, by the run's loss: mean over the examples

    def numbers(self) -> dict[str, float]:
        """The losses and accuracies that there are, by name."""
        found = {name: getattr(self, name.replace(" ", "_")) for name in _NAMES}
        return {name: value for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        told = "".join(f"{name} {value:.4f}  " for name, value in self.numbers().items())
        return f"epoch {self.number:3d}  {told}{self.examples_per_second:,.0f} examples/s"


@dataclass(repr=False)
class History:
    """Every epoch, those before a resume too, and how they were run.

    ``str`` of it is a line for each epoch; a notebook shows the curves and a table.
    """

    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0  # that all of it took
    engine: str = ""  # which one ran
    reason: str = ""  # why that was autograd although the fastest engine was asked for
    stopped: str = ""  # why it ended before its last epoch

    @property
    def best(self) -> Epoch | None:
        """The epoch with the least test loss, or, without a test set, train loss; the first of equals.

        The net itself is as the last epoch left it.
        """
        return best(self.epochs)

    @property
    def title(self) -> str:
        """A summary in a line; the numbers are the last epoch's."""
        count = len(self.epochs)
        parts = [f"{count} epoch{'s' * (count != 1)} in {self.seconds:.3g} s"]
        if self.epochs:
            parts += [f"{name} {_cell(value)}" for name, value in self.epochs[-1].numbers().items()]
        if self.engine:
            parts.append(f"engine {self.engine}{f' ({self.reason})' if self.reason else ''}")
        if self.stopped:
            parts.append(f"stopped: {self.stopped}")
        return ", ".join(parts)

    def __repr__(self) -> str:
        return f"<History: {self.title}>"

    def __str__(self) -> str:
        return "\n".join([self.title, *map(str, self.epochs)])

    def _repr_html_(self) -> str:
        told, best = [epoch.numbers() for epoch in self.epochs], self.best
        names = [name for name in _NAMES if any(name in one for one in told)]
        rows = [
            (f"{epoch.number}{' (best)' * (epoch is best)}", *(_cell(one.get(name)) for name in names))
            for epoch, one in zip(self.epochs, told)
        ]
        if len(rows) > _MOST:  # the first, the best and the last ones
            early = [row for row in rows[: 1 - _MOST] if row is rows[0] or "best" in row[0]]
            rows = [*early, ("…", *[""] * len(names)), *rows[1 - _MOST :]]
        losses = {name: [one.get(name) for one in told] for name in ("train loss", "test loss")}
        return markup.curves(losses) + markup.table(self.title, ("epoch", *names), rows)

    def to_json(self) -> str:
        """All of it as a JSON object; a test loss that is not finite is null there."""
        content = asdict(self)
        for epoch in content["epochs"]:
            if epoch["test_loss"] is not None and not math.isfinite(epoch["test_loss"]):
                epoch["test_loss"] = None
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> History:
        """The history that `to_json` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            history = cls(**{**content, "epochs": epochs_of(content["epochs"])})
            texts = history.engine, history.reason, history.stopped
            if not (is_number(history.seconds) and all(isinstance(text, str) for text in texts)):
                raise ValueError("seconds is not a number, or engine, reason or stopped is not a text")
            return history
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"text: expected a history as History.to_json gives it ({error})") from error

    def save(self, path: Path | str) -> None:
        """Write `to_json` to ``path``, whole or not at all; missing directories are made.

        Raises:
            OSError: the file cannot be written.
        """
        files.write(Path(path), [self.to_json().encode()])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def epochs_of(found: Any) -> list[Epoch]:
    """The epochs that ``asdict`` made dictionaries of; a ValueError for anything else."""
    if not isinstance(found, list):
        raise ValueError(f"epochs are a {type(found).__name__}, not a list")
    epochs = []
    for number, one in enumerate(found, 1):
        try:
            epoch = Epoch(**one)
        except TypeError:
            raise ValueError(f"epoch {number} has other fields") from None
        for field_ in fields(Epoch):
            value = getattr(epoch, field_.name)
            fine = (value is None and "None" in field_.type) or is_number(value)
            if not fine or (field_.type == "int" and not isinstance(value, int)):
                raise ValueError(f"epoch {number} has no number as its {field_.name}")
        epochs.append(epoch)
    return epochs


def is_number(value: object) -> bool:
    """Whether it is a number that a float can hold exactly."""
    return isinstance(value, float) or (type(value) is int and abs(value) <= 2**53)


def best(epochs: list[Epoch], min_delta: float = 0.0) -> Epoch | None:
    """The last of ``epochs`` that was better than the best before it, by more than ``min_delta``.

    Better is a smaller test loss; where no epoch has one, a smaller train loss. A NaN is never better.
    """
    tested = [epoch for epoch in epochs if epoch.test_loss is not None]
    found, least = None, math.inf
    for epoch in tested or epochs:
        loss = epoch.train_loss if epoch.test_loss is None else epoch.test_loss
        if loss < least - min_delta:
            found, least = epoch, loss
    return found


def stale(epochs: list[Epoch], patience: int, min_delta: float) -> str:
    """Why to stop after ``epochs``: the loss has not improved for ``patience`` of them; "" to go on."""
    if not epochs:
        return ""
    top = best(epochs, min_delta)
    since = epochs[-1].number - (top.number if top is not None else 0)
    if since < patience:
        return ""
    what = "train" if all(epoch.test_loss is None for epoch in epochs) else "test"
    ever = "" if top is None else f" since epoch {top.number}"
    return f"the {what} loss has not improved for {since} epoch{'s' * (since != 1)}{ever}"
