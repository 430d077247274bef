"""What a study gives: a question, numbers, and a plot of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Study:
    """The results of one study as plain data.

    A row's value is a number, a text, None, or a list of numbers with one a seed (None where that run
    diverged); curves are lists of lists.
    """

    name: str
    question: str
    rows: list[dict[str, Any]]
    setup: dict[str, Any]  # what all rows have in common: data, epochs, machine, versions
    draw: Callable[[Study], Figure] = field(repr=False, compare=False)

    def table(self) -> str:
        """The rows in Markdown, aligned for a terminal; of several seeds the mean, with the least and the most."""
        raise NotImplementedError

    def plot(self) -> Figure:
        """The picture of the rows.

        Raises:
            ImportError: matplotlib is missing.
        """
        return self.draw(self)

    def to_json(self) -> str:
        """Everything but the picture."""
        content = {"name": self.name, "question": self.question, "setup": self.setup, "rows": self.rows}
        return json.dumps(content, indent=1, allow_nan=False)

    def _repr_markdown_(self) -> str:
        return f"{self.question}\n\n{self.table()}"
