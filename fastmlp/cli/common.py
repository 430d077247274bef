"""What the commands share: the consoles, an error in a line, options that several have."""

from __future__ import annotations

from enum import Enum
from typing import NoReturn

import torch
import typer
from rich.console import Console

from fastmlp.training import distributed

# No markup: a path or a message may hold brackets.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


class Dtype(str, Enum):
    """What the matrix products run in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def fail(message: str, code: int = 1) -> NoReturn:
    """One line on stderr, and out."""
    errors.print(f"error: {message}", style="red")
    raise typer.Exit(code)


def device_of(text: str) -> torch.device:
    """The device that --device names; by default the GPU if there is one."""
    try:
        device = torch.device(text or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        fail(f"--device {text}: expected cpu, cuda or cuda:1", 2)
    if device.type == "cuda" and distributed.size() > 1:
        if device.index is not None:
            fail(f"--device {text}: expected cpu or cuda, of which each process takes one of its own", 2)
        device = torch.device("cuda", distributed.local_rank())
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        fail(f"--device {text or device}: torch sees {torch.cuda.device_count() or 'no'} GPU here", 2)
    return device


def widths_of(text: str, option: str = "--hidden") -> list[int]:
    """Widths with commas between them."""
    try:
        widths = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        widths = [0]
    if any(width < 1 for width in widths):
        fail(f"{option} {text}: expected positive widths with commas between them, such as 512,256", 2)
    return widths
