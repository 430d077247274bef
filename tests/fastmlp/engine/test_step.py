"""TrainStep: whatever runs it, what comes of it is an ordinary step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

import fastmlp
from fastmlp import backends
from tests.classifiers import OPTIMIZERS, Run
from tests.numerics import error


def run(device: str, name: str = "sgd") -> Run:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5)).to(device)
    return Run(net, nn.CrossEntropyLoss(), OPTIMIZERS[name](list(net.parameters())))


def data(device: str, rows: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 12, device=device), torch.randint(5, (rows,), device=device)


def same(ours: Run, theirs: Run, bound: float = 1e-5) -> bool:
    return all(error(p, q) < bound for p, q in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("backend", ["auto", "triton", "torch"])
def test_an_ordinary_step(backend: str, name: str, device: str) -> None:
    ours, theirs = run(device, name), run(device, name)
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)
    with backends.use(backend):
        losses = []
        for rows in (40, 40, 7):
            x, y = data(device, rows)
            losses.append((step(x, y), theirs.step(x, y, torch.float32)))
    for mine, other in losses:  # each loss is a tensor of its own
        assert mine.shape == ()
        assert not mine.requires_grad
        assert error(mine, other) < 1e-5
    assert same(ours, theirs)
    kernels = backend == "triton" or (backend == "auto" and device == "cuda")
    expected = "fused" if kernels else {"torch": "eager", "auto": "cpu"}[backend]
    assert step.engine.split(":")[0] == expected


def rmsprop(p: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(p, lr=0.01)


@pytest.mark.parametrize(
    ("net", "make"),
    [
        (lambda: nn.Sequential(nn.Linear(12, 8), nn.PReLU(), nn.Linear(8, 5)), OPTIMIZERS["sgd"]),
        (lambda: nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 5)), OPTIMIZERS["adamw"]),
        (lambda: nn.Sequential(nn.Linear(12, 5)), OPTIMIZERS["momentum"]),
        (lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)), rmsprop),
    ],
)
def test_whatever_else(net: Any, make: Any, device: str) -> None:
    model = net().to(device)
    ours = Run(model, fastmlp.CrossEntropyLoss(), make(list(model.parameters())))
    theirs = ours.copy()
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)
    for _ in range(3):
        x, y = data(device)
        assert error(step(x, y), theirs.step(x, y, torch.float32)) < 1e-5
    assert same(ours, theirs)


def test_what_changes_between_steps(device: str) -> None:
    """A hook, another child, the learning rate: the next step sees it."""
    ours, theirs = run(device), run(device)
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)

    def both() -> None:
        x, y = data(device)
        assert error(step(x, y), theirs.step(x, y, torch.float32)) < 1e-5

    both()
    for each in (ours, theirs):
        each.optimizer.param_groups[0]["lr"] = 0.01
    both()
    calls = []
    handle = ours.net[1].register_forward_hook(lambda *_: calls.append(1))
    both()
    assert calls == [1]
    assert step.engine.startswith("eager")
    handle.remove()
    for each in (ours, theirs):
        each.net[1] = nn.Tanh()
    both()
    assert calls == [1]
    assert not step.engine.startswith("eager")
    assert same(ours, theirs)


def told(**settings: Any) -> Callable[[Optimizer], object]:
    return lambda optimizer: optimizer.param_groups[0].update(settings)


def states(change: Callable[[dict[str, Any]], object], parameters: int = 99) -> Callable[[Optimizer], object]:
    return lambda optimizer: [change(state) for state in list(optimizer.state.values())[:parameters]]


def moved(optimizer: Optimizer) -> None:
    for p in optimizer.param_groups[0]["params"]:
        p.data = p.data.clone() * 0.5


@pytest.mark.few(6)
@pytest.mark.parametrize(
    ("name", "change", "engine"),
    [
        ("sgd", told(weight_decay=0.1), "fused"),
        ("sgd", told(momentum=0.9), "fused"),
        ("momentum", told(momentum=0.0), "fused"),
        ("sgd", told(maximize=True), "eager"),
        ("sgd", moved, "fused"),
        ("sgd", lambda o: o.register_step_post_hook(lambda *_: None), "eager"),
        ("momentum", states(lambda s: s.pop("momentum_buffer")), "fused"),
        ("adamw", states(lambda s: s.update(exp_avg=s["exp_avg"] * 2)), "fused"),
        ("adamw", states(lambda s: s["step"].add_(7)), "fused"),
        ("adamw", states(lambda s: s["step"].add_(7), 1), "eager"),
        ("adamw", lambda o: o.load_state_dict(copy.deepcopy(o.state_dict())), "fused"),
    ],
)
def test_what_an_optimizer_is_told_between_steps(
    name: str, change: Callable[[Optimizer], object], engine: str, device: str
) -> None:
    """By the kernels, which ask nothing again as long as all is as it was."""
    ours, theirs = run(device, name), run(device, name)
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)
    with backends.use("triton"):
        for i in range(4):
            if i == 2:
                change(ours.optimizer)
                change(theirs.optimizer)
            x, y = data(device)
            assert error(step(x, y), theirs.step(x, y, torch.float32)) < 1e-5
            assert step.engine.split(":")[0] == ("fused" if i < 2 else engine)
    assert same(ours, theirs)


def test_an_empty_batch(device: str) -> None:
    """As torch: a mean of NaN, and an update with gradients of 0."""
    ours, theirs = run(device, "momentum"), run(device, "momentum")
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)
    x, y = data(device)
    for rows in (40, 0, 40):
        mine, other = step(x[:rows], y[:rows]), theirs.step(x[:rows], y[:rows], torch.float32)
        assert mine.isnan() == other.isnan()
    assert same(ours, theirs)


def test_pixels(device: str) -> None:
    ours, theirs = run(device), run(device)
    x = torch.randint(256, (40, 12), dtype=torch.uint8, device=device)
    y = data(device)[1]
    mine = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)(x, y)
    assert error(mine, theirs.step(x, y, torch.float32)) < 1e-6


def test_bfloat16(device: str) -> None:
    ours, theirs = run(device), run(device)
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer, dtype=torch.bfloat16)
    for _ in range(5):
        x, y = data(device)
        assert error(step(x, y), theirs.step(x, y, torch.float32)) < 2e-2
    assert all(p.dtype == torch.float32 for p in ours.net.parameters())
    assert same(ours, theirs, 2e-2)


def test_dtypes_that_are_none(device: str) -> None:
    ours = run(device)
    with pytest.raises(ValueError, match="dtype: expected one of"):
        fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer, dtype=torch.int8)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model", nn.Linear, r"expected a model, got the class Linear; Linear\(\) makes one"),
        ("model", None, "expected a module or a function of the features, got None"),
        ("loss", nn.MSELoss, r"expected a loss, got the class MSELoss; MSELoss\(\) makes one"),
        ("loss", "mse", r"expected a module or a function of \(outputs, targets\), got 'mse'"),
        ("optimizer", torch.optim.SGD, "expected one over the net's parameters, such as"),
        ("optimizer", None, "expected one over the net's parameters, such as"),
    ],
)
def test_parts_that_are_none(name: str, value: Any, said: str) -> None:
    """When they are given, and when one is put in another's place."""
    ours = run("cpu")
    parts = {"model": ours.net, "loss": ours.loss, "optimizer": ours.optimizer}
    with pytest.raises(ValueError, match=f"{name}: {said}"):
        fastmlp.TrainStep(**{**parts, name: value})
    setattr(step := fastmlp.TrainStep(**parts), name, value)
    with pytest.raises(ValueError, match=f"{name}: {said}"):
        step(*data("cpu"))


def test_what_is_no_tensor(device: str) -> None:
    ours = run(device)
    x, y = data("cpu")
    with pytest.raises(TypeError, match="x: expected a tensor, got ndarray"):
        fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)(x.numpy(), y)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_a_batch_that_does_not_fit(backend: str, device: str) -> None:
    ours = run(device)
    start = ours.parameters()
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)
    x, y = data(device)
    with backends.use(backend):
        with pytest.raises(ValueError, match=r"x: expected \(N, 12\), got \(40, 3\)"):
            step(x[:, :3], y)
        with pytest.raises(ValueError, match=r"y: expected \(40,\)"):
            step(x, y[:5])
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), start))


class _Halved(TorchFunctionMode):
    """Changes what linear layers give."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out / 2 if func is F.linear else out


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_a_mode_decides_what_ops_do(backend: str, device: str) -> None:
    """Within it the loop's ops run, and the engine again after it; a default device is no such mode."""
    ours, theirs = run(device), run(device)
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)
    x, y = data(device)
    with backends.use(backend):
        with _Halved():
            found, expected = step(x, y), theirs.step(x, y, torch.float32)
        assert step.engine.startswith("eager: a mode decides what torch's ops do")
        assert error(found, expected) < 1e-6
        assert same(ours, theirs)
        with torch.device(device):
            step(x, y)
        assert not step.engine.startswith("eager")
