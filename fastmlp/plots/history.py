"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fastmlp.plots import style
from fastmlp.training import History

_PANELS = {"loss": ("train_loss", "test_loss"), "accuracy": ("train_accuracy", "test_accuracy")}
_SETS = ("train", "test")


@style.styled
def history(runs: History | Mapping[str, History], *, title: str = "") -> style.Picture:
    """The loss over the epochs, and beside it the accuracies where there are some.

    The test set's lines are solid, the training set's dashed, whose values are means over the epoch: each
    example is seen before its own step. Several runs have a colour each.

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
            raise ValueError(f"runs: expected epochs in each, got none{f' in {name!r}' if name else ''}")
    panels = {
        label: fields
        for label, fields in _PANELS.items()
        if any(points(run, field) for run in named.values() for field in fields)
    }
    wide = 9.0 if len(panels) > 1 else 5.5
    figure = style.figure(wide, 3.4)
    for i, (label, fields) in enumerate(panels.items()):
        _draw(figure.add_subplot(1, len(panels), i + 1), label, fields, named)
    if len(named) > 1:
        handles = [Line2D([], [], color=style.colour(i), label=name) for i, name in enumerate(named)]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(5, len(named)), title=title)
    elif title:
        figure.suptitle(title, fontsize=10)
    return figure


def points(run: History, field: str) -> list[tuple[int, float]]:
    """(epoch, value) of one number of the epochs, where it is known."""
    found = [(epoch.number, getattr(epoch, field, None)) for epoch in run.epochs]
    return [(number, value) for number, value in found if value is not None]


def _draw(axis: Axes, label: str, fields: tuple[str, ...], runs: Mapping[str, History]) -> None:
    for i, run in enumerate(runs.values()):
        for which, field, dashes in zip(_SETS, fields, ("--", "-")):
            found = points(run, field)
            if found:
                colour = style.colour(i) if len(runs) > 1 else style.COLOURS[_SETS.index(which)]
                few = len(found) <= 30
                axis.plot(*zip(*found), dashes, color=colour, marker="o" if few else "", ms=3, label=which)
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    sets = dict(zip(*reversed(axis.get_legend_handles_labels())))
    if len(runs) > 1:  # the colours are the runs'
        sets = {which: Line2D([], [], color=style.GREY, linestyle=h.get_linestyle()) for which, h in sets.items()}
    axis.legend(sets.values(), sets.keys())
