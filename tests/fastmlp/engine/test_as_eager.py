"""TrainStep beside the loop that it stands for: whatever is around it, both do the same."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp.engine import checks
from fastmlp.modules import stages
from tests.numerics import error

CLASSES = 4
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
}


@pytest.fixture(params=["auto", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with backends.use(request.param):
        yield request.param


class Both:
    """A step, and the loop on a copy of its net."""

    def __init__(
        self,
        device: str,
        make: Callable[[Any], torch.optim.Optimizer] = OPTIMIZERS["sgd"],
        loss: nn.Module | None = None,
        others: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES)).to(device)
        self.others = nn.ParameterList(torch.ones(3, device=device) for _ in range(others))
        self.twin, self.twins = copy.deepcopy((self.net, self.others))
        self.optimizer = make([*self.net.parameters(), *self.others])
        self.loop_optimizer = make([*self.twin.parameters(), *self.twins])
        self.loss = loss or fastmlp.CrossEntropyLoss()
        self.step = fastmlp.TrainStep(self.net, self.loss, self.optimizer, dtype=dtype)

    def loop(self, x: Tensor, y: Tensor, around: Callable[[], AbstractContextManager[Any]]) -> Tensor:
        """The loop's step."""

        def closure() -> Tensor:
            self.loop_optimizer.zero_grad()
            with around():
                value = self.loss(self.twin(x), y)
            value.backward()
            return value

        if isinstance(self.loop_optimizer, torch.optim.LBFGS):
            return self.loop_optimizer.step(closure)
        value = closure()
        self.loop_optimizer.step()
        return value

    def same(
        self,
        x: Tensor,
        y: Tensor,
        steps: int = 2,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
        bound: float = 1e-5,
    ) -> bool:
        """Whether so many steps of both give the same losses and parameters."""
        for _ in range(steps):
            with around():
                mine = self.step(x, y)
            assert error(mine, self.loop(x, y, around).detach()) < bound
        pairs = zip([*self.net.parameters(), *self.others], [*self.twin.parameters(), *self.twins])
        return all(error(p.detach(), q.detach()) < bound for p, q in pairs)


def data(device: str, rows: int = 40) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 6, device=device), torch.randint(CLASSES, (rows,), device=device)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.usefixtures("backend")
def test_gradients_that_somebody_left(name: str, device: str) -> None:
    """Of another net's parameters, of the net's own, and of one that is frozen later."""
    both = Both(device, OPTIMIZERS[name], others=2)
    for parameters in ([*both.net.parameters(), *both.others], [*both.twin.parameters(), *both.twins]):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
    assert both.same(*data(device))
    assert all(p.grad is None for p in both.others)
    for net in (both.net, both.twin):
        net[0].bias.grad = torch.ones_like(net[0].bias)
        net[0].bias.requires_grad_(False)
    assert both.same(*data(device))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_no_gradient_is_left_that_a_step_did_not_make(name: str, backend: str, device: str) -> None:
    """An ordinary step of the optimizer after one of ours adds nothing that is older."""
    both = Both(device, OPTIMIZERS[name])
    for parameter in both.net.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    both.step(*data(device))
    assert both.step.engine == ("fused" if backend == "triton" or device == "cuda" else "cpu")
    grads = [p.grad for p in both.net.parameters()]
    assert all(grad is None or float(grad.abs().max()) < 1 for grad in grads)


def times(function: Callable[..., Tensor], factor: float) -> Callable[..., Tensor]:
    """As wrappers are written: it has all marks of what it wraps."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Tensor:
        return function(*arguments) * factor

    return wrapper


def twice(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def wrapper(self: Any, closure: Any = None) -> None:
        step(self)
        step(self)

    return wrapper


PATCHES: list[tuple[type, str, Callable[[Any], Any]]] = [
    (nn.Linear, "forward", lambda f: times(f, 2)),
    (nn.ReLU, "forward", lambda f: times(f, 3)),
    (nn.ReLU, "forward", lambda _: nn.Tanh.forward),
    (nn.Sequential, "forward", lambda f: times(f, 2)),
    (nn.Linear, "__call__", lambda f: times(f, 2)),
    (nn.Module, "__call__", lambda f: times(f, 2)),
    (fastmlp.CrossEntropyLoss, "forward", lambda f: times(f, 2)),
    (torch.optim.SGD, "step", twice),
    (torch.optim.Optimizer, "zero_grad", lambda f: f),
]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda p: f"{p[0].__name__}.{p[1]}")
@pytest.mark.usefixtures("backend")
def test_a_class_is_patched(patch: tuple[Any, ...], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, name, wrap = patch
    both = Both(device)
    x, y = data(device)
    assert both.same(x, y)
    engine = both.step.engine
    monkeypatch.setattr(kind, name, wrap(getattr(kind, name)))
    assert both.same(x, y)
    monkeypatch.undo()
    assert both.same(x, y)
    assert both.step.engine == engine


@pytest.mark.parametrize("make", [fastmlp.Sequential, lambda *m: fastmlp.MLP(6, [8, CLASSES])])
def test_a_fused_class_is_patched(make: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = make(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES)).to(device)
    x, y = data(device)
    step = fastmlp.TrainStep(net, fastmlp.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.0))
    with backends.use("triton"):
        step(x, y)
        monkeypatch.setattr(type(net), "forward", times(type(net).forward, 5))
        expected = nn.functional.cross_entropy(net(x), y)
        assert error(step(x, y), expected.detach()) < 1e-5


def test_what_was_patched_before_is_not_taken_for_torchs() -> None:
    class Linear(nn.Linear):
        pass

    Linear.forward = times(nn.Linear.forward, 2)  # type: ignore[method-assign]
    Linear.__module__ = nn.Linear.__module__
    try:
        assert stages.written(Linear) is Linear
        assert not stages.untouched(Linear(2, 2))
    finally:
        stages.FORWARDS.pop(Linear)


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.usefixtures("backend")
def test_an_optimizers_own_step(scheduled: bool, device: str) -> None:
    """A scheduler wraps it, so that its mark is there."""
    both = Both(device)
    x, y = data(device)
    assert both.same(x, y)
    for optimizer in (both.optimizer, both.loop_optimizer):
        optimizer.step = twice(type(optimizer).step).__get__(optimizer)  # type: ignore[method-assign]
        if scheduled:
            torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert both.same(x, y)


def test_a_scheduler_leaves_the_fast_path(backend: str, device: str) -> None:
    both = Both(device)
    torch.optim.lr_scheduler.StepLR(both.optimizer, 1)
    assert both.same(*data(device))
    assert both.step.engine == ("fused" if backend == "triton" or device == "cuda" else "cpu")


BATCHES: dict[str, tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], nn.Module]] = {
    "probabilities": (lambda x, y: (x, x[:, :CLASSES].softmax(1)), nn.CrossEntropyLoss()),
    "probabilities, fused": (lambda x, y: (x, x[:, :CLASSES].softmax(1)), fastmlp.CrossEntropyLoss()),
    "probabilities of float64": (lambda x, y: (x, x[:, :CLASSES].softmax(1).double()), nn.CrossEntropyLoss()),
    "uint8": (lambda x, y: (x, y.to(torch.uint8)), nn.CrossEntropyLoss()),
    "one row": (lambda x, y: (x[0], y[0]), nn.CrossEntropyLoss()),
    "several dimensions": (lambda x, y: (x.view(8, 5, 6), y.view(10, 4)[:8]), nn.CrossEntropyLoss()),
    "numbers of several": (lambda x, y: (x.view(8, 5, 6), x.view(8, 5, 6)[..., :CLASSES]), nn.MSELoss()),
    "float64": (lambda x, y: (x, x[:, :CLASSES].double()), fastmlp.MSELoss()),
    "integers": (lambda x, y: (x, (9 * x[:, :CLASSES]).long()), nn.MSELoss()),
    "sparse": (lambda x, y: (x.to_sparse(), y), nn.CrossEntropyLoss()),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.usefixtures("backend")
def test_batches_that_only_torch_takes(name: str, device: str) -> None:
    """Between two that an engine takes."""
    if name in ("float64", "integers") and not checks.takes_any_number():
        pytest.skip("nor does this torch")
    change, loss = BATCHES[name]
    both = Both(device, OPTIMIZERS["adam"], loss)
    x, y = data(device)
    plain = (x, x[:, :CLASSES]) if isinstance(loss, nn.MSELoss) else (x, y)
    assert both.same(*plain)
    engine = both.step.engine
    assert both.same(*change(x, y))
    assert both.step.engine.startswith("eager: the ")
    assert both.same(*plain)
    assert both.step.engine == engine


@pytest.mark.usefixtures("backend")
def test_a_gradient_goes_on_into_what_made_the_batch(device: str) -> None:
    both = Both(device)
    before = nn.Linear(6, 6).to(device)
    x, y = data(device)
    both.step(before(x), y)
    (expected,) = torch.autograd.grad(both.loss(both.twin(before(x)), y), before.weight)
    assert before.weight.grad is not None
    assert error(before.weight.grad, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("backend")
def test_autocast_around(dtype: torch.dtype, device: str) -> None:
    """The losses are as far from float32's as the loop's, which one for all steps would keep from moving."""
    both = Both(device, OPTIMIZERS["adam"])
    x, y = data(device)
    with torch.autocast(device, dtype):
        loss = both.step(x, y)
    assert error(loss, both.loss(both.twin(x), y).detach()) > 1e-6
    both.loop(x, y, lambda: torch.autocast(device, dtype))
    assert both.same(x, y, 2, lambda: torch.autocast(device, dtype), bound=4e-3)
    with torch.autocast(device, dtype):
        losses = [both.step(x, y).item() for _ in range(3)]
        now = both.loss(both.net(x), y).item()
    assert losses[0] > losses[1] > losses[2] > now


@pytest.mark.parametrize("make", [lambda: nn.ReLU(), lambda: nn.LayerNorm(6)])
def test_a_dtype_of_its_own_holds_within_autocast(make: Callable[[], nn.Module], device: str) -> None:
    """By an engine, and by autograd."""
    x, y = data(device)
    losses = []
    for around in (nullcontext(), torch.autocast(device, torch.float16)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 6), make(), nn.Linear(6, CLASSES)).to(device)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        step = fastmlp.TrainStep(net, nn.CrossEntropyLoss(), optimizer, dtype=torch.bfloat16)
        with around:
            losses.append([step(x, y).item() for _ in range(2)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_fit_within_autocast(engine: str, device: str) -> None:
    """As with its dtype, and so is the test."""
    x, y = data(device)
    found = []
    for around, dtype in (
        (nullcontext(), torch.bfloat16),
        (torch.autocast(device, torch.bfloat16), torch.float32),
    ):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES)).to(device)
        with around:
            history = fastmlp.fit(net, (x, y), (x, y), epochs=3, engine=engine, dtype=dtype)
        found.append([(e.train_loss, e.test_loss) for e in history.epochs])
    assert found[0] == found[1]


@pytest.mark.parametrize("engine", fastmlp.engine.choose.ENGINES)
def test_an_optimizer_of_another_net(engine: str, device: str) -> None:
    both, other = Both(device), nn.Linear(6, 2).to(device)
    optimizer = torch.optim.Adam(other.parameters())
    with pytest.raises(ValueError, match="optimizer: expected one over the net's parameters"):
        fastmlp.TrainStep(both.net, both.loss, optimizer)
    with pytest.raises(ValueError, match="optimizer: expected one over the net's parameters"):
        fastmlp.fit(both.net, data(device), optimizer=optimizer, engine=engine)
    both.step(*data(device))
    both.net[0], both.net[2] = copy.deepcopy((both.net[0], both.net[2]))
    with pytest.raises(ValueError, match="but none of its 4 is the net's"):
        both.step(*data(device))


def test_an_optimizer_of_a_loss_that_learns(device: str) -> None:
    class Scaled(nn.CrossEntropyLoss):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return super().forward(input * self.scale, target)

    loss = Scaled().to(device)
    step = fastmlp.TrainStep(Both(device).net, loss, torch.optim.SGD(loss.parameters(), lr=0.1))
    step(*data(device))
    assert loss.scale.item() != 1


def test_what_evaluates_the_loss_itself(device: str) -> None:
    both = Both(device, OPTIMIZERS["lbfgs"])
    both.step(*data(device))
    assert both.step.engine.startswith("eager: LBFGS ")
    x, y = data(device)
    history = fastmlp.fit(both.net, (x, y), epochs=4, optimizer=both.optimizer, batch_size=len(x))
    assert history.epochs[3].train_loss < history.epochs[0].train_loss
    for call in (
        lambda: Both(device, OPTIMIZERS["lbfgs"], dtype=torch.float16),
        lambda: fastmlp.fit(both.net, (x, y), optimizer=both.optimizer, dtype=torch.float16),
    ):
        with pytest.raises(ValueError, match="dtype: expected float32 or bfloat16 for LBFGS"):
            call()
    with pytest.raises(ValueError, match="clip_norm: expected None with LBFGS"):
        fastmlp.fit(both.net, (x, y), optimizer=both.optimizer, clip_norm=1.0)


def test_a_compiled_net_says_so(device: str) -> None:
    both = Both(device)
    compiled = torch.compile(both.net, backend="eager")
    step = fastmlp.TrainStep(compiled, both.loss, both.optimizer)
    step(*data(device))
    assert step.engine == "eager: the model is compiled"


def test_threads_with_a_step_each_do_not_meet(device: str) -> None:
    steps = [Both(device, OPTIMIZERS["adam"]) for _ in range(4)]
    batches = [data(device, 40 + i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda i: steps[i].same(*batches[i], steps=40, bound=1e-4), range(4)))


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_threads_that_share_a_step_take_turns(name: str, device: str) -> None:
    """On one batch, so that the order does not matter."""
    both = Both(device, OPTIMIZERS[name])
    x, y = data(device)
    with ThreadPoolExecutor(4) as pool:
        losses = list(pool.map(lambda _: both.step(x, y).item(), range(80)))
    expected = [both.loop(x, y, nullcontext).item() for _ in range(80)]
    assert error(torch.tensor(sorted(losses)), torch.tensor(sorted(expected))) < 1e-4


def test_a_step_can_be_copied(device: str) -> None:
    both = Both(device, OPTIMIZERS["adam"])
    x, y = data(device)
    both.step(x, y)
    copies = copy.deepcopy(both.step), pickle.loads(pickle.dumps(both.step))
    expected = [both.step(x, y) for _ in range(2)]
    for again in copies:
        assert error(torch.stack([again(x, y) for _ in range(2)]), torch.stack(expected)) < 1e-6


def test_another_optimizer_is_taken_up(device: str) -> None:
    both = Both(device)
    x, y = data(device)
    both.step(x, y)
    before = both.net[0].weight.detach().clone()
    both.step.optimizer = torch.optim.SGD(both.net.parameters(), lr=0.0)
    both.step(x, y)
    assert torch.equal(both.net[0].weight, before)
