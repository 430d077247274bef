"""``fastmlp info``."""

from __future__ import annotations

import platform
from importlib import metadata

import torch
import typer
from rich.table import Table

import fastmlp
from fastmlp import backends, plans
from fastmlp.cli.common import Dtype, console, fail, widths_of
from fastmlp.devices import DEVICES

EXAMPLE = "Example: fastmlp info --widths 32,64,64,64,4 --batch 65536 --dtype bfloat16 --on h100"


def info(
    widths: str = typer.Option("784,256,10", help="Of the net whose cost is shown: input and every layer."),
    batch: int = typer.Option(256, min=1, help="Rows."),
    dtype: Dtype = typer.Option(Dtype.float32, help="That everything is in."),
    on: str = typer.Option("", help="One of " + ", ".join(DEVICES) + "; default: the GPU here, else h200."),
    inference: bool = typer.Option(False, "--inference", help="The forward alone, without a backward."),
) -> None:
    """Versions, the device, which backend would run and why; and what a net costs by each plan."""
    sizes = widths_of(widths, "--widths")
    if len(sizes) < 2:
        fail(f"--widths {widths}: expected two at least, such as 784,256,10", 2)
    if on and on not in DEVICES:
        fail(f"--on {on}: expected one of {', '.join(DEVICES)}", 2)
    _print_versions()
    found = fastmlp.cost(
        sizes, batch, dtype=getattr(torch, dtype.value), device=on or None, training=not inference
    )
    head, *rows = found.rows()
    table = Table(*head, title=f"{plans.name(sizes)}: {found.title}", title_justify="left", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print()
    console.print(table)
    for note in found.notes():
        console.print(note)
    console.print(f"{found.device.name}: {found.device.source}", style="dim")


def _print_versions() -> None:
    table = Table(show_header=False, box=None)
    table.add_row("fastmlp", fastmlp.__version__)
    table.add_row("python", platform.python_version())
    for name in ("torch", "triton", "torchvision", "safetensors"):
        try:
            table.add_row(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            table.add_row(name, "not installed")
    table.add_row("FASTMLP_BACKEND", backends.requested())
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for device in devices:
        try:
            choice = backends.choose(torch.empty(1, device=device))
            chosen = f"{choice.backend.name if choice.backend else 'torch'}: {choice.reason}"
        except RuntimeError as error:
            chosen = f"cannot run: {error}"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        table.add_row(f"on {device} ({name})", chosen)
    console.print(table)
