"""``fastmlp info``."""

from __future__ import annotations

import platform
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from typer import Option

from fastmlp.cli.common import count_of, emit, fail, one_of, start, table_of, widths_of
from fastmlp.cli.options import DEVICES, AsJson, Dtype, names_of, starting_with

if TYPE_CHECKING:
    import fastmlp

EXAMPLE = "Example: fastmlp info --hidden 64,64,64 --batch-size 65536 --dtype bfloat16 --device h100"

#: What measures all of it, in a clone.
MEASURE = "python -m benchmarks.gpu --out DIR"
_net = partial(Option, rich_help_panel="The net whose cost is shown")
#: What of /proc/cpuinfo matters to matrix products.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")


def info(
    hidden: Annotated[
        str, _net(metavar="WIDTHS", help="Widths of the hidden layers; empty for none.")
    ] = "256",
    inputs: Annotated[int, _net(metavar="N", min=1, help="Inputs of the first layer.")] = 784,
    outputs: Annotated[int, _net(metavar="N", min=1, help="Outputs of the last layer.")] = 10,
    widths: Annotated[
        str, Option(hidden=True, help="Widths of the whole net: inputs, hidden, outputs.")
    ] = "",
    batch_size: Annotated[int, _net(metavar="N", min=1, help="Rows in a batch.")] = 256,
    dtype: Annotated[
        Dtype, _net(metavar="NAME", help=f"Dtype of parameters and data: {names_of(Dtype)}.")
    ] = Dtype.float32,
    device: Annotated[
        str,
        _net(
            metavar="NAME",
            help=f"One of {', '.join(DEVICES)}; default: the GPU here, else h200.",
            autocompletion=starting_with(DEVICES),
        ),
    ] = "",
    inference: Annotated[bool, _net("--inference", help="Only the forward, without a backward.")] = False,
    as_json: AsJson = False,
) -> None:
    """Versions, devices, which backend would run and why; and what a net costs by each plan."""
    console = start(as_json)

    import fastmlp
    from fastmlp.costs import plans

    sizes = widths_of(widths, "--widths") if widths else [inputs, *widths_of(hidden), outputs]
    if len(sizes) < 2:
        fail(f"--widths {widths}: expected two at least, such as 784,256,10", 2)
    if device:
        one_of(DEVICES, device, "--device")
    cost = fastmlp.cost(sizes, batch_size, dtype=dtype.torch, device=device or None, training=not inference)
    versions, devices = _versions(), _devices()
    console.print(_table(versions, devices))
    console.print()
    head, *rows = cost.rows()
    title = f"{plans.name(sizes)}: {cost.title}"
    console.print(table_of(head, rows, title=title, title_justify="left"))
    for note in cost.notes():
        console.print(note)
    console.print(f"{cost.device.name}: {cost.device.source}", style="dim")
    if as_json:
        emit({"versions": versions, "devices": devices, "cost": _cost(sizes, cost)})


def _table(versions: dict[str, str], devices: list[dict[str, Any]]) -> Table:
    """What there is, by what it is."""
    rows = [*versions.items()]
    for about in devices:
        rows += [(f"on {about['device']}", _line(about)), ("", f"{about['backend']}: {about['reason']}")]
        if "measure" in about:
            rows.append(("", f"no report of it is stored: {about['measure']} makes one, docs/benchmarks.md"))
    return table_of(("", "text"), rows, texts=("text",), show_header=False)


def _versions() -> dict[str, str]:
    """Of what runs here, and what is the matter with it."""
    import torch

    import fastmlp
    from fastmlp import backends

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
    import torch

    from fastmlp import backends

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
    from fastmlp.benchmarks import machine

    results = Path(machine.__file__).with_name("results")
    report = results / machine.folder({"kind": "gpu", "device": gpu}) / "report.json"
    return results.is_dir() and not report.is_file()


def _line(about: dict[str, Any]) -> str:
    if about["device"] == "cpu":
        threads = count_of(about["threads"], "thread")
        return f"{about['name']}, {threads}, {' '.join(about['instructions'])}"
    return f"{about['name']}, compute capability {about['capability']}, {about['memory'] / 2**30:.1f} GiB"


def _processor() -> tuple[str, list[str]]:
    """The CPU's name, and of its instruction sets those that matter here."""
    import torch

    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    flags = {*facts.get("flags", "").split()}
    known = [name for name in _FLAGS if name in flags] or [torch.backends.cpu.get_cpu_capability().lower()]
    return facts.get("model name") or platform.processor() or platform.machine(), known


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
