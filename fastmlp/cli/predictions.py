"""Predictions as rows of plain data, as a table and as CSV."""

from __future__ import annotations

import csv
import io
from typing import Any, NamedTuple

from rich.table import Table
from torch import Tensor


class Examples(NamedTuple):
    """What is to be predicted."""

    names: list[Any]  # an index or a file
    x: Tensor  # (N, features)
    truth: Tensor | None  # labels (N,) or targets (N, out)


def classified(examples: Examples, outputs: Tensor, classes: list[str], top: int) -> list[dict[str, Any]]:
    """A row for each example: its name, label where it is known, and the ``top`` most likely classes."""
    shares, order = outputs.softmax(1).sort(1, descending=True)
    rows: list[dict[str, Any]] = []
    for i, (name, share, by) in enumerate(zip(examples.names, shares.tolist(), order.tolist())):
        row: dict[str, Any] = {"example": name}
        if examples.truth is not None:
            label = int(examples.truth[i])
            row |= {"label": classes[label], "right": label == by[0]}
        likely = [{"class": classes[c], "probability": p} for c, p in zip(by[:top], share)]
        rows.append({**row, "predicted": classes[by[0]], "probability": share[0], "top": likely})
    return rows


def regressed(examples: Examples, outputs: Tensor) -> list[dict[str, Any]]:
    """A row for each example: its name, target where it is known, and the prediction."""
    rows: list[dict[str, Any]] = []
    for i, (name, values) in enumerate(zip(examples.names, outputs.tolist())):
        target = {} if examples.truth is None else {"target": examples.truth[i].tolist()}
        rows.append({"example": name, **target, "predicted": values})
    return rows


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """A row flat: a column for each number."""
    cells: dict[str, Any] = {}
    for name, value in row.items():
        if name == "top":
            for place, entry in enumerate(value, 1):
                cells |= {f"class {place}": entry["class"], f"probability {place}": entry["probability"]}
        elif isinstance(value, list):
            names = [name] if len(value) == 1 else [f"{name} {place}" for place in range(len(value))]
            cells |= dict(zip(names, value))
        else:
            cells[name] = value
    return cells


def csv_of(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV, with a header."""
    flat = [_cells(row) for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, [*flat[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Rows for a terminal, the wrong ones in red."""
    table = Table(box=None)
    shown = []
    for row in rows:
        cells = {name: value for name, value in row.items() if name not in ("top", "right")}
        if "top" in row:
            others = [f"{entry['class']} {entry['probability']:.1%}" for entry in row["top"][1:]]
            cells = {**cells, "then": ", ".join(others)}
        shown.append(_cells(cells))
    for name in shown[0]:
        table.add_column(
            name, justify="left" if name in ("example", "label", "predicted", "then") else "right"
        )
    for row, cells in zip(rows, shown):
        wrong = row.get("right") is False
        texts = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in cells.values()]
        table.add_row(*texts, style="red" if wrong else None)
    return table
