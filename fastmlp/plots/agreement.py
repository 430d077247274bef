"""Runs that should be one and the same: their curves over each other, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.ticker import MaxNLocator

from fastmlp.plots import style
from fastmlp.plots.history import PANELS, line_width, name_runs, panel, points
from fastmlp.training import History


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
        panel(axis, label, fields, runs, nested=True)
    names = list(runs)
    (first, *_) = runs.values()
    base = dict(points(first, "train_loss"))
    for i, run in enumerate(runs.values()):
        if i:
            found = [(epoch, abs(loss - base[epoch])) for epoch, loss in points(run, "train_loss")]
            apart.plot(
                *zip(*found), color=style.colour(i), linewidth=line_width(i, len(runs)), marker="o", ms=3
            )
    apart.set_yscale("log")
    apart.set_xlabel("epoch")
    apart.set_ylabel(f"|train loss − that of {names[0]}|")
    apart.xaxis.set_major_locator(MaxNLocator(integer=True))
    apart.grid(alpha=0.25)
    name_runs(figure, names, title, nested=True)
    style.around(figure, note=note)
    return figure
