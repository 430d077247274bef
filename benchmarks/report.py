"""``python -m benchmarks.report --out DIR``: tests (on a GPU), every case by every peer, table, plots, JSON.

DIR then holds report.json, table.md, speedup.png/.svg and inference.png/.svg. With ``--readme`` the
table between README.md's markers is replaced by the new one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from benchmarks import plots
from benchmarks.cases import OURS, Plan, plans
from benchmarks.machine import describe
from benchmarks.timing import Timing, interleave

_ROOT = Path(__file__).resolve().parent.parent
_BEGIN, _END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main(
    out: Path = typer.Option(..., help="Where the report goes."),
    device: str = typer.Option("", help="cpu or cuda; by default the GPU if there is one."),
    match: str = typer.Option("", help="Only the cases that have this in their name."),
    rounds: int = typer.Option(31, help="Interleaved rounds of every peer."),
    tests: bool = typer.Option(True, help="Run the test suite first, on a GPU."),
    readme: bool = typer.Option(False, help="Put the table into README.md."),
) -> None:
    """Measure everything and write the report."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    console = Console(stderr=True)
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": describe(device), "rounds": rounds, "rows": []}
    if device == "cuda" and tests:
        report["tests"] = run_tests(out)
        console.print(f"tests: {report['tests']['summary']}")
    for plan in plans(device):
        if match in str(plan):
            report["rows"].append(measure(plan, device, rounds))
            console.print(_line(report["rows"][-1]), highlight=False)
            (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")  # so that none is lost
    table = markdown(report)
    (out / "table.md").write_text(table)
    plots.speedup(report, out)
    plots.inference(report, out)
    if readme:
        update_readme(_ROOT / "README.md", table)
    console.print(f"written to {out}")


def run_tests(out: Path) -> dict[str, Any]:
    """The whole suite, natively on the GPU; its log is kept beside the report."""
    log = out / "tests.log"
    with log.open("w") as stream:
        code = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "tests"],
            cwd=_ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
        ).returncode
    return {"exit_code": code, "summary": log.read_text().strip().splitlines()[-1]}


def measure(plan: Plan, device: str, rounds: int) -> dict[str, Any]:
    """One case by all its peers, interleaved; a peer that cannot run is named with its reason."""
    case = plan.on(device)
    runs, missing = {}, {}
    for name, run in case.runs.items():
        try:
            run()
        except Exception as error:
            if name == OURS:
                raise
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            runs[name] = run
    timings = interleave(runs, device, rounds)
    return {
        "group": plan.group,
        "label": plan.label,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "seconds": {name: asdict(timing) for name, timing in timings.items()},
        "missing": missing,
    }


def _line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {_time(Timing(**t))}" for name, t in row["seconds"].items())
    return f"{row['group']}, {row['label']}, {row['dtype']}: {times}"


def _time(timing: Timing) -> str:
    """The median with its quartiles, in the unit that suits it."""
    unit, scale = ("ms", 1e3) if timing.median >= 1e-3 else ("µs", 1e6)
    return f"{timing.median * scale:.3g} {unit} ({timing.low * scale:.3g}-{timing.high * scale:.3g})"


def markdown(report: dict[str, Any]) -> str:
    """The table, with the machine and the command that makes it again."""
    machine = report["machine"]
    versions = machine["versions"]
    peers = list(dict.fromkeys(name for row in report["rows"] for name in row["seconds"] if name != OURS))
    head = ["work", "size", "dtype", OURS, *peers, *(f"vs {peer}" for peer in peers)]
    lines = [
        f"{machine['device']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"torch {versions['torch']}, Triton {versions['triton']}, Python {machine['python']}; "
        f"commit {machine['commit']}, {machine['date']}. Medians (quartiles) of {report['rounds']} "
        "interleaved rounds; again with `python -m benchmarks.report --out DIR`.",
        "",
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---" for _ in head) + " |",
    ]
    for row in report["rows"]:
        timings = {name: Timing(**t) for name, t in row["seconds"].items()}
        cells = [row["group"], row["label"], row["dtype"], _time(timings[OURS])]
        cells += [_time(timings[p]) if p in timings else "missing" for p in peers]
        ratios = [timings[p].median / timings[OURS].median if p in timings else None for p in peers]
        cells += ["-" if ratio is None else f"{ratio:.2f}×" for ratio in ratios]
        lines.append("| " + " | ".join(cells) + " |")
    reasons = {f"{name}: {why}" for row in report["rows"] for name, why in row["missing"].items()}
    lines += ["", *(f"Missing: {reason}" for reason in sorted(reasons))] if reasons else []
    return "\n".join(lines) + "\n"


def update_readme(path: Path, table: str) -> None:
    """Replace what stands between the markers."""
    text = path.read_text()
    before, rest = text.split(_BEGIN)
    _, after = rest.split(_END)
    path.write_text(f"{before}{_BEGIN}\n{table}{_END}{after}")


if __name__ == "__main__":
    typer.run(main)
