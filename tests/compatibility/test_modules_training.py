"""What is done with a whole module: optimizers, averages, traces, compilation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import swa_utils

import fastmlp
from fastmlp import backends
from fastmlp.kernels.launch import record_launches
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.twins import agree, plain, rows, twins

GROUP = "Modules"
TARGET = (0, 3, 1, 2, 3, 0)
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "Adamax": {"lr": 0.01},
    "Adadelta": {"lr": 1.0},
    "Adagrad": {"lr": 0.05},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "ASGD": {"lr": 0.1},
    "Rprop": {"lr": 0.01},
    "LBFGS": {"lr": 0.1, "max_iter": 3},
}


def smooth(kind: type[nn.Sequential]) -> nn.Sequential:
    """Without a kink: no unit is switched on or off by a rounding."""
    return kind(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 4))


def trained(
    net: nn.Module, loss: nn.Module, make: Callable[[nn.Module], torch.optim.Optimizer], device: str
) -> list[Tensor]:
    """How far three steps took all parameters, as one vector, and what the net then gives."""
    before = nn.utils.parameters_to_vector(net.parameters()).detach()
    optimizer, x = make(net), rows(device, before.dtype)
    target = torch.tensor(TARGET, device=device)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(net(x), target)
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)  # type: ignore[arg-type]
    after = nn.utils.parameters_to_vector(net.parameters()).detach()
    return [after - before, net(x).detach()]


def compare(make: Callable[[nn.Module], torch.optim.Optimizer], backend: str, device: str) -> None:
    losses = fastmlp.CrossEntropyLoss(label_smoothing=0.1), *[nn.CrossEntropyLoss(label_smoothing=0.1)] * 2
    found = [trained(net, loss, make, device) for net, loss in zip(twins(smooth, device), losses)]
    # A parameter moved by far less than it is: the difference keeps few of its bits.
    same_or_as_good(*found, backend, "three steps", 12)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.feature(GROUP, f"training: torch.optim.{n}", dtype="float32"))
        for n in OPTIMIZERS
    ],
)
def test_optimizers(name: str, backend: str, device: str) -> None:
    compare(lambda net: getattr(torch.optim, name)(net.parameters(), **OPTIMIZERS[name]), backend, device)


@pytest.mark.feature(GROUP, "training: parameter groups and a scheduler", dtype="float32")
def test_groups(backend: str, device: str) -> None:
    def make(net: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(net, nn.Sequential)
        names = [name for name, _ in net.named_parameters()]
        assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]
        optimizer = torch.optim.SGD(
            [
                {"params": net[0].parameters(), "lr": 0.5},
                {"params": [net[2].weight], "weight_decay": 0.1},
                {"params": [net[2].bias], "momentum": 0.9},
            ],
            lr=0.1,
        )
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
        return optimizer

    compare(make, backend, device)


@pytest.mark.feature(GROUP, "optim.swa_utils: AveragedModel and update_bn", dtype="float32")
def test_averages(backend: str, device: str) -> None:
    def make(kind: type[nn.Sequential]) -> nn.Module:
        return kind(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.SiLU(), nn.Linear(7, 4))

    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        average = swa_utils.AveragedModel(net, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
        for _ in range(3):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
            average.update_parameters(net)
        swa_utils.update_bn([x.detach(), x.detach() * 2], average)
        assert type(average.module) is type(net)
        return [average.eval()(x).detach(), *(b.detach() for b in average.buffers() if b.dim())]

    agree(make, backend, device, run=run, roundings=20)


def _inputs(device: str) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    """A module of each kind, with what it is called with."""
    torch.manual_seed(0)
    x, y = rows(device), torch.tensor(TARGET, device=device)
    integers = torch.arange(30, device=device, dtype=torch.uint8).view(6, 5)
    made: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
        "Sequential": (plain(fastmlp.Sequential), (x,)),
        "MLP": (fastmlp.MLP(5, [7, 4], flatten=True), (x,)),
        "LinearAct": (fastmlp.LinearAct(5, 4, activation="gelu"), (x,)),
        "LinearAct of a module": (fastmlp.LinearAct(5, 4, activation=nn.PReLU()), (x,)),
        "Dequantize": (fastmlp.Sequential(fastmlp.Dequantize(0.5, -1.0), nn.Linear(5, 4)), (integers,)),
        "CrossEntropyLoss": (fastmlp.CrossEntropyLoss(torch.rand(5), z_loss=0.1), (x, y)),
        "LinearCrossEntropyLoss": (fastmlp.LinearCrossEntropyLoss(5, 300, bias=True), (x, y)),
    }
    return {name: (module.to(device), inputs) for name, (module, inputs) in made.items()}


each = pytest.mark.parametrize("name", list(_inputs("cpu")))


@pytest.mark.feature(GROUP, "torch.fx.symbolic_trace", dtype="float32")
@each
def test_symbolic_trace(name: str, backend: str, device: str) -> None:
    """A graph of torch's layers, or of our functions with every argument, which may be any batch's."""
    module, inputs = _inputs(device)[name]
    traced = torch.fx.symbolic_trace(module)
    for again in (traced, copy.deepcopy(traced)):
        for data in (inputs, tuple(t[:3] for t in inputs)):
            torch.testing.assert_close(again(*data), module(*data), rtol=1e-5, atol=1e-6)
    whole = torch.fx.symbolic_trace(nn.Sequential(plain(fastmlp.Sequential), fastmlp.MLP(4, [3])).to(device))
    assert [node.op for node in whole.graph.nodes].count("call_module") == 5


@pytest.mark.feature(GROUP, "torch.jit.trace", dtype="float32", kernels=False)
@pytest.mark.filterwarnings("ignore:.*jit.trace:FutureWarning", "ignore::torch.jit.TracerWarning")
@each
def test_jit_trace(name: str, backend: str, device: str) -> None:
    """A trace is of torch's own ops, and serves another batch."""
    module, inputs = _inputs(device)[name]
    with record_launches() as launches:
        traced = torch.jit.trace(module, inputs, check_trace=False)
    assert not launches
    longer = tuple(torch.cat([t, t]) for t in inputs)
    for data in (inputs, longer):
        with backends.use("torch"):
            expected = module(*data)
        assert torch.equal(traced(*data), expected)


@pytest.mark.feature(GROUP, "nn.Module.compile", dtype="float32")
@pytest.mark.parametrize("what", ["the net", "a child"])
def test_module_compile(what: str, backend: str, device: str) -> None:
    """In place, with a graph that any backend of torch.compile is given; copies are not compiled."""
    graphs: list[int] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(1)
        return graph.forward

    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        module = net if what == "the net" else net[0]  # type: ignore[index]
        module.compile(backend=compiler, fullgraph=True)
        y = net(x)
        y.sum().backward()
        return [y, x.grad, *(p.grad for p in net.parameters())]  # type: ignore[list-item]

    ours, theirs, exact = twins(plain, device)
    torch.compiler.reset()
    inputs = [rows(device, torch.float64 if net is exact else torch.float32) for net in (ours, theirs, exact)]
    found = [run(net, x.requires_grad_()) for net, x in zip((ours, theirs, exact), inputs)]
    assert len(graphs) >= 2  # one layer of torch's is like another
    same_or_as_good(*found, backend, "compiled")
    copied = copy.deepcopy(ours)
    assert copied._compiled_call_impl is None
    torch.compiler.reset()
