"""Deterministic: torch's switch holds through all that this library does, and a seed gives the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastmlp
from fastmlp import functional
from fastmlp.kernels.launch import record_launches
from tests.classifiers import OPTIMIZERS

#: ATen's ops that torch.use_deterministic_algorithms says have no deterministic form on a GPU, or only one
#: that is slower by far; of those that it names the ones that a dense net could come by.
UNSAFE = {
    "nll_loss2d_forward", "nll_loss2d", "put_", "histc", "bincount", "median", "kthvalue", "scatter_reduce",
    "index_copy", "index_copy_", "_index_put_impl_", "cumsum", "max_unpool2d", "grid_sampler_2d",
}  # fmt: skip
#: Ops that torch makes deterministic when asked, by adding in a fixed order: allowed, and nothing raises.
ORDERED = {"scatter_add_", "scatter_add", "index_add", "index_add_", "index_put", "index_put_", "gather"}


class Ops(TorchDispatchMode):
    """The names of the ops that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic() -> Iterator[None]:
    """torch's switch, and fresh memory full of NaN; a warning is an error."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton.runtime.interpreter")
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def net(device: str, dtype: torch.dtype = torch.float32, dropout: float = 0.3) -> fastmlp.Sequential:
    return fastmlp.Sequential(
        nn.Linear(12, 17), nn.GELU(), nn.Dropout(dropout), nn.Linear(17, 17), nn.PReLU(), nn.Linear(17, 10)
    ).to(device, dtype)


def gradients(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Forward, backward and double backward of a net with dropout and of every form of the loss."""
    torch.manual_seed(3)
    model = net(device, dtype)
    x = torch.randn(17, 12, device=device).to(dtype).requires_grad_()
    target = torch.randint(10, (17,), device=device)
    found: list[Tensor] = []
    params = list(model.parameters())
    for options in ({"label_smoothing": 0.1}, {"weight": torch.rand(10, device=device).to(dtype)}):
        logits = model(x)
        loss = functional.cross_entropy(logits, target, **options)
        found += [logits, loss, *torch.autograd.grad(loss, [x, *params])]
    first = torch.autograd.grad(functional.cross_entropy(model(x), target), [x, *params], create_graph=True)
    second = torch.autograd.grad(first[0].float().square().sum(), params, allow_unused=True)
    found += [*first, *(t for t in second if t is not None)]
    soft = torch.softmax(torch.randn(17, 10, device=device), 1).to(dtype)
    fused = functional.linear_cross_entropy(x, model[0].weight, target)
    loss = functional.cross_entropy(model(x), soft, reduction="none").sum() + fused
    found += [loss, *torch.autograd.grad(loss, [x, *params])]
    return [t.detach().clone() for t in found]


def trained(engine: str, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """An epoch of `fit`, or steps by `TrainStep`, and what the parameters and the optimizer's state are."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 17), nn.Tanh(), nn.Linear(17, 10)).to(device)
    if engine == "eager":
        model = net(device)
    x, y = torch.randn(53, 12, device=device), torch.randint(10, (53,), device=device)
    optimizer = OPTIMIZERS["adamw"](list(model.parameters()))
    if engine == "step":
        step = fastmlp.TrainStep(model, fastmlp.CrossEntropyLoss(), optimizer, dtype=dtype)
        losses = [step(x[i : i + 37], y[i : i + 37]) for i in range(0, 53, 37)]
        return [*losses, *(p.detach().clone() for p in model.parameters())]
    history = fastmlp.fit(
        model, (x, y), epochs=1, batch_size=37, optimizer=optimizer, seed=5, engine=engine, dtype=dtype
    )
    states = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    losses = [torch.tensor([epoch.train_loss, epoch.train_accuracy]) for epoch in history.epochs]
    return [*losses, *(p.detach().clone() for p in model.parameters()), *states]


def same(run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """What two runs give, which must be the same bits."""
    first, second = run(), run()
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"result {i}"
        assert a.isfinite().all(), f"result {i}"
    return first


def engines(backend: str, device: str) -> list[str]:
    if backend == "torch":
        return ["auto", "eager", "step"]
    return ["auto", "eager", "fused", "persistent", "step"]


@pytest.mark.few(2)
@pytest.mark.feature("Determinism", "one seed, the same bits: forward, gradients, dropout")
def test_gradients_twice(backend: str, dtype: torch.dtype, device: str) -> None:
    same(lambda: gradients(device, dtype))


@pytest.mark.deep
@pytest.mark.feature("Determinism", "one seed, the same bits: training by every engine", dtype="float32")
def test_training_twice(backend: str, device: str) -> None:
    for engine in engines(backend, device):
        same(lambda: trained(engine, device))  # noqa: B023
    same(lambda: trained("step", device, torch.bfloat16))


@pytest.mark.few(2)
@pytest.mark.feature("Determinism", "torch.use_deterministic_algorithms: forward to double backward")
def test_switch(backend: str, dtype: torch.dtype, device: str, request: pytest.FixtureRequest) -> None:
    """No error, no warning, the same numbers: nothing that is never written is ever read."""
    expected = gradients(device, dtype)
    request.getfixturevalue("deterministic")
    for i, (a, b) in enumerate(zip(gradients(device, dtype), expected, strict=True)):
        if device == "cpu" and dtype != torch.float64:  # on a GPU cuBLAS may take another algorithm
            assert torch.equal(a, b), f"result {i}"


@pytest.mark.few(1)
@pytest.mark.feature(
    "Determinism", "torch.use_deterministic_algorithms: training by every engine", dtype="float32"
)
def test_switch_training(backend: str, device: str, request: pytest.FixtureRequest) -> None:
    expected = [trained(engine, device) for engine in engines(backend, device)]
    request.getfixturevalue("deterministic")
    for engine, wanted in zip(engines(backend, device), expected):
        found = trained(engine, device)
        assert all(t.isfinite().all() for t in found), engine
        if device == "cpu":
            assert all(map(torch.equal, found, wanted)), engine


@pytest.mark.feature("Determinism", "no op without a deterministic form on a GPU", dtype="float32")
def test_ops(backend: str, device: str) -> None:
    """What ATen is asked for, here as there: an op that would raise on a GPU is seen on a CPU."""
    with Ops() as ops, record_launches():
        gradients(device, torch.float32)
        for engine in ("auto", "step"):
            trained(engine, device)
    assert {"mm", "addmm"} & ops.names
    assert not ops.names & UNSAFE, f"{ops.names & UNSAFE}"
    assert ops.names & ORDERED <= {"gather", "scatter_add_", "index_put_"}


def test_the_list_of_ops_sees_one(device: str) -> None:
    with Ops() as ops:
        torch.nn.functional.nll_loss(torch.randn(2, 3, 4, device="cpu"), torch.zeros(2, 4, dtype=torch.int64))
    assert ops.names & UNSAFE


@pytest.mark.deep
@pytest.mark.feature("Determinism", "one seed, the same bits: whatever the default engine", backend="auto")
def test_default_twice(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU its own ways: the loss of many classes, oneDNN, the engine; by one thread and by two."""
    monkeypatch.setattr("fastmlp.functional.loss._CPU_ELEMENTS", 1)
    monkeypatch.setattr("fastmlp.functional.loss._MANY_ROWS", 4)
    monkeypatch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 1)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            same(lambda: gradients(device, torch.float32))
            same(lambda: trained("auto", device))
            same(lambda: many_classes(device))
    finally:
        torch.set_num_threads(threads)


def many_classes(device: str) -> list[Tensor]:
    torch.manual_seed(3)
    x = torch.randn(64, 700, device=device, requires_grad=True)
    loss = functional.cross_entropy(x, torch.randint(700, (64,), device=device))
    return [loss.detach(), *torch.autograd.grad(loss, x)]
