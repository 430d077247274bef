"""``python -m benchmarks.readme``: README.md's benchmark section and docs/performance.md, from reports."""

from __future__ import annotations

from pathlib import Path

import typer

from . import performance, tables
from .store import load

_ROOT = Path(__file__).resolve().parent.parent
RESULTS = _ROOT / "benchmarks" / "results"
PAGE = _ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main(results: Path = typer.Option(RESULTS, help="Holds a folder for each kind of machine.")) -> None:
    """Put the newest report of each kind of machine between the markers, and all of it on the page."""
    update(_ROOT / "README.md", section(results))
    PAGE.write_text(performance.page(folders(results), "../benchmarks/results"))


def section(results: Path) -> str:
    """The reports in short; links as README.md needs them."""
    parts = []
    for folder in folders(results):
        relative = f"benchmarks/results/{folder.name}"
        parts.append(tables.readme(load(folder), f"{relative}/headline.png", relative))
    return "\n".join(parts)


def folders(results: Path) -> list[Path]:
    """Those with a report: a GPU's first, then a CPU's."""
    found = (path.parent for path in results.glob("*/report.json"))
    return sorted(found, key=lambda folder: (folder.name[:3] != "gpu", folder.name))


def update(path: Path, text: str) -> None:
    """Replace what stands between the markers."""
    before, rest = path.read_text().split(BEGIN)
    _, after = rest.split(END)
    path.write_text(f"{before}{BEGIN}\n{text}{END}{after}")


if __name__ == "__main__":
    typer.run(main)
