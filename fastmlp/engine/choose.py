"""Which executor runs a model's steps, and which loop its epochs."""

from __future__ import annotations

import contextlib
import copy
import statistics
import timeit
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastmlp import backends
from fastmlp.backends.base import SquaredError
from fastmlp.engine import network, rules
from fastmlp.engine.autograd import AutogradExecutor
from fastmlp.engine.base import Executor, Job, Loop
from fastmlp.engine.checks import batch_problem, check_optimizer
from fastmlp.engine.cpu import CpuExecutor
from fastmlp.engine.network import Network
from fastmlp.engine.step_loop import StepLoop

#: What `loop` may be asked for.
ENGINES = ("auto", "eager", "fused", "graph", "persistent")
#: What the matrix products may run in.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def recognise(
    model: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    batch: tuple[Tensor, Tensor] | None = None,
) -> Network | str:
    """The network that an engine can run as a whole, on batches like ``batch``, or why none can.

    Raises:
        ValueError: as `check_optimizer`.
    """
    check_optimizer(model, loss, optimizer, dtype)
    found = network.recognise(model, loss)
    if isinstance(found, str):
        return found
    unfit = None if batch is None else batch_problem(found, *batch)
    return unfit or step_problem(found, optimizer, dtype) or found


def step_problem(
    found: Network, optimizer: torch.optim.Optimizer, dtype: torch.dtype, before: Executor | None = None
) -> str | None:
    """Why no engine can run ``found`` with that optimizer here, or None; ``before`` ran the last step."""
    weight = found.layers[0].weight
    try:
        choice = backends.choose(weight)
    except RuntimeError as error:
        return str(error)
    if choice.backend is not None and choice.backend.name == "triton":
        from fastmlp.engine import fused

        if before is not None and before.holds():
            return None
        rule = rules.recognise(optimizer, found.parameters)
        return fused.problem(found) or (rule if isinstance(rule, str) else None)
    if not weight.is_cpu or backends.requested() == "torch":
        return choice.reason
    if backends.overridden():
        return "a mode decides what torch's ops do, and would not see the engine's"
    if dtype == torch.float16:
        return "a CPU has no fast float16"
    if rules.wants_closure(optimizer):
        return f"{type(optimizer).__name__} evaluates the loss itself"
    return None


def of_network(found: Network, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> Executor:
    """The executor of a network that `recognise` found."""
    if backends.choose(found.layers[0].weight).backend is None:
        return CpuExecutor(found, optimizer, dtype)
    from fastmlp.engine.fused import FusedExecutor

    return FusedExecutor(found, rules.Rule(optimizer, found.parameters), dtype)


def find(engine: str, job: Job) -> Network | str:
    """The network that ``engine`` runs as a whole, or why autograd runs the job.

    Raises:
        ValueError: that engine cannot run here, with the reason.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}")
    if engine == "eager":
        return "eager is asked for"
    found = recognise(job.model, job.loss, job.optimizer, job.dtype, (job.x, job.y))
    if isinstance(found, str) and engine != "auto":
        raise ValueError(f"engine: {engine!r} cannot run this: {found}")
    return found


def executor(found: Network | str, job: Job) -> Executor:
    """The executor of what `find` found."""
    if isinstance(found, str):
        return AutogradExecutor(job.model, job.loss, job.optimizer, job.x.device, job.dtype)
    return of_network(found, job.optimizer, job.dtype)


def loop(engine: str, job: Job) -> Loop:
    """The loop that ``engine`` names; for "auto" the fastest one that can run this.

    Raises:
        ValueError: that engine cannot run here, with the reason.
    """
    found = find(engine, job)
    problem = None if isinstance(found, str) else whole_epoch_problem(engine, found)
    if engine in ("graph", "persistent") and problem:
        raise ValueError(f"engine: {engine!r} cannot run this: {problem}")
    if isinstance(found, str) or engine == "fused" or problem:
        return StepLoop(executor(found, job), job)
    made = {
        name: make
        for name, make in variants(found, job).items()
        if engine == "auto" or name.startswith(engine)
    }
    names = list(made)
    name = _measured(names, found, job) if len(names) > 1 else names[0]
    return made[name]()


def whole_epoch_problem(engine: str, found: Network) -> str | None:
    """Why no epoch of ``found`` can be one graph or launch, or None."""
    device = found.layers[0].weight.device
    interpreted = engine == "persistent" and backends.requested() == "triton"  # one launch per phase
    if device.type != "cuda" and not interpreted:
        return f"it needs a GPU, and the parameters are on {device}"
    if engine != "persistent":
        return None
    from fastmlp.engine import persistent

    return persistent.problem(found)


def variants(found: Network, job: Job) -> dict[str, Callable[[], Loop]]:
    """Every way to run an epoch of ``found`` as a whole here: "graph", "graph+pdl", "persistent".

    `loop` takes the faster graph; here each can be had by its own name.
    """
    from fastmlp.engine import persistent
    from fastmlp.engine.fused import FusedExecutor
    from fastmlp.engine.graph import GraphLoop
    from fastmlp.engine.whole_loop import WholeLoop
    from fastmlp.kernels.launch import INTERPRETED, arch_of, has_dependent_launch

    def making(kind: type[WholeLoop], **options: Any) -> Callable[[], Loop]:
        def make() -> Loop:
            rule = rules.Rule(job.optimizer, found.parameters)
            return kind(FusedExecutor(found, rule, job.dtype, copies=True, **options), job)

        return make

    made: dict[str, Callable[[], Loop]] = {}
    if not INTERPRETED:
        made["graph"] = making(GraphLoop)
        if has_dependent_launch(arch_of(found.layers[0].weight)):
            made["graph+pdl"] = making(GraphLoop, pdl=True)
    if persistent.problem(found) is None:
        made["persistent"] = making(persistent.PersistentLoop, family="epoch")
    return made


def _measured(names: list[str], found: Network, job: Job) -> str:
    """The fastest of ``names`` here, measured on copies, once per machine and problem, and remembered."""
    from fastmlp.kernels.tiles import cache

    key = _key(names, found, job)
    kept = cache.parsed(cache.read(_FILE), _fastest, "an engine", cache.path(_FILE))
    if kept.get(key) in names:
        return kept[key]
    seconds = {}
    for name in names:
        model, loss, optimizer = copy.deepcopy((job.model, job.loss, job.optimizer))
        again = recognise(model, loss, optimizer, job.dtype)
        assert isinstance(again, Network)
        scratch = job._replace(optimizer=optimizer, generator=torch.Generator(job.x.device).manual_seed(0))
        seconds[name] = _time(variants(again, scratch)[name](), len(job.y), job.batch)
    fastest = min(seconds, key=lambda name: seconds[name])
    with contextlib.suppress(OSError):  # it is measured again next time
        cache.add(_FILE, {key: {"fastest": fastest, "seconds": seconds}})
    return fastest


def _fastest(_key: str, entry: Any) -> str:
    if not isinstance(entry["fastest"], str):
        raise TypeError(f"fastest is {entry['fastest']!r}")
    return entry["fastest"]


_FILE = "engines.json"


def _key(names: list[str], found: Network, job: Job) -> str:
    import triton

    kind, _ = rules.layout(job.optimizer, found.parameters)
    facts = (
        torch.cuda.get_device_name(job.x.device),
        triton.__version__,
        "-".join(map(str, found.widths)),
        *(["mse"] if isinstance(found.options, SquaredError) else []),
        *(act.name for act in found.acts[:-1]),
        job.batch,
        job.x.dtype,
        *("dequantize" for number in (found.scale, found.shift) if number is not None),
        job.dtype,
        kind,
        *names,
    )
    return " ".join(map(str, facts))


def _time(loop: Loop, examples: int, batch: int) -> float:
    """Seconds per epoch: the median of five, after one that compiles."""
    factors = torch.ones(-(-examples // batch), dtype=torch.float64, device="cpu")

    def epoch() -> None:
        torch.cuda.synchronize()
        loop.epoch(factors)

    epoch()
    return statistics.median(timeit.repeat(epoch, number=1, repeat=5))
