"""Training curves: of runs, as they grow, and of runs that should be one and the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fastmlp.plots import style
from fastmlp.training import Epoch, History

#: A panel's name: what of an `Epoch` it shows, the training set's and the test set's.
PANELS = {"loss": ("train_loss", "test_loss"), "accuracy": ("train_accuracy", "test_accuracy")}
_SETS = ("train", "test")
_WIDTH = 1.5


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
        for label, fields in PANELS.items()
        if any(points(run, field) for run in named.values() for field in fields)
    }
    wide = 9.0 if len(panels) > 1 else 5.5
    figure = style.figure(wide, 3.4)
    for i, (label, fields) in enumerate(panels.items()):
        _panel(figure.add_subplot(1, len(panels), i + 1), label, fields, named)
    if len(named) > 1:
        _name_runs(figure, list(named), title)
    else:
        style.around(figure, title)
    return figure


class Live:
    """For ``fit(..., on_epoch=Live())``: in a notebook the curve is drawn anew, in place, after every epoch.

    Elsewhere nothing is shown; ``history`` collects the epochs all the same.
    """

    def __init__(self, *, title: str = "") -> None:
        self.history = History()
        self.title = title
        self._shown: Any = None

    def __call__(self, epoch: Epoch) -> None:
        """Take in one epoch."""
        self.history.epochs.append(epoch)
        self.history.seconds += epoch.seconds
        if self._shown is not None:
            self._shown.update(self.figure())
        elif _in_notebook():
            from IPython.display import display

            self._shown = display(self.figure(), display_id=True)

    def figure(self) -> style.Picture:
        """The curve as far as it is."""
        return history(self.history, title=self.title)


@style.styled
def agreement(runs: Mapping[str, History], *, title: str = "", note: str = "") -> style.Picture:
    """Loss and accuracies of each run, and the difference of each one's train loss from the first's.

    Args:
        runs: the same epochs each, by their names.
        title: above all.
        note: below all.
    """
    figure = style.figure(11.5, 3.9)
    *curves, apart = figure.subplots(1, 3)
    for axis, (label, fields) in zip(curves, PANELS.items()):
        _panel(axis, label, fields, runs, nested=True)
    names = list(runs)
    (first, *_) = runs.values()
    base = dict(points(first, "train_loss"))
    for i, run in enumerate(runs.values()):
        if i:
            found = [(epoch, abs(loss - base[epoch])) for epoch, loss in points(run, "train_loss")]
            apart.plot(
                *zip(*found), color=style.colour(i), linewidth=_line_width(i, len(runs)), marker="o", ms=3
            )
    apart.set_yscale("log")
    apart.set_xlabel("epoch")
    apart.set_ylabel(f"|train loss − that of {names[0]}|")
    apart.xaxis.set_major_locator(MaxNLocator(integer=True))
    apart.grid(alpha=0.25)
    _name_runs(figure, names, title, nested=True)
    style.around(figure, note=note)
    return figure


def points(run: History, field: str) -> list[tuple[int, float]]:
    """(epoch, value) of one number of the epochs, where it is known."""
    found = [(epoch.number, getattr(epoch, field, None)) for epoch in run.epochs]
    return [(number, value) for number, value in found if value is not None]


def _panel(
    axis: Axes, label: str, fields: tuple[str, ...], runs: Mapping[str, History], nested: bool = False
) -> None:
    """The curves of ``fields``, the training set's and the test set's, of each run.

    ``nested``: runs that lie upon each other, thinner lines on thicker ones.
    """
    colours = _run_colours(len(runs))
    for i, run in enumerate(runs.values()):
        for which, field, dashes in zip(_SETS, fields, ("--", "-")):
            found = points(run, field)
            if found:
                colour = colours[i] if len(runs) > 1 else style.COLOURS[_SETS.index(which)]
                width = _line_width(i, len(runs)) if nested else _WIDTH
                dots: Any = {"marker": "o", "ms": 2 * width} if len(found) <= 30 else {}
                axis.plot(*zip(*found), dashes, color=colour, linewidth=width, label=which, **dots)
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.25)
    sets = dict(zip(*reversed(axis.get_legend_handles_labels())))
    if len(runs) > 1:  # the colours are the runs'
        sets = {
            which: Line2D([], [], color=style.GREY, linestyle=h.get_linestyle()) for which, h in sets.items()
        }
    axis.legend(sets.values(), sets.keys())


def _name_runs(figure: Figure, names: Sequence[str], title: str = "", nested: bool = False) -> None:
    """Which colour is which run, above all panels; ``nested`` as in `_panel`."""
    widths = [_line_width(i, len(names)) if nested else _WIDTH for i in range(len(names))]
    handles = [
        Line2D([], [], color=colour, linewidth=width, label=name)
        for name, colour, width in zip(names, _run_colours(len(names)), widths)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(names)), title=title or None)


def _line_width(index: int, count: int) -> float:
    """The later the line the thinner, so that those which lie upon each other are all seen."""
    return _WIDTH + 1.1 * min(3, count - 1 - index)


def _run_colours(count: int) -> Sequence[Any]:
    """A colour for each run: dashes tell the training set's lines, so no colour comes twice."""
    return style.COLOURS[:count] if count <= len(style.COLOURS) else style.shades(count)


def _in_notebook() -> bool:
    """Whether what runs this can show pictures: a Jupyter kernel, not IPython in a terminal."""
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None
