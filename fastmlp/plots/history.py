"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fastmlp.plots import style
from fastmlp.training import History


@style.styled
def history(runs: History | Mapping[str, History], *, title: str = "") -> style.Picture:
    """The loss over the epochs, and beside it the accuracies where there are some.

    One run: each curve in a colour of its own. Several: a colour a run, dashed for the training set where
    the test set is there too.

    Args:
        runs: what `fastmlp.fit` returned, or several of these by their names.
        title: above all.

    Raises:
        ValueError: no run, or one without an epoch.
    """
    named = {"": runs} if isinstance(runs, History) else dict(runs)
    if not named:
        raise ValueError("runs: expected at least one, got none")
    for name, run in named.items():
        if not run.epochs:
            raise ValueError(f"runs: {name + ' has' if name else 'it has'} no epoch yet")
    panels = {"loss": _losses(named), "accuracy": _accuracies(named)}
    panels = {label: lines for label, lines in panels.items() if lines}
    figure = style.figure(4.5 * len(panels) + (0 if len(panels) > 1 else 1), 3.4)
    for i, (label, lines) in enumerate(panels.items()):
        axis = figure.add_subplot(1, len(panels), i + 1)
        _draw(axis, label, lines, list(named))
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


#: Run, which set, (epoch, value).
_Line = tuple[str, str, list[tuple[int, float]]]


def _losses(runs: Mapping[str, History]) -> list[_Line]:
    return [
        line
        for name, run in runs.items()
        for line in (
            (name, "train", [(epoch.number, epoch.train_loss) for epoch in run.epochs]),
            (name, "test", [(e.number, v) for e in run.epochs if (v := getattr(e, "test_loss", None)) is not None]),
        )
        if line[2]
    ]


def _accuracies(runs: Mapping[str, History]) -> list[_Line]:
    return [
        line
        for name, run in runs.items()
        for line in (
            (name, "train", [(e.number, v) for e in run.epochs if (v := e.train_accuracy) is not None]),
            (name, "test", [(e.number, v) for e in run.epochs if (v := e.test_accuracy) is not None]),
        )
        if line[2]
    ]


def _draw(axis: Axes, label: str, lines: list[_Line], names: list[str]) -> None:
    ...
