"""What is shown of a result: a table as text, and for a notebook a small one of HTML and a curve."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_LEFT = ' style="text-align: left"'
_COLOURS = ("#1f77b4", "#d95f02")
#: Between the columns of a text.
GAP = 2
_WIDTH, _HEIGHT, _EDGE = 320, 90, 4  # pixels of a curve's picture


def table(
    title: str,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    notes: Iterable[str] = (),
    texts: int = 1,
) -> str:
    """A table with a line over it, and ``notes`` under it; the first ``texts`` columns stand to the left."""

    def line(tag: str, cells: Sequence[str]) -> str:
        made = [f"<{tag}{_LEFT * (i < texts)}>{escape(cell)}</{tag}>" for i, cell in enumerate(cells)]
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line("td", row) for row in rows)
    under = "".join(f"<div>{escape(note)}</div>" for note in notes)
    return (
        f"<div><div><b>{escape(title)}</b></div><table><thead>{line('th', head)}</thead>"
        f"<tbody>{body}</tbody></table>{under}</div>"
    )


def aligned(lines: Sequence[Sequence[str]], texts: int = 1) -> list[str]:
    """Lines of equally many cells as lines of text; the first ``texts`` columns stand to the left."""
    columns = [
        [cell.ljust(width) if i < texts else cell.rjust(width) for cell in column]
        for i, column in enumerate(zip(*lines))
        for width in [max(map(len, column))]
    ]
    return [(" " * GAP).join(line).rstrip() for line in zip(*columns)]


def curves(named: Mapping[str, Sequence[float | None]]) -> str:
    """Curves over the same steps as an inline SVG, "" where there are no two points of any."""
    points = {
        name: [(i, value) for i, value in enumerate(values) if value is not None and math.isfinite(value)]
        for name, values in named.items()
    }
    drawn = {name: found for name, found in points.items() if len(found) > 1}
    if not drawn:
        return ""
    levels = [value for found in drawn.values() for _, value in found]
    low, span = min(levels), (max(levels) - min(levels)) or 1.0
    steps = max(i for found in drawn.values() for i, _ in found)

    def place(i: int, value: float) -> str:
        x = _EDGE + (_WIDTH - 2 * _EDGE) * i / steps
        y = _EDGE + (_HEIGHT - 2 * _EDGE) * (1 - (value - low) / span)
        return f"{x:.1f},{y:.1f}"

    lines = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="2" '
        f'points="{" ".join(place(*point) for point in found)}"><title>{escape(name)}</title></polyline>'
        for colour, (name, found) in zip(_COLOURS, drawn.items())
    )
    keys = " ".join(
        f'<span style="color: {colour}">{escape(name)}</span>' for colour, name in zip(_COLOURS, drawn)
    )
    return f'<div><svg width="{_WIDTH}" height="{_HEIGHT}">{lines}</svg><div>{keys}</div></div>'
