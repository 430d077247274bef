"""What the machine is, and what it reaches: no later number means anything without it."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import torch

from ..measure import Row, new_row
from .headlines import measured_ceilings
from .worker import Bench

_QUERY = (
    "name", "driver_version", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu",
    "power.draw", "power.limit", "memory.total", "memory.used", "compute_mode", "mig.mode.current",
)  # fmt: skip
_PROPERTIES = (
    "name", "major", "minor", "multi_processor_count", "total_memory", "L2_cache_size", "warp_size",
    "shared_memory_per_block_optin", "shared_memory_per_multiprocessor", "regs_per_multiprocessor",
    "max_threads_per_multi_processor",
)  # fmt: skip


def run(bench: Bench) -> None:
    """The stage."""
    bench.row("the device", lambda: new_row("facts", facts=device(bench.device)))
    bench.row("ceilings", lambda: _ceilings(bench))


def _ceilings(bench: Bench) -> Row:
    measured_ceilings(bench)
    return new_row("facts")


def device(kind: str) -> dict[str, Any]:
    """Its properties from torch, and its state from ``nvidia-smi``, if it has any."""
    if kind != "cuda":
        return {"nvidia_smi": _asked(_QUERY, "0")}
    properties = torch.cuda.get_device_properties(0)
    identity = f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else "0"
    found = {name: getattr(properties, name) for name in _PROPERTIES if hasattr(properties, name)}
    return found | {"free_memory": torch.cuda.mem_get_info()[0], "nvidia_smi": _asked(_QUERY, identity)}


def _asked(names: tuple[str, ...], identity: str) -> dict[str, str] | str:
    """What ``nvidia-smi`` says, or why it says nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "there is no nvidia-smi"
    command = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader", f"--id={identity}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(names, values)) if len(values) == len(names) else (done.stderr or done.stdout).strip()
