"""What is measured: each case is one piece of work, done by fastmlp and by its peers.

A case says what the work needs (`fastmlp.costs.floors`) and makes the peers' runs; all do the same work
on the same inputs, and start from the same weights. Nothing here times anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp import functional
from fastmlp.costs import floors as counts
from fastmlp.costs.floors import Work
from fastmlp.costs.plans import name

from . import peers
from .peers import (
    AUTOTUNED,
    COMPILED,
    EAGER,
    EAGER_FLOAT32,
    EXACT,
    JAX,
    MODES,
    OURS,
    Factory,
    MissingPeerError,
    Wrap,
    as_is,
)
from .timing import Run

A, B = (784, 256, 10), (784, 1024, 1024, 1024, 10)
TABULAR = (100, 128, 128, 1)
STEP, INFERENCE = "training step (SGD)", "inference"
REGRESSION = "regression step (SGD, squared error)"
CROSS_ENTROPY, HEAD = "cross-entropy forward + backward", "linear + cross-entropy forward + backward"
LINEAR, LINEAR_BACKWARD = "linear + bias + ReLU forward", "linear + bias + ReLU forward + backward"
_LR = 1e-3  # small, so that a thousand steps on one batch stay finite
_HEAVY = 5 * 10**10  # operations from which on a test's id says "heavy"


@dataclass(frozen=True)
class Case:
    """One row of the report."""

    group: str  # what is done
    label: str  # at which size
    dtype: torch.dtype
    work: Work
    build: Callable[[str], dict[str, Factory]] = field(repr=False)
    key: bool = False  # in the README's table, and in a quick report
    plans: dict[str, Work] = field(default_factory=dict)  # what each plan costs (`fastmlp.costs.plans`)
    memory: bool = False  # peak memory is measured too
    tf32: bool = False  # float32 products run in TF32; the caller sets it
    roundings: int = 1  # allowed on top of torch's own error: `numerics.allowed`

    @property
    def precision(self) -> str:
        """The dtype's name."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    @property
    def heavy(self) -> bool:
        """Takes long on a CPU."""
        return self.work.operations > _HEAVY or self.work.bytes > _HEAVY // 100

    def __str__(self) -> str:
        return f"{self.group}, {self.label}, {self.precision}"

    def on(self, device: str) -> dict[str, Factory]:
        """The peers, with common inputs on ``device`` and weights of one seed; mostly with `peers.EXACT`."""
        torch.manual_seed(0)
        torch._dynamo.reset()  # torch.compile gives up on a function after eight sets of shapes

        def seeded(factory: Factory) -> Run:
            torch.manual_seed(0)
            return factory()

        return {peer: partial(seeded, factory) for peer, factory in self.build(device).items()}


def cases(device: str) -> Iterator[Case]:
    """Every case for ``device``; the largest ones are for a GPU only."""
    gpu = device == "cuda"
    for dtype in (torch.float32, torch.bfloat16):
        half = dtype == torch.bfloat16
        yield training_step(A, 256, dtype, modes=tuple(MODES), key=True)
        yield training_step(B, 1024, dtype, modes=tuple(MODES), key=True)
        yield training_step(TABULAR, 4096, dtype, regression=True)
        for batch in (1, 32, 256, 4096):
            yield inference(A, batch, dtype, key=batch in (1, 256, 4096))
        if half and not gpu:
            continue  # a CPU has no other bfloat16 targets
        for rows, classes in [(256, 10), (4096, 1000), (2048, 32000)] + half * [(4096, 128256)]:
            yield cross_entropy(rows, classes, dtype, key=True)
        features, classes, batches = (4096, 128256, (4096, 8192)) if half else (512, 32000, (512, 2048))
        for batch in batches:
            yield linear_cross_entropy(batch, features, classes, dtype)
        for shape in [(256, 784, 256), (4096, 1024, 1024)] + half * [(8192, 8192, 8192)]:
            modes = (COMPILED, AUTOTUNED) if shape[0] == 8192 else (COMPILED,)
            yield linear_relu(shape, dtype, backward=False, modes=modes, key=shape[0] == 8192)
            yield linear_relu(shape, dtype, backward=True, key=shape[0] == 8192)


def net(
    widths: Sequence[int], between: Callable[[], Sequence[nn.Module]] = lambda: [nn.ReLU()]
) -> nn.Sequential:
    """The MLP of these widths, with ReLU ``between`` the layers."""
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers += [*(between() if layers else ()), nn.Linear(k, n)]
    return nn.Sequential(*layers)


def training_step(
    widths: Sequence[int],
    batch: int,
    dtype: torch.dtype,
    modes: tuple[str, ...] = (COMPILED,),
    key: bool = False,
    regression: bool = False,
) -> Case:
    """Forward, loss, backward and SGD; float32 parameters, products in ``dtype``."""
    work = counts.training_step(widths, batch, dtype, torch.float32, regression)
    loss = "MSELoss" if regression else "CrossEntropyLoss"
    of_ours, of_torchs = getattr(fastmlp, loss), getattr(nn, loss)

    def build(device: str) -> dict[str, Factory]:
        x = torch.rand(batch, widths[0], device=device)
        if regression:
            y = torch.randn(batch, widths[-1], device=device)
        else:
            y = torch.randint(widths[-1], (batch,), device=device)

        def model() -> nn.Sequential:
            return net(widths).to(device)

        def eager(
            model: nn.Module,
            loss: nn.Module,
            dtype: torch.dtype = dtype,
            wrap: Wrap = as_is,
            batch: tuple[Tensor, Tensor] = (x, y),
        ) -> Callable[[], object]:
            step = eager_step(model, loss, torch.optim.SGD(model.parameters(), lr=_LR), dtype, wrap)
            return lambda: step(*batch)

        def ours(model: nn.Sequential) -> Callable[[], object]:
            optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
            step = fastmlp.TrainStep(fastmlp.fuse(model), of_ours(), optimizer, dtype=dtype)
            return lambda: step(x, y)

        def in_float64(model: nn.Module) -> Callable[[], object]:
            double = x.double(), y.double() if regression else y
            return eager(model, of_torchs(), torch.float32, batch=double)

        def judged(make: Callable[[nn.Sequential], Callable[[], object]], kind: torch.dtype) -> Run:
            trained = model().to(kind)
            before = [p.detach().clone() for p in trained.parameters()]
            return Run(
                make(trained), result=lambda: [a.detach() - b for a, b in zip(trained.parameters(), before)]
            )

        def modules(wrap: Wrap) -> Run:
            return Run(eager(fastmlp.fuse(model()), of_ours(), wrap=wrap))

        def of_torch(wrap: Wrap, dtype: torch.dtype = dtype) -> Callable[[], object]:
            return eager(model(), of_torchs(), dtype, wrap)

        found: dict[str, Factory] = {
            OURS: lambda: judged(ours, torch.float32),
            EXACT: lambda: judged(in_float64, torch.float64),
        }
        if key:
            found[peers.OURS_MODULES] = lambda: modules(as_is)
            found[peers.OURS_COMPILED] = lambda: modules(peers.in_one_graph)
        if device == "cuda":
            found[peers.OURS_GRAPH] = lambda: Run(peers.graphed(ours(model()), device))
        found |= peers.of_torch(of_torch, device, modes)
        found[EAGER] = lambda: judged(lambda model: eager(model, of_torchs()), torch.float32)
        if dtype != torch.float32:
            found[EAGER_FLOAT32] = lambda: Run(of_torch(as_is, torch.float32))
        found[JAX] = lambda: peers.jax_peer(device).training_step(widths, x, y, _LR, dtype, work.operations)
        return found

    group = REGRESSION if regression else STEP
    roundings = 4 * (len(widths) - 1)
    return Case(group, f"{name(widths)}, batch {batch}", dtype, work, build, key, roundings=roundings)


def eager_step(
    model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, dtype: torch.dtype, wrap: Wrap
) -> Callable[[Tensor, Tensor], Tensor]:
    """The textbook's step under torch's autograd; ``wrap`` compiles what can be compiled."""

    def objective(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return loss(model(x), y)

    forward, update = wrap(objective), wrap(optimizer.step)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = forward(x, y)
        value.backward()
        update()
        return value

    return step


def inference(widths: Sequence[int], batch: int, dtype: torch.dtype, key: bool = False) -> Case:
    """The forward pass without gradients, all in ``dtype``."""

    def build(device: str) -> dict[str, Factory]:
        x = torch.rand(batch, widths[0], device=device, dtype=dtype)

        def model(dtype: torch.dtype = dtype) -> nn.Sequential:
            return net(widths).to(device, dtype).eval()

        def run(function: Callable[[Tensor], Tensor], x: Tensor = x) -> Callable[[], object]:
            def forward() -> Tensor:
                with torch.no_grad():
                    return function(x)

            return forward

        found: dict[str, Factory] = {OURS: lambda: Run(run(fastmlp.fuse(model())))}
        if key:
            found[peers.OURS_COMPILED] = lambda: Run(run(peers.in_one_graph(fastmlp.fuse(model()))))
        if device == "cuda":
            found[peers.OURS_GRAPH] = lambda: Run(peers.graphed(run(fastmlp.fuse(model())), device))
        found |= peers.of_torch(lambda wrap: run(wrap(model())), device)
        found[EXACT] = lambda: Run(run(model().double(), x.double()))
        if dtype != torch.float32:
            found[EAGER_FLOAT32] = lambda: Run(run(model(torch.float32), x.float()))
        found[JAX] = lambda: peers.jax_peer(device).inference(widths, x)
        return found

    work = counts.inference(widths, batch, dtype)
    roundings = 2 * (len(widths) - 1)
    return Case(INFERENCE, f"{name(widths)}, batch {batch}", dtype, work, build, key, roundings=roundings)


def cross_entropy(rows: int, classes: int, dtype: torch.dtype, key: bool = False) -> Case:
    """Loss and gradient of given logits."""

    def build(device: str) -> dict[str, Factory]:
        logits = torch.randn(rows, classes, device=device, dtype=dtype)
        target = torch.randint(classes, (rows,), device=device)

        def run(loss: Callable[..., Tensor], logits: Tensor = logits) -> Callable[[], object]:
            leaf = logits.requires_grad_()

            def call() -> tuple[Tensor, ...]:
                value = loss(leaf, target)
                return value, *torch.autograd.grad(value, leaf)

            return call

        def liger() -> Run:
            # It writes the gradient over the logits, so it gets a copy of its own.
            return Run(run(peers.liger(device).LigerCrossEntropyLoss(), logits.detach().clone()))

        def cut() -> Run:
            peers.library("cut_cross_entropy", "cut-cross-entropy", device)
            raise MissingPeerError("takes features and weights, not logits")

        return {
            OURS: lambda: Run(run(fastmlp.CrossEntropyLoss())),
            # A function rather than the module, so that what is compiled is this call's own.
            **peers.of_torch(lambda wrap: run(wrap(lambda x, y: F.cross_entropy(x, y))), device),
            EXACT: lambda: Run(run(F.cross_entropy, logits.detach().double())),
            JAX: lambda: peers.jax_peer(device).cross_entropy(logits, target),
            peers.LIGER: liger,
            peers.CUT: cut,
        }

    work = counts.cross_entropy(rows, classes, dtype)
    return Case(CROSS_ENTROPY, f"{rows} x {classes}", dtype, work, build, key)


def linear_cross_entropy(rows: int, features: int, classes: int, dtype: torch.dtype) -> Case:
    """A language model's head: loss of features and weights, and both gradients."""

    def build(device: str) -> dict[str, Factory]:
        x = torch.randn(rows, features, device=device, dtype=dtype).requires_grad_()
        w = torch.randn(classes, features, device=device, dtype=dtype).mul_(features**-0.5).requires_grad_()
        y = torch.randint(classes, (rows,), device=device)

        def run(loss: Callable[..., Tensor], x: Tensor = x, w: Tensor = w) -> Run:
            def call() -> tuple[Tensor, ...]:
                value = loss(x, w, y)
                return value, *torch.autograd.grad(value, (x, w))

            return Run(call)

        def exact() -> Run:
            leaves = (leaf.detach().double().requires_grad_() for leaf in (x, w))
            return run(lambda x, w, y: F.cross_entropy(F.linear(x, w), y), *leaves)

        def of_torch(chunks: bool) -> Run:
            if not hasattr(F, "linear_cross_entropy"):
                raise MissingPeerError(f"torch {torch.__version__} has none")
            options = nn.LinearCrossEntropyOptions() if chunks else None
            return run(lambda x, w, y: F.linear_cross_entropy(x, w, y, options=options))

        def liger() -> Run:
            loss = peers.liger(device).LigerFusedLinearCrossEntropyLoss()
            return run(lambda x, w, y: loss(w, x, y))

        def cut() -> Run:
            return run(peers.library("cut_cross_entropy", "cut-cross-entropy", device).linear_cross_entropy)

        def eager(wrap: Wrap) -> Callable[[], object]:
            return run(wrap(lambda x, w, y: F.cross_entropy(F.linear(x, w), y))).call

        return {
            OURS: lambda: run(functional.linear_cross_entropy),
            **peers.of_torch(eager, device),
            EXACT: exact,
            peers.TORCH_LINEAR: lambda: of_torch(chunks=False),
            peers.TORCH_CHUNKS: lambda: of_torch(chunks=True),
            peers.LIGER: liger,
            peers.CUT: cut,
        }

    work = counts.linear_cross_entropy(rows, features, classes, dtype)
    return Case(HEAD, f"{rows} x {features} -> {classes}", dtype, work, build, memory=True, roundings=4)


def linear_relu(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    backward: bool,
    modes: tuple[str, ...] = (COMPILED,),
    key: bool = False,
) -> Case:
    """One layer."""
    m, k, n = shape

    def build(device: str) -> dict[str, Factory]:
        x, w, b = (torch.randn(s, device=device, dtype=dtype) for s in ((m, k), (n, k), (n,)))
        grad = torch.randn(m, n, device=device, dtype=dtype) if backward else None
        leaves = [t.requires_grad_(backward) for t in (x, w, b)]

        def run(
            function: Callable[..., Tensor], leaves: list[Tensor] = leaves, grad: Tensor | None = grad
        ) -> Callable[[], object]:
            if backward:
                return lambda: torch.autograd.grad(function(*leaves), leaves, grad)
            return lambda: function(*leaves)

        def of_torch(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return torch.relu(F.linear(x, w, b))

        def exact() -> Run:
            double = [leaf.detach().double().requires_grad_(backward) for leaf in leaves]
            return Run(run(of_torch, double, None if grad is None else grad.double()))

        return {
            OURS: lambda: Run(run(functional.linear_act)),
            EXACT: exact,
            **peers.of_torch(lambda wrap: run(wrap(lambda x, w, b: of_torch(x, w, b))), device, modes),
            JAX: lambda: peers.jax_peer(device).linear_relu(x, w, b, grad),
        }

    work = counts.linear(m, k, n, dtype, backward)
    group = LINEAR_BACKWARD if backward else LINEAR
    return Case(group, f"{m} x {k} -> {n}", dtype, work, build, key, roundings=2)
