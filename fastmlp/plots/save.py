"""A figure as a file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from fastmlp import files
from fastmlp.plots.style import SETTINGS

#: What a file's suffix may be.
KINDS = ("png", "svg", "pdf")


def save(figure: Figure, path: Path | str, *, dpi: int = 150) -> Path:
    """Write ``figure`` to ``path``, whole or not at all; missing directories are made.

    The same figure gives the same bytes: no date is in them.

    Args:
        figure: any of matplotlib's.
        path: ends in .png, .svg or .pdf, which says what it becomes.
        dpi: pixels an inch of a PNG.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written. What was at ``path`` is then still there.
    """
    path = Path(path)
    kind = kind_of(path)
    dates: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=dates.get(kind))
    files.write(path, [buffer.getbuffer()])
    return path


def kind_of(path: Path) -> str:
    """What ``path``'s suffix asks for.

    Raises:
        ValueError: none of `KINDS`.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise ValueError(f"path: expected a name that ends in .{', .'.join(KINDS)}, got {path}")
    return kind
