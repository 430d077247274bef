"""``python -m benchmarks.readme``: README.md's benchmark section, from the stored reports."""

from __future__ import annotations

from pathlib import Path

import typer

from . import tables
from .store import load

_ROOT = Path(__file__).resolve().parent.parent
RESULTS = _ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main(results: Path = typer.Option(RESULTS, help="Holds a folder for each kind of machine.")) -> None:
    """Put the newest report of each kind of machine between the markers."""
    update(_ROOT / "README.md", section(results))


def section(results: Path) -> str:
    """A GPU's reports first, then a CPU's; links as README.md needs them."""
    folders = sorted(
        (path.parent for path in results.glob("*/report.json")), key=lambda f: f.name[:3] != "gpu"
    )
    parts = []
    for folder in folders:
        relative = f"benchmarks/results/{folder.name}"
        parts.append(tables.readme(load(folder), f"{relative}/headline.png", relative))
    return "\n".join(parts)


def update(path: Path, text: str) -> None:
    """Replace what stands between the markers."""
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


if __name__ == "__main__":
    typer.run(main)
