"""docs/performance.md, from the stored reports: what matters first, then everything, with its pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from . import accuracy, tables
from .store import load
from .sweeps import SWEEPS

_HEAD = """<!-- Made by `python -m benchmarks.readme`. -->
# Performance

How fast, beside whom, and what is slower. Every number was measured on the machine that its section names,
in turns with its peers; {missing}the command is
`python -m benchmarks.report --out DIR`. The *floor* is the least time that the work could take on that
machine by its own measured ceilings.
"""
_NO_GPU = "**no GPU has run this project yet, so there is no GPU time here**; "


def page(folders: list[Path], up: str) -> str:
    """The page.

    Args:
        folders: each with a report.json and its pictures.
        up: from the page to the folder that holds them.
    """
    reports = [(folder, load(folder)) for folder in folders]
    on_gpu = any(report["machine"]["kind"] == "gpu" for _, report in reports)
    sections = [_section(report, folder, f"{up}/{folder.name}") for folder, report in reports]
    return "\n".join([_HEAD.format(missing="" if on_gpu else _NO_GPU), *sections])


def _section(report: dict[str, Any], folder: Path, link: str) -> str:
    machine = report["machine"]
    cores = f", {machine['cores']} cores" if machine["kind"] == "cpu" else ""
    short = tables.short(report, f"{link}/speedup.svg")
    whole = _with_pictures(_demoted(tables.full(report)), folder, link)
    return f"## {machine['device']}{cores}\n\n{short}\n{whole}"


def _demoted(text: str) -> str:
    """A report's sections under the machine's heading; what it was measured on stands there already."""
    return re.sub(r"^##", "###", text.split("\n\n", 1)[1], flags=re.MULTILINE)


def _with_pictures(text: str, folder: Path, link: str) -> str:
    """Each picture that there is, under its heading."""
    names = {sweep.title: f"sweep-{sweep.name}" for sweep in SWEEPS}
    names[f"{accuracy.GROUP[0].upper()}{accuracy.GROUP[1:]} on Fashion-MNIST"] = "accuracy"
    for title, name in names.items():
        if (folder / f"{name}.svg").exists():
            heading = rf"^(#+ {re.escape(title)}(?:, \w+)?)$"
            text = re.sub(heading, rf"\1\n\n![{title}]({link}/{name}.svg)", text, flags=re.MULTILINE)
    return text
