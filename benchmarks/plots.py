"""The report's pictures, each as PNG and SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from fastmlp.plots.style import SETTINGS, plain

from . import accuracy, cases, epochs, formats, machine
from .measure import Row
from .palette import COLOURS, marker
from .peers import COMPILED, EAGER, JAX, OURS, PEERS, place
from .sweeps import SWEEPS, Sweep
from .targets import ratio

_TICKS = 6  # that fit side by side on an axis


def draw(report: dict[str, Any], out: Path) -> None:
    """Every picture that the report has rows for."""
    with plt.rc_context(SETTINGS):
        headline(report, out)
        speedup(report, out)
        for sweep in SWEEPS:
            line(report, sweep, out)
        time_to_accuracy(report, out)


def headline(report: dict[str, Any], out: Path) -> None:
    """The README's picture: the key cases of the book's nets in float32, whatever came out of them."""
    rows = [
        row
        for group in (epochs.EPOCH, cases.STEP, cases.INFERENCE, cases.CROSS_ENTROPY)
        for row in _compared(report)
        if row["group"] == group and row["dtype"] == "float32"
    ]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(8, 0.36 * len(rows) + 1.5), layout="constrained")
    _bars(axis, rows, [peer for peer in (COMPILED, JAX) if any(peer in row["seconds"] for row in rows)])
    axis.set_yticks(range(len(rows)), [f"{_short(row['group'])}, {_size(row['label'])}" for row in rows])
    axis.set_xlabel("times as fast as eager PyTorch (log scale); higher is better")
    _legend(figure, axis, "fastmlp beside eager PyTorch, float32", columns=4)
    _save(figure, out, "headline", f"{_where(report)}. Medians; the whiskers are fastmlp's quartiles.", 8.5)


def speedup(report: dict[str, Any], out: Path) -> None:
    """How many times faster than eager ours is in every key case: a bar per row; the others are markers."""
    rows = _compared(report)
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(9, 0.3 * len(rows) + 2.0), layout="constrained")
    others = [
        peer for peer in PEERS if peer not in (OURS, EAGER) and any(peer in row["seconds"] for row in rows)
    ]
    _bars(axis, rows, others)
    names = [
        f"{_short(row['group'])}, {_size(row['label'])}, {formats.precision(row['dtype'])}" for row in rows
    ]
    axis.set_yticks(range(len(rows)), names)
    axis.set_xlabel("speed relative to eager PyTorch (the line at 1, log scale); higher is better")
    _legend(figure, axis, _where(report))
    _save(figure, out, "speedup", _caption(rows))


def _compared(report: dict[str, Any]) -> list[Row]:
    """The key rows with a time of ours and of eager."""
    return [
        row
        for row in report["rows"]
        if row.get("important") and {OURS, EAGER} <= row.get("seconds", {}).keys()
    ]


def _bars(axis: Axes, rows: Sequence[Row], others: Sequence[str]) -> None:
    """Bars from eager's line at 1, to the right if ours is faster: no other start is fair on a log scale."""
    reach = [0.8, 1.25]
    for y, row in enumerate(rows):
        seconds = row["seconds"]
        base, ours = seconds[EAGER]["median"], seconds[OURS]
        bar, low, high = base / ours["median"], base / ours["high"], base / ours["low"]
        axis.barh(y, bar - 1, left=1, height=0.6, color=COLOURS[OURS], label=None if y else OURS)
        axis.errorbar(bar, y, xerr=[[bar - low], [high - bar]], color="black", linewidth=0.9, capsize=2)
        for peer in (peer for peer in others if peer in seconds):
            speed = base / seconds[peer]["median"]
            axis.plot(speed, y, marker(peer), color=COLOURS[peer], ms=6.5, mec="white", mew=0.6)
            reach.append(speed)
        at: Any = {"xycoords": axis.get_yaxis_transform(), "ha": "right", "va": "center", "weight": "bold"}
        axis.annotate(f"{bar:.2f}×", (1.0, y), **at)
        reach += [low, high]
    axis.axvline(1, color=COLOURS[EAGER], linewidth=1.4, label=EAGER)
    for peer in others:
        axis.plot([], [], marker(peer), color=COLOURS[peer], label=peer)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xscale("log")
    axis.set_xlim(min(reach) / 1.1, max(reach) * 1.7)
    plain(axis.xaxis, "{:g}×")
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)


def line(report: dict[str, Any], sweep: Sweep, out: Path) -> None:
    """Time, the ratio to each peer, and peak memory over what is swept, all logarithmic."""
    rows = [row for row in report["rows"] if row.get("sweep") == sweep.name and row.get("seconds")]
    if not rows:
        return
    held = any(row.get("memory") for row in rows)
    figure, axes = plt.subplots(1, 3 if held else 2, figsize=(13 if held else 9, 4.4), layout="constrained")
    times, ratios = axes[0], axes[1]
    seen = [peer for peer in PEERS if any(peer in row["seconds"] for row in rows)]
    for peer in seen:
        here = [row for row in rows if peer in row["seconds"]]
        x = [row["x"] for row in here]
        _line(times, [(row["x"], row["seconds"][peer]["median"] * 1e3) for row in here], peer)
        low, high = ([row["seconds"][peer][end] * 1e3 for row in here] for end in ("low", "high"))
        times.fill_between(x, low, high, color=COLOURS[peer], alpha=0.15, linewidth=0)
        pairs = [(row["x"], r) for row in here if peer != OURS and (r := ratio(row, peer))]
        if pairs:
            _line(ratios, pairs, peer)
    times.plot(
        [row["x"] for row in rows], [row["floor"] * 1e3 for row in rows], ":", color="black", label="floor"
    )
    ratios.axhline(1, color=COLOURS[OURS], linewidth=1.4)
    times.set_title("time, ms (lower is better)", fontsize=9)
    ratios.set_title("peer's time / fastmlp's (above 1: fastmlp is faster)", fontsize=9)
    if held:
        for peer in (OURS, EAGER):
            points = [
                (row["x"], row["memory"][peer] / 2**20) for row in rows if row.get("memory", {}).get(peer)
            ]
            if points:
                _line(axes[2], points, peer)
        axes[2].set_title("peak memory on top of the inputs, MiB", fontsize=9)
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel(sweep.axis)
        axis.grid(alpha=0.25, which="major")
        axis.set_xticks([row["x"] for row in rows], [formats.count(row["x"]) for row in rows])
        axis.xaxis.set_minor_locator(NullLocator())
        if len(rows) > _TICKS:
            axis.tick_params(axis="x", rotation=45)
        plain(axis.yaxis)
    title = f"{sweep.title}, {formats.precision(rows[0]['dtype'])}. {_where(report)}"
    _legend(figure, times, title, columns=8)
    stop = report["stops"].get(sweep.name)
    _save(figure, out, f"sweep-{sweep.name}", _caption(rows) + (f"\nStopped before {stop}." if stop else ""))


def time_to_accuracy(report: dict[str, Any], out: Path) -> None:
    """Test accuracy over seconds of training: the mean of the seeds, and their spread."""
    rows = [row for row in report["rows"] if row.get("runs")]
    if not rows:
        return
    figure, axis = plt.subplots(figsize=(9, 4.6), layout="constrained")
    styles = {row["label"]: style for row, style in zip(rows, ("-", "--", ":"))}
    for curve in accuracy.curves(rows):
        seconds, peer, dtype = curve["seconds"], curve["peer"], curve["dtype"]
        mean, low, high = ([100 * share for share in curve[name]] for name in ("accuracy", "low", "high"))
        axis.plot(
            seconds, mean, styles[curve["recipe"]], marker="o", ms=4, color=COLOURS[peer],
            alpha=0.5 if dtype == "bfloat16" else 1.0, label=f"{curve['recipe']}: {peer}, {dtype}",
        )  # fmt: skip
        if dtype == "float32":  # the others' bands would cover this one
            axis.fill_between(seconds, low, high, color=COLOURS[peer], alpha=0.1, linewidth=0)
    axis.axhline(100 * accuracy.TARGET, color="black", linewidth=0.8)
    axis.set_xscale("log")
    plain(axis.xaxis)
    axis.set_xlabel("seconds of training (tests not counted)")
    axis.set_ylabel("test accuracy, %")
    axis.grid(alpha=0.25)
    _legend(figure, axis, f"784-256-10 on Fashion-MNIST. {_where(report)}", columns=2)
    described = "\n".join(f"{row['label']}: {row['description']}" for row in rows)
    _save(figure, out, "accuracy", described)


def _line(axis: Axes, points: Sequence[tuple[float, float]], peer: str) -> None:
    x, y = zip(*points)
    wide = 2.2 if peer == OURS else 1.3
    axis.plot(x, y, marker=marker(peer), ms=4, linewidth=wide, color=COLOURS[peer], label=peer)


def _legend(figure: Figure, axis: Axes, title: str, columns: int = 5) -> None:
    """Above the axes, under the picture's title."""
    found = sorted(zip(*axis.get_legend_handles_labels()), key=lambda pair: place(pair[1]))
    handles, labels = zip(*found)
    figure.legend(
        handles,
        labels,
        title=title,
        title_fontsize=10,
        loc="outside upper center",
        ncols=min(columns, len(labels)),
        frameon=False,
        fontsize=8.5,
    )


def _save(figure: Figure, out: Path, name: str, caption: str, size: float = 7) -> None:
    if caption.strip():
        wide = round(17 * 7 / size * figure.get_figwidth())
        lines = [part for text in caption.strip().splitlines() for part in textwrap.wrap(text, wide)]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=size, color="#555555")
    for kind in ("png", "svg"):
        # No date, so that the same report gives the same file.
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(out / f"{name}.{kind}", dpi=150, bbox_inches="tight", metadata=metadata)
    plt.close(figure)


def _caption(rows: Iterable[Row]) -> str:
    """Which peers are missing, grouped by reason."""
    whys: dict[str, list[str]] = {}
    for row in rows:
        for peer, why in row.get("missing", {}).items():
            if peer not in whys.setdefault(why, []):
                whys[why].append(peer)
    text = "; ".join(f"{', '.join(names)} ({why})" for why, names in whys.items())
    return f"Missing: {text}." if text else ""


def _where(report: dict[str, Any]) -> str:
    facts = report["machine"]
    return f"{machine.named(facts)}, torch {facts['versions']['torch']}"


def _short(group: str) -> str:
    return group.removesuffix(" (SGD)").replace(" forward + backward", "").replace(", data on the device", "")


def _size(label: str) -> str:
    """Without what goes without saying in the headline."""
    return label.removesuffix(", batch 256, 60000 images")
