"""Points under roofs: where they are, and that no label is on another."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation

from fastmlp.plots import roofline, save
from fastmlp.profiling import Ceilings
from fastmlp.profiling.points import Point

CEILINGS = Ceilings(
    {1 << 16: 9e10, 1 << 28: 5e9}, {"float32": 2e11, "bfloat16": 1.4e12, "float16": 1e12}, 2e-7
)


def point(label: str, intensity: float, rate: float, dtype: str = "float32", kind: str = "forward") -> Point:
    return Point(label, kind, intensity * 1e6, 1e6, intensity * 1e6 / rate, dtype)


def labels(axis: Axes) -> list[Annotation]:
    return [text for text in axis.texts if isinstance(text, Annotation)]


def test_a_panel_for_each_dtype_and_a_roof_in_each() -> None:
    figure = roofline([point("a", 10, 1e10), point("b", 20, 1e11, "bfloat16", "backward")], CEILINGS)
    assert [axis.get_title() for axis in figure.axes] == ["float32", "bfloat16"]
    for axis, peak in zip(figure.axes, (2e11, 1.4e12)):
        drawn = [list(zip(line.get_xdata(), line.get_ydata())) for line in axis.lines]
        left, right = axis.get_xlim()
        assert [(left, left * 9e10), (peak / 9e10, peak)] in drawn
        assert [(left, left * 5e9), (peak / 5e9, peak)] in drawn
        assert [(peak / 9e10, peak), (right, peak)] in drawn
    first = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
    assert ([10.0], [1e10]) in [(list(line.get_xdata()), list(line.get_ydata())) for line in first]
    shown = [label.get_text() for label in labels(figure.axes[0])]
    assert {"a", "matrix products, 200 GFLOP/s", "memory, 5 GB/s", "a cache, 90 GB/s"} == set(shown)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["forward", "backward"]


@pytest.mark.parametrize("count", [1, 9])
def test_no_label_is_on_another(count: int) -> None:
    """Even of points in one place."""
    points = [point(f"{100 * i}→1024", 100 * 1.01**i, 1.9e11) for i in range(count)]
    figure = roofline(points, CEILINGS, note="n " * 150)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    (axis,) = figure.axes
    # Of an annotation's own extent its line is part.
    boxes = [super(Annotation, label).get_window_extent(renderer) for label in labels(axis)]
    flat = [box for box, label in zip(boxes, labels(axis)) if label.get_rotation() == 0]
    assert len(flat) == count + 1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(flat, 2))
    for box in flat:
        assert axis.bbox.x0 <= box.x0
        assert box.x1 <= axis.bbox.x1
        assert axis.bbox.y0 <= box.y0
        assert box.y1 <= axis.bbox.y1


def test_without_a_cache_there_is_one_slope() -> None:
    flat = Ceilings({1 << 28: 4e12}, {"float32": 6e13}, 1e-6)
    (axis,) = roofline([point("a", 10, 1e12)], flat).axes
    assert not any("cache" in label.get_text() for label in labels(axis))


def test_it_is_saved(tmp_path: Path) -> None:
    for name in ("roofline.png", "roofline.svg"):
        assert save(roofline([point("a", 1, 1e9)], CEILINGS), tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "expected at least one, got none"),
        ([point("k", 1, 1e9, "float64")], "k: expected a dtype of float32, bfloat16, float16, got float64"),
        ([point("k", 1, 1e9)._replace(bytes=0)], "k: expected operations, bytes and seconds above 0"),
    ],
)
def test_wrong_points(points: list[Point], message: str) -> None:
    with pytest.raises(ValueError, match=f"points: {message}"):
        roofline(points, CEILINGS)
