"""``python -m benchmarks.host``: how long the host takes for a call of ours and for eager PyTorch's.

It is what bounds a small net on a GPU. With no GPU it is measured with a stub of one (`benchmarks.stub`): our
kernels are compiled for sm_90 and launched into nothing, eager's ops run on one element, and the time is the
processor's in the calling thread, plus the same `LAUNCH` for every launch of both. ``--device cuda`` measures
the same calls for real, in blocks between synchronised ends; that has not been run yet.
"""

from __future__ import annotations

import cProfile
import itertools
import json
import os
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp import functional
from fastmlp.profiling.session import exported
from fastmlp.profiling.trace import Trace

from . import formats, peers
from .machine import describe
from .measure import Effort, Row, reason
from .peers import EAGER, LIGER, OURS
from .timing import Run, Timing, interleave

GROUP = "host time"
PEERS = (OURS, EAGER, LIGER)
#: Seconds that the driver takes for a launch, of whomever, where none is called.
LAUNCH = 2.5e-6
A, NARROW = (784, 256, 10), (64, 64, 64, 64, 64, 10)
_LR = 1e-3
_BLOCK = 100  # calls between two looks at the clock
_ROOT = Path(__file__).resolve().parent.parent
Call = Callable[[], object]


class _Dropout(nn.Dropout):
    """By the op that a GPU's tensors get: one launch, where a CPU's go through three."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.native_dropout(input, self.p, self.training)[0]


@dataclass(frozen=True)
class Side:
    """One of those who are compared, on which device and at which sizes."""

    peer: str
    device: str
    batch: int = 256

    @property
    def ours(self) -> bool:
        return self.peer == OURS

    @property
    def stubbed(self) -> bool:
        """Whether ours is computed by nobody, and what torch's ops compute is to be next to nothing."""
        return self.device == "cpu"

    @property
    def tiny(self) -> bool:
        """Whether all sizes are one."""
        return self.stubbed and self.peer == EAGER

    def normal(self, *shape: int, grad: bool = False) -> Tensor:
        """A random tensor."""
        return torch.randn(self._sizes(shape), device=self.device, requires_grad=grad)

    def labels(self, classes: int) -> Tensor:
        """A class for each row of the batch."""
        rows, classes = self._sizes((self.batch, classes))
        return torch.randint(classes, (rows,), device=self.device)

    def net(
        self, widths: Sequence[int], act: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0
    ) -> nn.Module:
        """Linear layers with activations between."""
        layers: list[nn.Module] = []
        for k, n in itertools.pairwise(self._sizes(widths)):
            layers += [nn.Linear(k, n), act(), *([self._dropout(dropout)] if dropout else [])]
        return self._fused(nn.Sequential(*layers[: -2 if dropout else -1]))

    def block(self, width: int, hidden: int) -> nn.Module:
        """The MLP of a transformer's block, as timm has it."""
        layers = peers.library("timm.layers", "timm", self.device, gpu=False)
        width, hidden = self._sizes((width, hidden))
        return self._fused(layers.Mlp(width, hidden))

    def _dropout(self, p: float) -> nn.Module:
        return _Dropout(p) if self.tiny else nn.Dropout(p)

    def _sizes(self, sizes: Sequence[int]) -> list[int]:
        return [1 if self.tiny else size for size in sizes]

    def _fused(self, net: nn.Module) -> nn.Module:
        net = net.to(self.device)
        return fastmlp.fuse(net) if self.ours else net


Build = Callable[[Side], Call]


@dataclass(frozen=True)
class HostCase:
    """One call, and how many times as long as eager's it may take."""

    label: str
    build: Build
    must: float | None = None
    stretch: float | None = None
    peers: tuple[str, ...] = (OURS, EAGER)

    def __str__(self) -> str:
        return f"{GROUP}: {self.label}"


def _linear_act(side: Side) -> Call:
    x, w, b = side.normal(side.batch, 784), side.normal(256, 784), side.normal(256)
    if side.ours:
        return lambda: functional.linear_act(x, w, b)
    return lambda: torch.relu(F.linear(x, w, b))


def _forward(side: Side, net: Callable[[Side], nn.Module], features: int, grad: bool) -> Call:
    model, x = net(side), side.normal(side.batch, features)

    def without() -> Tensor:
        with torch.no_grad():
            return model(x)

    return (lambda: model(x)) if grad else without


def _loss(side: Side, backward: bool) -> Call:
    if side.peer == LIGER:
        package = peers.library("liger_kernel.transformers", "liger-kernel", side.device, gpu=False)
        loss = package.LigerCrossEntropyLoss()
    else:
        loss = functional.cross_entropy if side.ours else F.cross_entropy
    logits, target = side.normal(side.batch, 10, grad=backward), side.labels(10)
    if not backward:
        return lambda: loss(logits, target)
    return lambda: torch.autograd.grad(loss(logits, target), logits)


def _squared_error(side: Side) -> Call:
    loss = functional.mse_loss if side.ours else F.mse_loss
    output, target = side.normal(side.batch, 10, grad=True), side.normal(side.batch, 10)
    return lambda: torch.autograd.grad(loss(output, target), output)


def _head(side: Side, classes: int) -> Call:
    # Beyond some hundred classes the products are torch's, and would be computed on a CPU.
    batch, features = (2, 2) if side.stubbed else (side.batch, 256)
    side = replace(side, batch=batch)
    x, w = side.normal(batch, features, grad=True), side.normal(classes, features, grad=True)
    y = side.labels(classes)
    if side.ours:
        return lambda: torch.autograd.grad(functional.linear_cross_entropy(x, w, y), (x, w))
    if side.peer == LIGER:
        package = peers.library("liger_kernel.transformers", "liger-kernel", side.device, gpu=False)
        loss = package.LigerFusedLinearCrossEntropyLoss()
        return lambda: torch.autograd.grad(loss(w, x, y), (x, w))
    return lambda: torch.autograd.grad(F.cross_entropy(F.linear(x, w), y), (x, w))


def _step(side: Side, net: Callable[[Side], nn.Module], features: int, classes: int) -> Call:
    model, loss = net(side), (fastmlp if side.ours else nn).CrossEntropyLoss()
    x, y = side.normal(side.batch, features), side.labels(classes)
    parameters = list(model.parameters())

    def step() -> None:
        for p in parameters:
            p.grad = None
        loss(model(x), y).backward()

    return step


def _block_step(side: Side) -> Call:
    model, x = side.block(64, 256), side.normal(side.batch, 64)
    gradient, parameters = side.normal(side.batch, 64), list(model.parameters())
    return lambda: torch.autograd.grad(model(x), parameters, gradient)


def _update(side: Side) -> Call:
    model, loss = side.net(A), (fastmlp if side.ours else nn).CrossEntropyLoss()
    x, y = side.normal(side.batch, A[0]), side.labels(A[-1])
    # foreach is what a GPU's tensors get by default.
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR, foreach=True)
    if side.ours:
        train = fastmlp.TrainStep(model, loss, optimizer)
        return lambda: train(x, y)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()

    return step


def _net(
    widths: Sequence[int], act: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0
) -> Callable[[Side], nn.Module]:
    return lambda side: side.net(widths, act, dropout)


def _training(widths: Sequence[int], act: Callable[[], nn.Module] = nn.ReLU, dropout: float = 0.0) -> Build:
    return partial(_step, net=_net(widths, act, dropout), features=widths[0], classes=widths[-1])


_BOOK = partial(_forward, net=_net(A), features=A[0])
_NARROW = partial(_forward, net=_net(NARROW), features=NARROW[0])
_OF_TIMM = partial(_forward, net=lambda side: side.block(64, 256), features=64)
_ALL = (OURS, EAGER, LIGER)
EFFORT = Effort(rounds=51, seconds=4.0)
CASES = (
    HostCase("functional.linear_act, no grad", _linear_act, 1.5, 1.0),
    HostCase("net 784-256-10 forward, no grad", partial(_BOOK, grad=False), 1.2, 0.8),
    HostCase("net 784-256-10 forward, recording", partial(_BOOK, grad=True), 1.5, 1.0),
    HostCase("functional.cross_entropy, no grad", partial(_loss, backward=False), 1.5, 1.0, _ALL),
    HostCase("cross-entropy forward + backward", partial(_loss, backward=True), 1.0, 0.8, _ALL),
    HostCase("net, loss, backward", _training(A), 1.0, 0.8),
    HostCase("the same with tanh", _training(A, nn.Tanh)),
    HostCase("the same with GELU", _training(A, nn.GELU)),
    HostCase("the same with PReLU", _training(A, nn.PReLU)),
    HostCase("the same with dropout", _training(A, dropout=0.5)),
    HostCase("narrow net 64 (x 5)-10 forward, no grad", partial(_NARROW, grad=False)),
    HostCase("narrow net, loss, backward", _training(NARROW)),
    HostCase("squared error forward + backward", _squared_error),
    HostCase("linear cross-entropy, 10 classes, forward + backward", partial(_head, classes=10)),
    HostCase(
        "linear cross-entropy, 1000 classes, forward + backward", partial(_head, classes=1000), peers=_ALL
    ),
    HostCase("training step with SGD (TrainStep)", _update),
    HostCase("timm's Mlp 64-256-64 by fuse, no grad", partial(_OF_TIMM, grad=False)),
    HostCase("timm's Mlp 64-256-64 by fuse, forward + backward", _block_step),
)  # fmt: skip


def gpu(device: str) -> AbstractContextManager[None]:
    """The GPU of ``device``: a real one is there already."""
    if device == "cuda":
        return nullcontext()
    from .stub import gpu as stubbed

    return stubbed()


def calls(case: HostCase, device: str) -> tuple[dict[str, Call], dict[str, str]]:
    """The call of each peer, made once, and why those that are missing are; within `gpu`."""
    torch.manual_seed(0)
    found: dict[str, Call] = {}
    missing: dict[str, str] = {}
    for peer in case.peers:
        try:
            call = case.build(Side(peer, device))
            call()  # compiles
            found[peer] = call
        except peers.MissingPeerError as error:
            missing[peer] = reason(error)
        except Exception as error:
            if peer in (OURS, EAGER):
                raise
            missing[peer] = reason(error)
    return found, missing


def measure(case: HostCase, device: str, effort: Effort = EFFORT) -> Row:
    """Time the peers' calls in turns, and count what each launches."""
    with gpu(device):
        found, missing = calls(case, device)
        launches = {peer: launched(call, device) for peer, call in found.items()}
        entered = python_calls(found[OURS]).total()
        runs = {peer: Run(call) if device == "cuda" else _clocked(call) for peer, call in found.items()}
        timings = interleave(runs, device, effort.rounds, effort.seconds)
    if device == "cpu":
        timings = {peer: _later(timing, launches[peer] * LAUNCH) for peer, timing in timings.items()}
    return {
        "key": str(case),
        "group": GROUP,
        "label": case.label,
        "dtype": "float32",
        "floor": launches.get(OURS, 0) * LAUNCH,
        "seconds": {peer: asdict(timing) for peer, timing in timings.items()},
        "missing": missing,
        "launches": launches,
        "python_calls": entered,
        "must": case.must,
        "stretch": case.stretch,
    }


def _clocked(call: Call) -> Run:
    """By the processor's time of this thread: what else runs on the machine is not in it."""

    def block() -> float:
        began = time.thread_time()
        for _ in range(_BLOCK):
            call()
        return time.thread_time() - began

    return Run(block, steps=_BLOCK, clocked=True)


def _later(timing: Timing, seconds: float) -> Timing:
    ends = {end: getattr(timing, end) + seconds for end in ("median", "low", "high", "best")}
    return replace(timing, **ends)


def launched(call: Call, device: str) -> int:
    """How many kernels a call launches, Triton's and those of torch's ops.

    Not by `fastmlp.profile`, beside which the engine knows no model again.
    """
    with torch.profiler.profile(record_shapes=True) as profiler:
        before = _stubbed(device)
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    kernels = Trace(json.loads(exported(profiler))["traceEvents"]).kernels
    return len(kernels) + _stubbed(device) - before


def _stubbed(device: str) -> int:
    if device == "cuda":
        return 0
    from . import stub

    return stub.launches()


def python_calls(call: Call) -> Counter[str]:
    """The Python functions that a call enters, as ``path:name``, and how often."""
    found: Counter[str] = Counter()

    def note(frame: Any, event: str, argument: object) -> None:
        if event == "call":
            code = frame.f_code
            found[f"{_shown(code.co_filename)}:{getattr(code, 'co_qualname', code.co_name)}"] += 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def _shown(path: str) -> str:
    """Of a package's file what comes after the place where packages are."""
    if path.startswith(str(_ROOT)):
        return os.path.relpath(path, _ROOT)
    return path.rpartition("site-packages/")[2]


def table(rows: Iterable[Row]) -> str:
    """The rows as Markdown."""
    lines = [("call", *(f"{peer} (launches)" for peer in PEERS), "ratio", "must", "stretch"), ("---",) * 7]
    for row in rows:
        times = [_time(row, peer) for peer in PEERS]
        bounds = ["" if row[name] is None else f"{row[name]}" for name in ("must", "stretch")]
        lines.append((row["label"], *times, f"{ratio(row):.2f}", *bounds))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def ratio(row: Row) -> float:
    """Our time over eager's."""
    return row["seconds"][OURS]["median"] / row["seconds"][EAGER]["median"]


def _time(row: Row, peer: str) -> str:
    if peer not in row["seconds"]:
        return "-"
    return f"{formats.time(row['seconds'][peer])}, {row['launches'][peer]}"


def said(device: str) -> str:
    """What the numbers are."""
    facts = describe(device)
    versions = f"torch {facts['versions']['torch']}, Triton {facts['versions']['triton']}"
    where = (
        f"{facts['device']}; {versions}, Python {facts['python']}; commit {facts['commit']}, {facts['date']}"
    )
    if device == "cuda":
        return f"Time of a call, many between synchronised ends: {where}."
    return (
        f"Host time of a call with the GPU stubbed, not a GPU's time: {where}. Kernels are compiled for "
        "sm_90 and launched into nothing, eager's ops run on one element, and "
        f"{LAUNCH * 1e6:g} µs a launch are added to both."
    )


def main(
    device: str = typer.Option("cpu", help="cpu: with the GPU stubbed; cuda: for real."),
    match: str = typer.Option("", help="Only the rows that have this in their name."),
    rounds: int = typer.Option(EFFORT.rounds, min=3, help="Interleaved turns."),
    json_path: Path | None = typer.Option(None, "--json", metavar="FILE", help="Write the rows there too."),
    profile: bool = typer.Option(False, help="Instead of times: the Python functions that our call enters."),
) -> None:
    """The host's time for a call, ours beside eager PyTorch's."""
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device {device}: expected cpu or cuda")
    found = [case for case in CASES if match in str(case)]
    if not found:
        raise typer.BadParameter(f"--match {match}: there is no such row")
    if profile:
        for case in found:
            _profile(case, device)
        return
    rows = []
    for case in found:
        rows.append(measure(case, device, Effort(rounds)))
        entered = rows[-1]["python_calls"]
        print(f"{case.label}: {ratio(rows[-1]):.2f}, {entered} Python calls", file=sys.stderr, flush=True)
    print(f"{said(device)}\n\n{table(rows)}")
    if json_path is not None:
        report = {"machine": describe(device), "stubbed": device == "cpu", "launch": LAUNCH, "rows": rows}
        json_path.write_text(json.dumps(report, indent=1) + "\n")


def _profile(case: HostCase, device: str, times: int = 500) -> None:
    """What remains, by function: how often a call enters it, and its own time under cProfile."""
    with gpu(device):
        call = calls(replace(case, peers=(OURS,)), device)[0][OURS]
        call()
        entered = python_calls(call)
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(times):
            call()
        profiler.disable()
    print(f"{case.label}: {entered.total()} Python calls\n{'calls':>7} {'own µs':>7} {'all µs':>7}")
    stats: dict[Any, Any] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for (path, line, name), (_, count, own, whole, _) in sorted(stats.items(), key=lambda item: -item[1][2])[
        :50
    ]:
        where = f"{_shown(path)}:{line} " if line else ""
        print(f"{count / times:7.1f} {own / times * 1e6:7.2f} {whole / times * 1e6:7.2f} {where}{name}")
    print()


if __name__ == "__main__":
    typer.run(main)
