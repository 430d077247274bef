"""A function, fits of it by nets of several widths, and how far off they are."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import NullLocator

from fastmlp.plots import style

_SHOWN = 4  # fits: more are not told apart


@style.styled
def fits(
    x: Sequence[float], y: Sequence[float], rows: Sequence[dict[str, Any]], *, title: str = "", note: str = ""
) -> style.Picture:
    """The fits of some widths over the function, and the error of every width, both axes logarithmic.

    Args:
        x: where the fits are evaluated.
        y: the function there.
        rows: "width"; "mean squared error", a number a seed; "fit", a list of one list of values on ``x``.
        title: above all.
        note: below all.
    """
    figure = style.figure(10, 4.0)
    curves, errors = figure.subplots(1, 2, width_ratios=(3, 2))
    curves.plot(x, y, color="#d0d4da", linewidth=6, label="the function", solid_capstyle="round")
    shades = style.shades(len(rows))
    last = len(rows) - 1
    shown = sorted({round(i * last / (_SHOWN - 1)) for i in range(_SHOWN)})
    for i in shown:
        label = f"width {rows[i]['width']}"
        curves.plot(x, rows[i]["fit"][0], color=shades[i], linewidth=1.6, label=label)
    curves.set_xlabel("x")
    curves.set_ylabel("f(x)")
    curves.legend(loc="best")
    widths = [row["width"] for row in rows]
    means = [statistics.mean(row["mean squared error"]) for row in rows]
    errors.plot(widths, means, color=style.GREY, linewidth=1.2, zorder=1, label="mean of the seeds")
    for row, shade in zip(rows, shades):
        found = row["mean squared error"]
        errors.plot([row["width"]] * len(found), found, "o", color=shade, ms=5)
    errors.set_xscale("log", base=2)
    errors.set_yscale("log")
    errors.set_xticks(widths, [str(width) for width in widths])
    errors.xaxis.set_minor_locator(NullLocator())
    style.plain(errors.yaxis)
    errors.set_xlabel("width of the hidden layer")
    errors.set_ylabel("mean squared error, a dot a seed")
    errors.grid(alpha=0.25)
    errors.legend()
    style.around(figure, title, note)
    return figure
