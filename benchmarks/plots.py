"""The report's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.cases import EAGER, OURS, PEERS

_COLOURS = {OURS: "#1b7f5c", EAGER: "#8a8f98", "torch.compile": "#d98032"}


def _save(figure: Figure, out: Path, name: str) -> None:
    for kind in ("png", "svg"):
        figure.savefig(out / f"{name}.{kind}", dpi=150, bbox_inches="tight")
    plt.close(figure)


def _where(report: dict[str, Any]) -> str:
    machine = report["machine"]
    return f"{machine['device']}, {machine['threads']} threads, torch {machine['versions']['torch']}"


def speedup(report: dict[str, Any], out: Path) -> None:
    """Speed relative to eager PyTorch, a bar for each peer, with the quartiles as whiskers."""
    rows = [row for row in report["rows"] if EAGER in row["seconds"]]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(9, 0.55 * len(rows) + 1.2), layout="constrained")
    for i, row in enumerate(rows):
        seconds = row["seconds"]
        others = [peer for peer in PEERS if peer != EAGER and peer in seconds]
        for j, peer in enumerate(others):
            ratio = seconds[EAGER]["median"] / seconds[peer]["median"]
            low = seconds[EAGER]["median"] / seconds[peer]["high"]
            high = seconds[EAGER]["median"] / seconds[peer]["low"]
            y = i + 0.36 * (j - (len(others) - 1) / 2)
            axis.barh(y, ratio, height=0.34, color=_COLOURS[peer], label=peer if i == 0 else None)
            axis.plot([low, high], [y, y], color="black", linewidth=0.8)
            axis.text(high, y, f" {ratio:.2f}×", va="center", fontsize=7)
    axis.axvline(1, color=_COLOURS[EAGER], linewidth=1.2, label="eager")
    axis.set_yticks(range(len(rows)), [f"{r['group']}\n{r['label']}, {r['dtype']}" for r in rows], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.margins(x=0.12)
    axis.set_xlabel("speed relative to eager PyTorch (higher is better)")
    axis.set_title(_where(report), fontsize=9)
    axis.legend(fontsize=8, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, out, "speedup")


def inference(report: dict[str, Any], out: Path) -> None:
    """Latency over the batch size, both logarithmic, one line for each peer and dtype."""
    rows = [row for row in report["rows"] if row["group"] == "inference"]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for dtype, style in (("float32", "-"), ("bfloat16", "--")):
        for peer in PEERS:
            points = [
                (int(row["label"].rsplit(" ", 1)[1]), row["seconds"][peer]["median"] * 1e6)
                for row in rows
                if row["dtype"] == dtype and peer in row["seconds"]
            ]
            if points:
                axis.plot(*zip(*points), style, marker="o", color=_COLOURS[peer], label=f"{peer}, {dtype}")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("batch size")
    axis.set_ylabel("latency, µs (lower is better)")
    axis.set_title(f"Inference, {rows[0]['label'].split(',')[0]}\n{_where(report)}", fontsize=9)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3, which="both")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, out, "inference")
