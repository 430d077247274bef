"""Deterministic: torch's switch holds through dropout and training, and a seed gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastmlp
from fastmlp import functional
from fastmlp.kernels.launch import record_launches
from tests.classifiers import OPTIMIZERS
from tests.compatibility.laws.test_repeatable import switch
from tests.compatibility.operations import first, second

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


def net(device: str, dtype: torch.dtype = torch.float32, dropout: float = 0.3) -> fastmlp.Sequential:
    return fastmlp.Sequential(
        nn.Linear(12, 17), nn.GELU(), nn.Dropout(dropout), nn.Linear(17, 17), nn.PReLU(), nn.Linear(17, 10)
    ).to(device, dtype)


def gradients(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Of a net with dropout, to the second order."""
    torch.manual_seed(3)
    model = net(device, dtype)
    x, target = torch.randn(17, 12, device=device).to(dtype), torch.randint(10, (17,), device=device)
    return second(lambda *_: functional.cross_entropy(model(x), target), list(model.parameters()))


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


def twice(run: Callable[[], list[Tensor]], device: str) -> None:
    """The same bits, the second time under torch's switch; with it cuBLAS may take another algorithm."""
    with switch() if device == "cuda" else nullcontext():
        first = run()
    with switch():
        second = run()
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"result {i}"
        assert a.isfinite().all(), f"result {i}"


def engines(backend: str, device: str) -> list[str]:
    if backend == "torch":
        return ["auto", "eager", "step"]
    return ["auto", "eager", "fused", "persistent", "step"]


@pytest.mark.few(2)
@pytest.mark.feature("Determinism", "one seed, the same bits: dropout")
def test_dropout_twice(backend: str, dtype: torch.dtype, device: str) -> None:
    twice(partial(gradients, device, dtype), device)


@pytest.mark.few(1)
@pytest.mark.feature(
    "Determinism", "torch.use_deterministic_algorithms: training by every engine", dtype="float32"
)
def test_training_twice(backend: str, device: str) -> None:
    for engine in engines(backend, device):
        twice(partial(trained, engine, device), device)
    twice(partial(trained, "step", device, torch.bfloat16), device)


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
@pytest.mark.usefixtures("ways_of_auto")
@pytest.mark.feature("Determinism", "one seed, the same bits: whatever the default engine", backend="auto")
def test_default_twice(device: str) -> None:
    """On a CPU its own ways: the loss of many classes, oneDNN, the engine; by one thread and by two."""
    for count in (1, 2):
        torch.set_num_threads(count)
        for run in (trained, many_classes):
            twice(partial(run, "auto", device), device)


def many_classes(engine: str, device: str) -> list[Tensor]:
    torch.manual_seed(3)
    x = torch.randn(64, 700, device=device, requires_grad=True)
    return first(lambda x: functional.cross_entropy(x, torch.zeros(64, device=device).long()), [x])
