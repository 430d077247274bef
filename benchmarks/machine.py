"""What a number was measured on: processor, device, versions, commit."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastmlp.costs.devices import processor

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("fastmlp", "torch", "triton", "numpy", "torchvision", "jax", "liger-kernel", "cut-cross-entropy")


def describe(device: str) -> dict[str, Any]:
    """The machine, as the report's JSON holds it."""
    facts: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(),
        "kind": "gpu" if device == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["memory_bytes"] = properties.total_memory
        facts["multiprocessors"] = properties.multi_processor_count
        facts["cuda"] = torch.version.cuda
        facts["tf32"] = torch.backends.cuda.matmul.fp32_precision
    return facts


def named(facts: dict[str, Any]) -> str:
    """The device, and how many cores a CPU has."""
    return facts["device"] + (f", {facts['cores']} cores" if facts["kind"] == "cpu" else "")


def folder(facts: dict[str, Any]) -> str:
    """Where in ``benchmarks/results`` reports of this kind of machine are kept: ``cpu-amd-epyc-2``."""
    cores = f"-{facts['cores']}" if facts["kind"] == "cpu" else ""
    plain = re.sub(r"\((?:r|tm)\)|\b(?:processor|cpu)\b", "", str(facts["device"]).lower())
    name = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    return f"{facts['kind']}-{name}{cores}"


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether numbers of both may stand in one report: machine, versions and commit are equal."""
    return all(one.get(fact) == other.get(fact) for fact in ("device", "threads", "versions", "commit"))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checked-out commit, with "+" where the tree differs from it in more than results.

    A copy of a checkout that git does not know is identified by `sources`. None for an installed wheel,
    whatever repository the environment is in.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    if not (_ROOT / "pyproject.toml").is_file():
        return None
    try:
        changed = git("status", "--porcelain", "-uall", "--", ".", ":!benchmarks/results").splitlines()
        # A new file that is no code, such as the report itself, changes nothing that is measured.
        changed = [line for line in changed if not line.startswith("??") or line.endswith(".py")]
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"unknown, sources {sources()}"


def sources() -> str:
    """A digest of the code that is measured and of what measures it."""
    digest = hashlib.sha256()
    for folder in ("fastmlp", "kernels", "benchmarks"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(_ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:10]
