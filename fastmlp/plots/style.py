"""One look for every picture: colours that the colour-blind tell apart, on white."""

from __future__ import annotations

import functools
import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

#: Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), without the yellow, which white swallows.
BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, AMBER)
DASHES = ("-", "--", "-.", ":")
INK, GREY = "#1f2328", "#6b7280"
#: matplotlib's own settings under which everything is drawn and written.
SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
    "legend.handlelength": 2.6,  # long enough for dashes
    "lines.scale_dashes": False,  # dashes of lines that lie upon each other fall together
    "lines.dashed_pattern": (6, 3),
    "lines.dashdot_pattern": (7, 2.5, 1.5, 2.5),
    "lines.dotted_pattern": (1.5, 2.5),
    "svg.hashsalt": "fastmlp",  # the same picture gives the same file
}
_DPI = 150
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Picture(Figure):
    """A figure that a notebook shows as its cell's result. It is none of pyplot's: it needs no display."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with matplotlib.rc_context(SETTINGS):
            self.savefig(buffer, format="png", dpi=_DPI)
        return buffer.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        return {"image/png": self._repr_png_()}, {"image/png": {"width": width, "height": height}}


def styled(draw: Callable[_P, _T]) -> Callable[_P, _T]:
    """``draw`` under `SETTINGS`, which are the caller's again after it."""

    @functools.wraps(draw)
    def drawn(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with matplotlib.rc_context(SETTINGS):
            return draw(*args, **kwargs)

    return drawn


def figure(width: float = 9.0, height: float = 3.6) -> Picture:
    """An empty picture, its size in inches."""
    return Picture(figsize=(width, height), dpi=_DPI, layout="constrained")


def around(figure: Figure, title: str = "", note: str = "") -> None:
    """A title above everything, and a note in small letters below, in lines as wide as the picture."""
    if title:
        figure.suptitle(title, fontsize=10)
    if note:
        lines = textwrap.wrap(note, round(20 * figure.get_figwidth()))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color=GREY)


def colour(index: int) -> str:
    """The colour of the line ``index``."""
    return COLOURS[index % len(COLOURS)]


def dashes(index: int) -> Any:
    """Its dashes: other ones where the colours begin anew."""
    return DASHES[index // len(COLOURS) % len(DASHES)]


def shades(count: int) -> Sequence[Any]:
    """``count`` colours in an order of their own, from light to dark, for what grows."""
    map_ = matplotlib.colormaps["viridis_r"]
    return [map_(0.15 + 0.85 * i / max(1, count - 1)) for i in range(count)]


def plain(axis: Any) -> None:
    """Ticks of a logarithmic axis in plain digits: even steps, 1-2-5 or powers, as its range asks for."""
    low, high = axis.axes.get_xlim() if axis.axis_name == "x" else axis.axes.get_ylim()
    if high < 5 * low:
        axis.set_major_locator(MaxNLocator(5))
    else:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 200 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
