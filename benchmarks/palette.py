"""A colour and a marker for each peer, the same in every picture and on the page."""

from __future__ import annotations

from . import peers
from .peers import EAGER, OURS, place

#: Ours in greens, eager in greys, the compilers in warm colours, JAX blue, the packages violet.
COLOURS = {
    OURS: "#12805c",
    peers.OURS_MODULES: "#7fbf7b",
    peers.OURS_COMPILED: "#a3b84a",
    peers.OURS_ENGINES["fused"]: "#5aa02c",
    peers.OURS_GRAPH: "#2ca089",
    peers.OURS_ENGINES["persistent"]: "#0b4f3a",
    peers.OURS_PLANS["layers"]: "#9fd8b4",
    peers.OURS_PLANS["whole"]: "#0f6b6b",
    peers.OURS_PLANS["recompute"]: "#57c4c4",
    EAGER: "#6b7280",
    peers.EAGER_FLOAT32: "#b0b5bd",
    peers.GRAPH: "#374151",
    peers.COMPILED: "#e08a2e",
    peers.REDUCED: "#c2571a",
    peers.AUTOTUNED: "#8c2d04",
    peers.JAX: "#2f6fd0",
    peers.TORCH_LINEAR: "#b5838d",
    peers.TORCH_CHUNKS: "#6d597a",
    peers.LIGER: "#8e5bd0",
    peers.CUT: "#c77dd8",
    peers.TCNN: "#d6336c",
    peers.BOOK: "#9a9034",
    peers.BOOK_WORKERS: "#c9bf57",
}
OTHER = "#444444"  # of a peer that only the report knows
#: The same marker by matplotlib's name and by plotly's.
_MARKERS = (
    ("o", "circle"),
    ("s", "square"),
    ("D", "diamond"),
    ("^", "triangle-up"),
    ("v", "triangle-down"),
    ("<", "triangle-left"),
    (">", "triangle-right"),
    ("P", "cross"),
    ("X", "x"),
    ("p", "pentagon"),
    ("h", "hexagon"),
    ("d", "diamond-tall"),
)


def marker(peer: str) -> str:
    """By matplotlib's name."""
    return _MARKERS[place(peer) % len(_MARKERS)][0]


def symbol(peer: str) -> str:
    """By plotly's name."""
    return _MARKERS[place(peer) % len(_MARKERS)][1]


def on_dark(colour: str) -> str:
    """The colour for a dark page: a good third of the way to white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + 0.38 * (255 - part)):02x}" for part in parts)
