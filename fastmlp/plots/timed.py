"""Times of the same work at several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmlp.plots import style


@style.styled
def timed(
    rows: Sequence[dict[str, Any]], works: Sequence[str], *, title: str = "", note: str = ""
) -> style.Picture:
    """A panel for each kind of work: the median at each size, with whiskers from quartile to quartile.

    Args:
        rows: "size", "dtype", and for each of the works "..., ms" and "..., quartiles" ([[low, high]]).
        works: their names.
        title: above all.
        note: below all.
    """
    figure = style.figure(10, 3.9)
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    for axis, work in zip(figure.subplots(1, len(works), squeeze=False)[0], works):
        for i, dtype in enumerate(dtypes):
            here = [row for row in rows if row["dtype"] == dtype]
            places = [sizes.index(row["size"]) + 0.36 * (i - (len(dtypes) - 1) / 2) for row in here]
            medians = [row[f"{work}, ms"] for row in here]
            ends = [row[f"{work}, quartiles"][0] for row in here]
            spread = [
                [m - low for m, (low, _) in zip(medians, ends)],
                [high - m for m, (_, high) in zip(medians, ends)],
            ]
            axis.bar(places, medians, width=0.34, color=style.colour(i), label=dtype)
            axis.errorbar(places, medians, yerr=spread, fmt="none", ecolor=style.INK, elinewidth=1, capsize=3)
            for place, median, (_, high) in zip(places, medians, ends):
                axis.annotate(
                    f"{median / medians[0]:.2f}×",
                    (place, max(high, median)),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=7.5,
                )
        axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axis.set_xlabel(f"size n (× of the time at {sizes[0]})")
        axis.set_ylabel(f"time of a {work}, ms")
        axis.margins(y=0.12)
        axis.grid(alpha=0.25, axis="y")
        axis.set_axisbelow(True)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), title=title or None)
    style.around(figure, note=note)
    return figure
