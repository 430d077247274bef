"""What is measured: each case is one piece of work, done by fastmlp and by its peers.

A case builds its tensors once and gives one callable for each peer; all do the same work on the
same inputs. Nothing here times anything.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp import functional

#: The names under which the peers run, ours first.
OURS, EAGER, COMPILED = "fastmlp", "eager", "torch.compile"
PEERS = (OURS, EAGER, COMPILED)


@dataclass(frozen=True)
class Case:
    """One row of the report: ``runs`` has one callable for each peer."""

    group: str  # what is done
    label: str  # at which size
    dtype: torch.dtype
    runs: dict[str, Callable[[], object]] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.group}, {self.label}, {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Plan:
    """A case that is not built yet: its name, and how to build it on a device."""

    group: str
    label: str
    dtype: torch.dtype
    build: Callable[[str], dict[str, Callable[[], object]]]

    def __str__(self) -> str:
        return f"{self.group}, {self.label}, {str(self.dtype).removeprefix('torch.')}"

    def on(self, device: str) -> Case:
        """The case with its tensors on ``device``."""
        torch.manual_seed(0)
        return Case(self.group, self.label, self.dtype, self.build(device))


def plans(device: str) -> Iterator[Plan]:
    """Every case for ``device``; the large half-precision ones are for a GPU alone."""
    gpu = device == "cuda"
    dtypes = (torch.float32, torch.bfloat16) if gpu else (torch.float32,)
    for dtype in dtypes:
        shapes = [(256, 784, 256), (4096, 1024, 1024)]
        if gpu and dtype == torch.bfloat16:
            shapes.append((8192, 8192, 8192))
        for shape in shapes:
            yield _linear_relu(shape, dtype, backward=False)
            yield _linear_relu(shape, dtype, backward=True)
        sizes = [(256, 10), (4096, 1000), (2048, 32000)]
        if gpu and dtype == torch.bfloat16:
            sizes.append((4096, 128256))
        for rows, classes in sizes:
            yield _cross_entropy(rows, classes, dtype)
        yield _training_step((784, 256, 10), 256, dtype)
        yield _training_step((784, 1024, 1024, 1024, 10), 1024, dtype)
        for batch in (1, 32, 256, 4096):
            yield _inference((784, 256, 10), batch, dtype)


def _linear_relu(shape: tuple[int, int, int], dtype: torch.dtype, backward: bool) -> Plan:
    m, k, n = shape

    def eager(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.relu(F.linear(x, w, b))

    def build(device: str) -> dict[str, Callable[[], object]]:
        x, w, b = (torch.randn(s, device=device, dtype=dtype) for s in ((m, k), (n, k), (n,)))
        grad = torch.randn(m, n, device=device, dtype=dtype)
        leaves = [t.requires_grad_(backward) for t in (x, w, b)]

        def run(function: Callable[..., Tensor]) -> Callable[[], object]:
            if backward:
                return lambda: torch.autograd.grad(function(*leaves), leaves, grad)
            return lambda: function(*leaves)

        return {OURS: run(functional.linear_act), EAGER: run(eager), COMPILED: run(torch.compile(eager))}

    what = "forward + backward" if backward else "forward"
    return Plan(f"linear + bias + ReLU {what}", f"{m} x {k} -> {n}", dtype, build)


def _cross_entropy(rows: int, classes: int, dtype: torch.dtype) -> Plan:
    def build(device: str) -> dict[str, Callable[[], object]]:
        logits = torch.randn(rows, classes, device=device, dtype=dtype).requires_grad_()
        target = torch.randint(classes, (rows,), device=device)

        def run(loss: Callable[..., Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(loss(logits, target), logits)

        def eager(logits: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(logits, target)

        return {
            OURS: run(fastmlp.CrossEntropyLoss()),
            EAGER: run(nn.CrossEntropyLoss()),
            COMPILED: run(torch.compile(eager)),
        }

    return Plan("cross-entropy forward + backward", f"{rows} x {classes}", dtype, build)


def net(widths: Sequence[int], sequential: type[nn.Sequential]) -> nn.Sequential:
    """The MLP of these widths with ReLU between the layers."""
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers += [nn.Linear(k, n), nn.ReLU()]
    return sequential(*layers[:-1])


def _name(widths: Sequence[int]) -> str:
    return "-".join(map(str, widths))


def _training_step(widths: Sequence[int], batch: int, dtype: torch.dtype) -> Plan:
    def build(device: str) -> dict[str, Callable[[], object]]:
        x = torch.rand(batch, widths[0], device=device, dtype=dtype)
        y = torch.randint(widths[-1], (batch,), device=device)
        eager = net(widths, nn.Sequential).to(device, dtype)

        def run(model: nn.Module, loss: nn.Module, compiled: bool = False) -> Callable[[], object]:
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

            def objective(x: Tensor, y: Tensor) -> Tensor:
                return loss(model(x), y)

            forward = torch.compile(objective) if compiled else objective

            def step() -> None:
                optimizer.zero_grad()
                forward(x, y).backward()
                optimizer.step()

            return step

        ours = fastmlp.fuse(copy.deepcopy(eager))
        return {
            OURS: run(ours, fastmlp.CrossEntropyLoss()),
            COMPILED: run(copy.deepcopy(eager), nn.CrossEntropyLoss(), compiled=True),
            EAGER: run(eager, nn.CrossEntropyLoss()),
        }

    return Plan("training step (SGD)", f"{_name(widths)}, batch {batch}", dtype, build)


def _inference(widths: Sequence[int], batch: int, dtype: torch.dtype) -> Plan:
    def build(device: str) -> dict[str, Callable[[], object]]:
        x = torch.rand(batch, widths[0], device=device, dtype=dtype)
        eager = net(widths, nn.Sequential).to(device, dtype).eval()

        def run(model: Callable[[Tensor], Tensor]) -> Callable[[], object]:
            def forward() -> Tensor:
                with torch.no_grad():
                    return model(x)

            return forward

        ours = fastmlp.fuse(copy.deepcopy(eager))
        return {OURS: run(ours), EAGER: run(eager), COMPILED: run(torch.compile(copy.deepcopy(eager)))}

    return Plan("inference", f"{_name(widths)}, batch {batch}", dtype, build)
