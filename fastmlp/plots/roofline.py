"""Kernels under what a device reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogFormatterMathtext, LogLocator, NullFormatter
from matplotlib.transforms import Bbox, BboxBase

from fastmlp.costs.ceilings import Ceilings
from fastmlp.plots import style
from fastmlp.profiling.points import Point
from fastmlp.profiling.rows import amount


@style.styled
def roofline(
    points: Sequence[Point], ceilings: Ceilings, *, title: str = "", note: str = ""
) -> style.Picture:
    """Operations a second over operations a byte, both logarithmic; a panel for each dtype.

    The roof is what a large matrix product reaches in the dtype, and below it what a copy does: of the most
    bytes (memory), and the fastest (in a cache; dashed). A kernel under the slope is bound by memory, under
    the flat roof by products; how far below says what is left.

    Args:
        points: kernels of dtypes that ``ceilings`` has.
        ceilings: what the device reaches.
        title: above all.
        note: below all.

    Raises:
        ValueError: no points, one that does nothing or takes no time, or of a dtype without a roof.
    """
    _check(points, ceilings)
    dtypes = list(dict.fromkeys(point.dtype for point in points))
    kinds = list(dict.fromkeys(point.kind for point in points))
    figure = style.figure(5.6 * len(dtypes) + (1.4 if len(dtypes) == 1 else 0), 5.4)
    axes = figure.subplots(1, len(dtypes), sharex=True, sharey=True, squeeze=False)[0]
    for axis, dtype in zip(axes, dtypes):
        _limits(axis, points, ceilings)
        _roof(axis, ceilings, dtype)
        for point in points:
            if point.dtype == dtype:
                axis.plot(point.intensity, point.rate, **_look(kinds.index(point.kind)))
        axis.set_title(dtype)
        axis.set_xlabel("operations a byte")
        axis.grid(alpha=0.2)
    axes[0].set_ylabel("operations a second")
    for kind in kinds:
        axes[0].plot([], [], label=kind, **_look(kinds.index(kind)))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), title=title or None)
    if note:
        style.around(figure, note=note)
    figure.draw_without_rendering()  # where things are is known then, and what is free
    for axis, dtype in zip(axes, dtypes):
        _label(axis, [point for point in points if point.dtype == dtype], ceilings)
    return figure


def _look(kind: int) -> dict[str, Any]:
    """The mark of a kind: by colour and by shape."""
    mark, colour = "osD^v<"[kind % 6], style.colour(kind)
    return {"marker": mark, "color": colour, "ms": 6, "mec": "white", "mew": 0.7, "ls": "", "zorder": 3}


def _check(points: Sequence[Point], ceilings: Ceilings) -> None:
    if not points:
        raise ValueError("points: expected at least one, got none")
    for point in points:
        if min(point.operations, point.bytes, point.seconds) <= 0:
            raise ValueError(f"points: {point.label}: expected operations, bytes and seconds above 0")
        if point.dtype not in ceilings.matmul:
            known = ", ".join(ceilings.matmul)
            raise ValueError(f"points: {point.label}: expected a dtype of {known}, got {point.dtype}")


def _limits(axis: Axes, points: Sequence[Point], ceilings: Ceilings) -> None:
    """Room for all points and for the ridges, the same in all panels."""
    ridges = [rate / _memory(ceilings) for rate in ceilings.matmul.values()]
    x = [point.intensity for point in points] + ridges
    y = [point.rate for point in points] + list(ceilings.matmul.values())
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(min(x) / 2.5, max(x) * 4)
    axis.set_ylim(min(y) / 3, max(y) * 3)
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(LogLocator(numticks=12))
        one.set_major_formatter(LogFormatterMathtext())
        one.set_minor_formatter(NullFormatter())


def _roof(axis: Axes, ceilings: Ceilings, dtype: str) -> None:
    peak, (left, right) = ceilings.matmul[dtype], axis.get_xlim()
    for rate, look in ((_cache(ceilings), "--"), (_memory(ceilings), "-")):
        axis.plot([left, peak / rate], [left * rate, peak], look, color=style.INK, linewidth=1.2, zorder=1)
    axis.plot([peak / _cache(ceilings), right], [peak, peak], "-", color=style.INK, linewidth=1.2, zorder=1)


def _memory(ceilings: Ceilings) -> float:
    return ceilings.copy[max(ceilings.copy)]


def _cache(ceilings: Ceilings) -> float:
    return max(ceilings.copy.values())


_SMALL = 7.5  # points, of a label
#: Where a label may stand, first come first served: to the right of its point, to the left, above, below.
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES = (6, 13, 22, 33, 46, 62, 80, 100)  # points


def _label(axis: Axes, points: Sequence[Point], ceilings: Ceilings) -> None:
    """A label for each point and slope, on no other one, on no point and on no roof."""
    scale = axis.figure.dpi / 72  # pixels a point
    places = axis.transData.transform([(p.intensity, p.rate) for p in points])
    taken = [_box(x, y, 8 * scale, 8 * scale) for x, y in places]
    for line in axis.lines:
        taken += _along(axis, line.get_xdata(), line.get_ydata(), scale)
    taken += [*_slopes(axis, ceilings, scale), _flat(axis, ceilings.matmul[points[0].dtype], scale)]
    for point in sorted(points, key=lambda p: (p.intensity, p.rate)):
        here = axis.transData.transform((point.intensity, point.rate))
        at = float(here[0]), float(here[1])
        extents = TextPath((0, 0), point.label, size=_SMALL).get_extents()
        box = _free(axis.bbox, taken, at, (extents.width + 3) * scale, (_SMALL + 2) * scale, scale)
        taken.append(box)
        x, y = (box.x0 + box.x1) / 2 - at[0], (box.y0 + box.y1) / 2 - at[1]
        far = max(abs(x) - box.width / 2, abs(y) - box.height / 2) > (_DISTANCES[0] + 1) * scale
        leader = {"arrowstyle": "-", "color": style.GREY, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        axis.annotate(
            point.label,
            (point.intensity, point.rate),
            xytext=(x / scale, y / scale),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=_SMALL,
            color=style.INK,
            arrowprops=leader if far else None,
        )


def _free(
    inside: BboxBase,
    taken: Sequence[Bbox],
    at: tuple[float, float],
    width: float,
    height: float,
    scale: float,
) -> Bbox:
    """A place for a label, as near to its point as there is one; on the point where there is none."""
    x, y = at
    for distance in _DISTANCES:
        for right, up in _SIDES:
            to_x, to_y = right * (distance * scale + width / 2), up * (distance * scale + height / 2)
            box = _box(x + to_x, y + to_y, width, height)
            if _inside(inside, box) and not any(box.overlaps(other) for other in taken):
                return box
    return _box(x, y, width, height)


def _slopes(axis: Axes, ceilings: Ceilings, scale: float) -> list[Bbox]:
    """The names of the slopes along them, and the places that they take."""
    left = axis.get_xlim()[0] * 1.12
    taken = []
    for rate, name, side in ((_cache(ceilings), "a cache", 1), (_memory(ceilings), "memory", -1)):
        if side > 0 and rate < 1.2 * _memory(ceilings):
            continue
        (x, y), (x2, y2) = axis.transData.transform([(left, left * rate), (10 * left, 10 * left * rate)])
        text = f"{name}, {amount(rate, 'B/s')}"
        axis.annotate(
            text,
            (left, left * rate),
            xytext=(0, side * 3),
            textcoords="offset points",
            rotation=math.degrees(math.atan2(y2 - y, x2 - x)),
            rotation_mode="anchor",
            va="bottom" if side > 0 else "top",
            fontsize=_SMALL,
            color=style.GREY,
        )
        length = TextPath((0, 0), text, size=_SMALL).get_extents().width * scale
        steps = max(2, round(length / 8))
        along = math.hypot(x2 - x, y2 - y)
        for i in range(steps + 1):
            f = i * length / steps / along
            taken.append(_box(x + f * (x2 - x), y + f * (y2 - y) + side * 8 * scale, 10 * scale, 12 * scale))
    return taken


def _flat(axis: Axes, peak: float, scale: float) -> Bbox:
    """The name of the flat roof at its right end, and its place."""
    text = f"matrix products, {amount(peak, 'FLOP/s')}"
    axis.annotate(
        text,
        (axis.get_xlim()[1], peak),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        fontsize=_SMALL,
        color=style.GREY,
    )
    x, y = axis.transData.transform((axis.get_xlim()[1], peak))
    width = (TextPath((0, 0), text, size=_SMALL).get_extents().width + 6) * scale
    return _box(x - width / 2, y + 8 * scale, width, 11 * scale)


def _along(axis: Axes, x: Any, y: Any, scale: float) -> list[Bbox]:
    """Small boxes along a line."""
    ends = axis.transData.transform(list(zip(x, y)))
    if len(ends) != 2:
        return []
    (x0, y0), (x1, y1) = ends
    count = max(2, round(math.hypot(x1 - x0, y1 - y0) / (4 * scale)))
    places = [i / count for i in range(count + 1)]
    return [_box(x0 + f * (x1 - x0), y0 + f * (y1 - y0), 2 * scale, 2 * scale) for f in places]


def _inside(outer: BboxBase, box: Bbox) -> bool:
    return outer.x0 < box.x0 and box.x1 < outer.x1 and outer.y0 < box.y0 and box.y1 < outer.y1


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    """Around a place, in pixels."""
    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
