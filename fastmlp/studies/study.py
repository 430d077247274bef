"""What a study gives: a question, numbers, and a plot of them."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from fastmlp.costs.devices import processor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Study:
    """The results of one study as plain data.

    A row's value is a number, a text, None, a list of numbers, one a seed (None where that run diverged), or
    a list of lists: curves, which the table leaves out.
    """

    name: str
    question: str
    rows: list[dict[str, Any]] = field(repr=False)
    setup: dict[str, Any]  # what all rows have in common: data, epochs, machine, versions
    draw: Callable[[Study], Figure] = field(repr=False, compare=False)

    def table(self) -> str:
        """The rows as Markdown, aligned for a terminal too; of several seeds the mean (least to most)."""
        columns = [key for key in self.rows[0] if not any(_is_curve(row[key]) for row in self.rows)]
        cells = [columns, *([cell(row[key]) for key in columns] for row in self.rows)]
        sizes = [max(map(len, column)) for column in zip(*cells)]
        head, *body = ["| " + " | ".join(c.ljust(n) for c, n in zip(line, sizes)) + " |" for line in cells]
        return "\n".join([head, "|" + "|".join("-" * (size + 2) for size in sizes) + "|", *body])

    def plot(self) -> Figure:
        """The picture of the rows.

        Raises:
            ImportError: matplotlib is missing.
        """
        return self.draw(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the picture."""
        return {"name": self.name, "question": self.question, "setup": self.setup, "rows": self.rows}

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def caption(self) -> str:
        """The setup in a line."""
        return "; ".join(f"{key}: {value}" for key, value in self.setup.items())

    def _repr_markdown_(self) -> str:
        return f"**{self.question}**\n\n{self.table()}\n\n{self.caption()}"


def cell(value: Any) -> str:
    """A row's value as text."""
    if isinstance(value, list):
        known = [v for v in value if v is not None]
        lost = len(value) - len(known)
        if not known:
            return "diverged"
        text = cell(statistics.mean(known))
        if min(known) < max(known):
            text += f" ({cell(min(known))}-{cell(max(known))})"
        return text + (f", {lost} diverged" if lost else "")
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def machine(device: torch.device) -> str:
    """What the numbers were made on: ``AMD EPYC, 2 cores, torch 2.14.1``."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        where = f"{processor()}, {threads} of {os.cpu_count()} cores"
    return f"{where}, torch {torch.__version__}"


@contextmanager
def one_thread() -> Iterator[None]:
    """For nets so small that threads wait for each other longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check_some(**given: Sized) -> None:
    """See that there is something to try.

    Raises:
        ValueError: one of them is empty.
    """
    for name, found in given.items():
        if not len(found):
            raise ValueError(f"{name}: expected at least one")


def place(device: torch.device | str | None) -> torch.device:
    """The device asked for, by default the GPU if there is one."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)
