"""What nets make of the plane, and what they make of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.colors import ListedColormap
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fastmlp.plots import style


@style.styled
def regions(
    points: Tensor,
    labels: Tensor,
    decisions: Mapping[str, Tensor],
    rows: Sequence[dict[str, Any]],
    *,
    title: str = "",
    note: str = "",
) -> style.Picture:
    """The plane as each net divides it, the points over it, and accuracies on images by epoch.

    Args:
        points: (N, 2).
        labels: (N,) their classes.
        decisions: by net: the class at each place of a square grid, (side, side), the first row lowest.
        rows: "net", "data", "accuracy"; "test accuracies", [by epoch], where the data are images.
        title: above all.
        note: below all.
    """
    figure = style.figure(3.0 * (len(decisions) + 1), 3.9)
    *planes, curves = figure.subplots(1, len(decisions) + 1)
    count = int(labels.max()) + 1
    colours = ListedColormap(style.COLOURS[:count])
    extent = (-1.15, 1.15, -1.15, 1.15)
    right = {row["net"]: row["accuracy"] for row in rows if "test accuracies" not in row}
    for axis, (name, grid) in zip(planes, decisions.items()):
        axis.imshow(
            grid.numpy(), cmap=colours, vmin=0, vmax=count - 1, alpha=0.3, extent=extent, origin="lower"
        )
        axis.scatter(
            *points.T.numpy(), c=labels.numpy(), cmap=colours, vmin=0, vmax=count - 1, s=5, linewidths=0
        )
        axis.set_title(f"{name}:\n{100 * right[name]:.0f} % right")
        axis.set_xticks([])
        axis.set_yticks([])
    images = [row for row in rows if "test accuracies" in row]
    for i, row in enumerate(images):
        (values,) = row["test accuracies"]
        curves.plot(
            range(1, len(values) + 1),
            values,
            style.DASHES[i],
            color=style.colour(3 + i),
            linewidth=1.6,
            marker="o",
            ms=3,
            label=row["net"],
        )
    curves.set_title(f"images:\n{images[0]['data']}")
    curves.set_xlabel("epoch")
    curves.set_ylabel("test accuracy")
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.grid(alpha=0.25)
    curves.legend(loc="best", fontsize=8)
    style.around(figure, title, note)
    return figure
