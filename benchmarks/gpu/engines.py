"""The same short training by every engine must give the same losses and weights, and the same bits twice.

float64 on the very same batches is the reference, and eager torch's error in the same dtype says how far
from it an engine may be. The first epoch of an engine names every kernel before it is launched, once the one
before is done: the last one named is the one that hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmlp import backends
from fastmlp.costs.plans import name
from fastmlp.engine import Loop, choose, network, rules
from fastmlp.engine.base import Job
from fastmlp.engine.fused import FusedExecutor
from fastmlp.kernels.launch import Launch, observe

from ..cases import net
from ..measure import Row, new_row, reason
from ..numerics import excess, judged, products
from ..peers import MissingPeerError
from .ahead import Ahead

if TYPE_CHECKING:
    from .worker import Bench

GROUP = "engines"
EAGER, FUSED, GRAPH, DEPENDENT, PERSISTENT = "eager", "fused", "graph", "graph+pdl", "persistent"
ENGINES = (EAGER, FUSED, GRAPH, DEPENDENT, PERSISTENT)
#: By the name in the report: the dtype of a `Job`, and the epsilon of the products' operands.
DTYPES = {
    "float32": (torch.float32, torch.finfo(torch.float32).eps),
    "tf32": (torch.float32, 2.0**-10),
    "bfloat16": (torch.bfloat16, torch.finfo(torch.bfloat16).eps),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    # A small eps makes Adam a sign: a gradient of about 0 goes either way by its rounding.
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, eps=1e-4),
}
_ROUNDINGS = 6  # a chain's: two a layer, forward and backward


@dataclass(frozen=True)
class Problem:
    """What is trained, and on how much: the last batch of an epoch is a short one."""

    widths: tuple[int, ...]
    optimizer: str
    batch: int = 256
    examples: int = 1900
    epochs: int = 4

    def job(self, dtype: torch.dtype, device: str) -> Job:
        """Model, data and order, the same ones each time; all in float64 where that is asked for."""
        torch.manual_seed(0)
        model = net(self.widths)
        y = torch.randint(self.widths[-1], (self.examples,))
        classes = torch.rand(self.widths[-1], self.widths[0])
        x = (128 * (classes[y] + torch.rand(self.examples, self.widths[0]))).to(torch.uint8).to(device)
        if dtype == torch.float64:
            model, x = model.double(), x.double() / 255
        model = model.to(device)
        order = torch.Generator(device).manual_seed(0)
        optimizer = OPTIMIZERS[self.optimizer](model.parameters())
        return Job(model, nn.CrossEntropyLoss(), optimizer, x, y.to(device), self.batch, order, dtype)


#: Adam's has a layer more: its gradient is a kernel, and a phase, of its own.
PROBLEMS = {Problem((784, 256, 10), "SGD"): (*DTYPES,), Problem((784, 256, 128, 10), "Adam"): (*DTYPES,)}
TOY = {
    Problem((20, 16, 10), "SGD", 16, 24, 1): ("float32", "bfloat16"),
    Problem((20, 16, 16, 10), "Adam", 16, 24, 1): ("float32",),
}


class Trained(NamedTuple):
    """The outcome of a run."""

    losses: Tensor  # (epochs,) float64: the mean over an epoch
    moved: dict[str, Tensor]  # every parameter, minus its initial value

    def equal(self, other: Trained) -> bool:
        """Whether they are equal to the bit."""
        pairs = zip(self.moved.values(), other.moved.values())
        return torch.equal(self.losses, other.losses) and all(torch.equal(*pair) for pair in pairs)


def run(bench: Bench) -> None:
    """The stage: a row for each problem, dtype and engine."""
    problems = TOY if bench.toy else PROBLEMS
    todo = [_Reference(problem, dtype, bench) for problem, dtypes in problems.items() for dtype in dtypes]
    with Ahead(bench) as ahead:
        tasks = {
            (of, engine): ahead.submit(launches, engine, of.problem, of.dtype)
            for engine in reversed(ENGINES[1:])  # the persistent one takes longest
            for of in todo
            if not bench.has(of.key(engine))
        }
        for engine in ENGINES:
            for of in todo:
                ahead.wait([tasks[of, engine]] if (of, engine) in tasks else [], of.key(engine))
                bench.row(of.key(engine), partial(of.row, engine))


class _Reference:
    """A problem in a dtype: what is right, what eager torch makes of it, and what an engine does."""

    def __init__(self, problem: Problem, dtype: str, bench: Bench) -> None:
        self.problem, self.dtype, self.bench = problem, dtype, bench

    def label(self, engine: str) -> str:
        return f"{name(self.problem.widths)}, {self.problem.optimizer}, {engine}"

    def key(self, engine: str) -> str:
        return f"{GROUP}, {self.label(engine)}, {self.dtype}"

    def row(self, engine: str) -> Row:
        row = new_row(GROUP, self.label(engine), self.dtype, engine=engine)
        try:
            return row | self._compared(engine)
        except MissingPeerError as missing:
            return row | {"skipped": str(missing)}
        except Exception as problem:
            return row | {"error": reason(problem)}

    def _compared(self, engine: str) -> Row:
        first = self.eager if engine == EAGER else self._train(engine, watched=True)
        again = self._train(engine)
        row: Row = {
            "losses": first.losses.tolist(),
            "worst": worst(first, self.eager, self.exact, self.dtype),
            "repeatable": first.equal(again),
        }
        wrong = []
        if excess(row["worst"]) > 1:
            wrong.append("{what}: error {error:.3g}, allowed {allowed:.3g}".format(**row["worst"]))
        if not row["repeatable"] and engine != EAGER:  # whose bits are not ours to answer for
            wrong.append(f"not repeatable: losses {row['losses']}, then {again.losses.tolist()}")
        return row | ({"error": "; ".join(wrong)} if wrong else {})

    @cached_property
    def eager(self) -> Trained:
        return self._train(EAGER)

    @cached_property
    def exact(self) -> Trained:
        return self._train(EAGER, torch.float64)

    def _train(self, engine: str, dtype: torch.dtype | None = None, watched: bool = False) -> Trained:
        job = self.problem.job(dtype or DTYPES[self.dtype][0], self.bench.device)
        start = {name: p.detach().clone() for name, p in job.model.named_parameters()}
        factors = torch.ones(-(-len(job.y) // job.batch), dtype=torch.float64)
        losses = []
        what = self.key("float64" if dtype == torch.float64 else engine)
        with products(self.dtype):
            made = loop(engine, job)
            if isinstance(made, str):
                raise MissingPeerError(made)
            for epoch in range(self.problem.epochs):
                self.bench.note(f"{what}: epoch {epoch + 1}, a whole {made.name} one")
                with _said(self.bench, what) if watched and epoch == 0 else nullcontext():
                    losses.append(made.epoch(factors)[0] / len(job.y))
        moved = {name: p.detach() - start[name] for name, p in job.model.named_parameters()}
        return Trained(torch.tensor(losses, dtype=torch.float64), moved)


def loop(engine: str, job: Job) -> Loop | str:
    """The loop of that very engine, or why there is none here."""
    if engine == EAGER:
        return choose.loop(engine, job)
    with backends.use("triton"):
        found = choose.recognise(job.model, job.loss, job.optimizer, job.dtype, (job.x, job.y))
        if isinstance(found, str):
            return found
        if engine == FUSED:
            return choose.loop(engine, job)
        problem = choose.whole_epoch_problem(engine, found)
        if problem:
            return problem
        made = choose.variants(found, job)
    if engine not in made:
        return "this GPU has no programmatic dependent launch"
    return made[engine]()


def worst(mine: Trained, torchs: Trained, exact: Trained, dtype: str) -> dict[str, Any]:
    """Where ``mine`` is furthest from ``exact``, relative to what is allowed there."""
    eps = DTYPES[dtype][1]
    triples = {"losses": (mine.losses, torchs.losses, exact.losses)} | {
        name: (mine.moved[name], torchs.moved[name], exact.moved[name]) for name in exact.moved
    }
    return max((judged(name, *three, _ROUNDINGS, eps) for name, three in triples.items()), key=excess)


@contextmanager
def _said(bench: Bench, what: str) -> Iterator[None]:
    """Name every kernel before it is launched, once the one before is done."""

    def say(launch: Launch) -> None:
        if bench.device == "cuda" and torch.cuda.is_current_stream_capturing():
            bench.note(f"{what}: the capture of {launch.name}, or the graph's replay")
            return
        if bench.device == "cuda":
            torch.cuda.synchronize()
        bench.note(f"{what}: {launch.name}")

    with observe(say):
        yield


def launches(engine: str, problem: Problem, dtype: str) -> None:
    """What an engine launches, for `Ahead`: there is no GPU."""
    job = problem.job(DTYPES[dtype][0], "cpu")
    found = network.recognise(job.model, job.loss)
    rule = rules.recognise(job.optimizer, list(job.model.parameters()))
    assert not isinstance(found, str)
    assert not isinstance(rule, str)
    with products(dtype):
        if engine == FUSED:
            FusedExecutor(found, rule, job.dtype).step(job.x, job.y, torch.arange(job.batch))
            return
        variants = choose.variants(found, job)
        if engine in variants:
            made: Any = variants[engine]()
            made.executor.prepare(job.batch)
            made._run(True) if engine == PERSISTENT else made._step(0)
