"""``fastmlp info``."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import typer
from rich.table import Table

import fastmlp
from fastmlp import backends
from fastmlp.benchmarks import machine
from fastmlp.cli.common import JSON_HELP, Dtype, emit, fail, names_of, one_of, start, widths_of
from fastmlp.costs import plans
from fastmlp.costs.devices import DEVICES

EXAMPLE = "Example: fastmlp info --hidden 64,64,64 --batch-size 65536 --dtype bfloat16 --device h100"

#: What measures all of it, in a clone.
MEASURE = "python -m benchmarks.gpu --out DIR"
_NET = "The net whose cost is shown"
_DTYPES = names_of(Dtype)


def _completed(incomplete: str) -> list[str]:
    return [name for name in DEVICES if name.startswith(incomplete)]


#: What of /proc/cpuinfo matters to matrix products.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")


def info(
    hidden: str = typer.Option(
        "256", metavar="WIDTHS", help="Of the hidden layers; empty for none.", rich_help_panel=_NET
    ),
    inputs: int = typer.Option(784, metavar="N", min=1, help="Of the first layer.", rich_help_panel=_NET),
    outputs: int = typer.Option(10, metavar="N", min=1, help="Of the last layer.", rich_help_panel=_NET),
    widths: str = typer.Option("", hidden=True, help="The whole net's: inputs, hidden, outputs."),
    batch_size: int = typer.Option(256, metavar="N", min=1, help="Rows of a batch.", rich_help_panel=_NET),
    dtype: Dtype = typer.Option(
        Dtype.float32, metavar="NAME", help=f"Of parameters and data: {_DTYPES}.", rich_help_panel=_NET
    ),
    device: str = typer.Option(
        "",
        metavar="NAME",
        help="One of " + ", ".join(DEVICES) + "; default: the GPU here, else h200.",
        autocompletion=_completed,
        rich_help_panel=_NET,
    ),
    inference: bool = typer.Option(
        False, "--inference", help="The forward alone, without a backward.", rich_help_panel=_NET
    ),
    as_json: bool = typer.Option(False, "--json", help=JSON_HELP),
) -> None:
    """Versions, devices, which backend would run and why; and what a net costs by each plan."""
    console = start(as_json)
    sizes = widths_of(widths, "--widths") if widths else [inputs, *widths_of(hidden), outputs]
    if len(sizes) < 2:
        fail(f"--widths {widths}: expected two at least, such as 784,256,10", 2)
    if device:
        one_of(tuple(DEVICES), device, "--device")
    cost = fastmlp.cost(
        sizes, batch_size, dtype=getattr(torch, dtype.value), device=device or None, training=not inference
    )
    versions, devices = _versions(), _devices()
    table = Table(show_header=False, box=None)
    for name, text in versions.items():
        table.add_row(name, text)
    for about in devices:
        table.add_row(f"on {about['device']}", _line(about))
        table.add_row("", f"{about['backend']}: {about['reason']}")
        if "measure" in about:
            table.add_row("", f"no report of it is stored: {about['measure']} makes one, docs/benchmarks.md")
    console.print(table)
    console.print()
    console.print(_table(sizes, cost))
    for note in cost.notes():
        console.print(note)
    console.print(f"{cost.device.name}: {cost.device.source}", style="dim")
    if as_json:
        emit({"versions": versions, "devices": devices, "cost": _cost(sizes, cost)})


def _versions() -> dict[str, str]:
    """Of what runs here, and what is the matter with it."""
    found = {
        "fastmlp": fastmlp.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with what it was built for
    }
    for name in ("triton", "torchvision", "scikit-learn", "tensorboard"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    problem = backends.triton_missing()
    if problem is None:
        from fastmlp.kernels import launch

        slow = launch.fast_problem()
        found["launches"] = f"by Triton's own run: {slow}" if slow else "direct, each decided once"
    else:
        found["triton"] += (
            f": {problem}, so GPUs run torch's own ops; PyTorch's CUDA build brings a Triton that fits"
        )
    if found["torchvision"] != "not installed":
        try:
            import torchvision  # noqa: F401
        except Exception as error:  # beside a CPU-only torch it fails in ways of its own
            found["torchvision"] += (
                f": cannot be imported ({str(error).splitlines()[0]}); "
                "pip install torch torchvision, both from the same index"
            )
    found["FASTMLP_BACKEND"] = backends.requested()
    return found


def _devices() -> list[dict[str, Any]]:
    """The CPU and every GPU, and what would run on each."""
    processor, sets = _processor()
    found: list[dict[str, Any]] = [
        {"device": "cpu", "name": processor, "threads": torch.get_num_threads(), "instructions": sets}
    ]
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        capability = f"{facts.major}.{facts.minor}"
        found.append(
            {
                "device": f"cuda:{i}",
                "name": facts.name,
                "capability": capability,
                "memory": facts.total_memory,
                **({"measure": MEASURE} if _unmeasured(facts.name) else {}),
            }
        )
    for about in found:
        try:
            choice = backends.choose(torch.empty(1, device=about["device"]))
            about |= {"backend": choice.backend.name if choice.backend else "torch", "reason": choice.reason}
        except RuntimeError as error:  # Triton is asked for and cannot run
            about |= {"backend": "none", "reason": f"cannot run: {error}"}
    return found


def _unmeasured(gpu: str) -> bool:
    """Whether this is a clone, where reports are stored, and has none of that GPU."""
    results = Path(machine.__file__).with_name("results")
    report = results / machine.folder({"kind": "gpu", "device": gpu}) / "report.json"
    return results.is_dir() and not report.is_file()


def _line(about: dict[str, Any]) -> str:
    if about["device"] == "cpu":
        threads = f"{about['threads']} thread{'s' * (about['threads'] != 1)}"
        return f"{about['name']}, {threads}, {' '.join(about['instructions'])}"
    return f"{about['name']}, compute capability {about['capability']}, {about['memory'] / 2**30:.1f} GiB"


def _processor() -> tuple[str, list[str]]:
    """The CPU's name, and of its instruction sets those that matter here."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    flags = {*facts.get("flags", "").split()}
    known = [name for name in _FLAGS if name in flags] or [torch.backends.cpu.get_cpu_capability().lower()]
    return facts.get("model name") or platform.processor() or platform.machine(), known


def _table(sizes: list[int], cost: fastmlp.Cost) -> Table:
    head, *rows = cost.rows()
    table = Table(*head, title=f"{plans.name(sizes)}: {cost.title}", title_justify="left", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def _cost(sizes: list[int], cost: fastmlp.Cost) -> dict[str, Any]:
    """The table's numbers."""
    return {
        "widths": sizes,
        "batch": cost.batch,
        "dtype": str(cost.dtype).removeprefix("torch."),
        "device": cost.device.name,
        "training": cost.training,
        "plans": {
            name: {
                "launches": plan.work.launches,
                "operations": plan.work.operations,
                "bytes": plan.work.bytes,
                "floor_seconds": cost.seconds(name),
            }
            for name, plan in cost.plans.items()
        },
        "notes": cost.notes(),
    }
