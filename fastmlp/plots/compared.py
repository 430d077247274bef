"""Runs that differ in one thing: where each of them ended, and the way there."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from fastmlp.plots import style

_Row = dict[str, Any]


@style.styled
def compared(
    rows: Sequence[_Row], x: str, *, log: bool = False, group: str = "", title: str = "", note: str = ""
) -> style.Picture:
    """Test accuracy over ``x``, the mean and range of the seeds, and beside it the training loss by epoch.

    Args:
        rows: "test accuracy", a number a seed, None where it diverged; "train losses", a list a seed.
        x: the rows' entry on the horizontal axis: numbers, or texts in the rows' order.
        log: whether its axis is logarithmic.
        group: another entry, with a line for each of its values.
        title: above all.
        note: below all.
    """
    figure = style.figure(9.5, 4.0)
    ends, curves = figure.subplots(1, 2)
    values = list(dict.fromkeys(row[x] for row in rows))
    groups = list(dict.fromkeys(row.get(group, "") for row in rows))
    named = isinstance(values[0], str)
    places = {value: i if named else value for i, value in enumerate(values)}
    texts = [value if named else f"{value:g}" for value in values]
    shades = [style.colour(i) for i in range(len(values))] if named else style.shades(len(values))
    for row in rows:
        i, j = values.index(row[x]), groups.index(row.get(group, ""))
        dashes = style.dashes(i) if named else style.DASHES[j]
        _ends(ends, places[row[x]], row["test accuracy"], style.colour(j) if len(groups) > 1 else shades[i])
        _curve(curves, row["train losses"], shades[i], dashes)
    if not named:
        for j, name in enumerate(groups):
            here = [
                (places[row[x]], _mean(row["test accuracy"])) for row in rows if row.get(group, "") == name
            ]
            here = [(place, mean) for place, mean in here if mean is not None]
            colour = style.colour(j) if len(groups) > 1 else style.GREY
            ends.plot(*zip(*here), style.DASHES[j], color=colour, linewidth=1.2, zorder=1, label=name)
    if log:
        ends.set_xscale("log")
    ends.set_xticks(list(places.values()), texts)
    ends.xaxis.set_minor_locator(NullLocator())
    ends.margins(x=0.08)
    ends.set_xlabel(x)
    ends.set_ylabel("test accuracy after the last epoch")
    if any(None in row["test accuracy"] for row in rows):
        ends.plot([], [], "x", color=style.INK, label="diverged")
    if ends.get_legend_handles_labels()[1] not in ([], [""]):
        ends.legend(title=group or None)
    curves.set_xlabel("epoch")
    curves.set_ylabel("train loss, mean of the epoch")
    curves.set_yscale("log")
    style.plain(curves.yaxis)
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles = [
        Line2D([], [], color=shade, linestyle=style.dashes(i) if named else "-", label=text)
        for i, (shade, text) in enumerate(zip(shades, texts))
    ]
    curves.legend(handles=handles, title=x, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axis in (ends, curves):
        axis.grid(alpha=0.25)
    style.around(figure, title, note)
    return figure


def _ends(axis: Axes, x: float, values: Sequence[float | None], colour: Any) -> None:
    """The mean with whiskers from the least to the most; a cross at the bottom where a run diverged."""
    known = [value for value in values if value is not None]
    if known:
        mean = statistics.mean(known)
        spread = [[mean - min(known)], [max(known) - mean]]
        axis.errorbar(x, mean, yerr=spread, marker="o", ms=5, capsize=3, color=colour, linewidth=1.4)
    if len(known) < len(values):
        axis.plot(x, 0.02, "x", ms=7, color=style.INK, transform=axis.get_xaxis_transform(), clip_on=False)


def _curve(axis: Axes, runs: Sequence[Sequence[float]], colour: Any, dashes: str) -> None:
    """The mean of the runs that reached each epoch."""
    steps = [[v for v in step if v is not None] for step in itertools.zip_longest(*runs)]
    if steps:
        means = [statistics.mean(step) for step in steps]
        axis.plot(range(1, len(means) + 1), means, dashes, color=colour, marker="o", ms=3)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None
