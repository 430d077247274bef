"""Nets that begin with a `Dequantize`: every engine trains them as autograd does on the dequantized data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp.engine import choose
from fastmlp.engine.network import Network, recognise
from fastmlp.kernels.launch import record_launches
from tests.classifiers import OPTIMIZERS, Run
from tests.numerics import assert_as_good_as_torch

#: A number, and tensors of one element a feature.
NUMBERS = {
    "scale": (1 / 255, None),
    "shift": (1 / 128, -0.4),
    "features": (torch.linspace(0.002, 0.01, 24), torch.linspace(-0.5, 0.5, 24)),
}


def make(numbers: str, device: str, optimizer: str = "sgd") -> Run:
    torch.manual_seed(1)
    net = fastmlp.Sequential(
        nn.Flatten(), fastmlp.Dequantize(*NUMBERS[numbers]), nn.Linear(24, 33), nn.GELU(), nn.Linear(33, 5)
    ).to(device)
    return Run(net, fastmlp.CrossEntropyLoss(), OPTIMIZERS[optimizer](list(net.parameters())))


def data(kind: torch.dtype, device: str, rows: int = 90) -> tuple[Tensor, Tensor]:
    low = 0 if kind == torch.uint8 else -128
    x = torch.randint(low, low + 256, (rows, 4, 6), dtype=kind, device=device)
    return x, torch.randint(5, (rows,), device=device)


def by_autograd(run: Run, x: Tensor, y: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """An ordinary step on what the integers stand for."""
    with backends.use("torch"), torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        value = run.loss(run.net(x), y)
    run.optimizer.zero_grad()
    value.backward()
    run.optimizer.step()


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("kind", [torch.uint8, torch.int8], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps(backend: str, numbers: str, kind: torch.dtype, dtype: torch.dtype, device: str) -> None:
    """Three steps, each parameter against float64 and torch's own error."""
    ours = make(numbers, device, "momentum")
    theirs, exact = ours.copy(), ours.double()
    start = ours.parameters()
    x, y = data(kind, device, 60)
    with backends.use(backend):
        step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer, dtype=dtype)
        for _ in range(3):
            with record_launches() as launches:
                step(x, y)
            by_autograd(theirs, x, y, dtype)
            by_autograd(exact, x, y)
    assert step.engine == ("fused" if backend == "triton" or device == "cuda" else "cpu")
    assert len(launches) == (3 if step.engine == "fused" else 0)
    for before, a, b, c in zip(start, ours.parameters(), theirs.parameters(), exact.parameters()):
        eps = torch.finfo(dtype).eps
        change = [t.double() - before.double() for t in (a, b, c)]
        bound = 2 * (change[1] - change[2]).norm() + eps * change[2].norm() + 1e-6 * before.norm()
        assert (change[0] - change[2]).norm() <= bound
    assert_as_good_as_torch(ours.parameters()[0], theirs.parameters()[0], exact.parameters()[0], roundings=3)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_fit(numbers: str, backend: str, device: str) -> None:
    """Every engine on gathered rows, tail included, ends where the eager one does."""
    train, test = data(torch.int8, device), data(torch.int8, device, 31)
    found = {}
    with backends.use(backend):
        for engine in ("eager", "fused", "persistent"):
            run = make(numbers, device)
            if engine == "persistent" and (numbers != "scale" or backend == "auto"):
                continue
            history = fastmlp.fit(
                run.net, train, test, epochs=2, batch_size=40, optimizer=run.optimizer, engine=engine
            )
            found[engine] = [*run.parameters(), torch.tensor([e.train_loss for e in history.epochs])]
            assert history.epochs[-1].test_accuracy is not None
    eager = found.pop("eager")
    assert found
    for results in found.values():
        for a, b in zip(results, eager):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_persistent_kernel_says_what_it_cannot(device: str) -> None:
    run = make("shift", device)
    with (
        backends.use("triton"),
        pytest.raises(ValueError, match="dequantizes with a shift or a scale for each"),
    ):
        fastmlp.fit(run.net, data(torch.uint8, device), engine="persistent", optimizer=run.optimizer)
    found = choose.recognise(run.net, run.loss, run.optimizer, torch.float32)
    assert isinstance(found, Network)
    assert found.flatten
    assert found.shift is not None


def test_uint8_without_one_still_stands_for_x_over_255(device: str) -> None:
    x, y = data(torch.uint8, device)
    plain, scaled = make("scale", device), make("scale", device)
    plain.net = fastmlp.Sequential(nn.Flatten(), *plain.net[2:])
    losses = [
        fastmlp.TrainStep(run.net, run.loss, OPTIMIZERS["sgd"](list(run.net.parameters())))(x, y)
        for run in (plain, scaled)
    ]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    x, y = data(torch.int8, device)  # of which it is not known what they stand for
    score = fastmlp.training.evaluate(plain.net, (x, y))
    assert score == fastmlp.training.evaluate(plain.net, (x.float(), y))
    assert fastmlp.fit(scaled.net, (x.int(), y), epochs=1).epochs  # what a Dequantize would take as a float


def test_what_is_no_network(device: str) -> None:
    wrong = fastmlp.Sequential(fastmlp.Dequantize(torch.ones(7)), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert "another number of features" in str(recognise(wrong, nn.CrossEntropyLoss()))
    wrong[0].scale = torch.ones((), requires_grad=True)
    assert "wants a gradient" in str(recognise(wrong, nn.CrossEntropyLoss()))
    run = make("scale", device)
    with pytest.raises(
        TypeError, match=r"x: expected torch\.uint8 or torch\.int8 to dequantize, got .*int32"
    ):
        fastmlp.TrainStep(run.net, run.loss, run.optimizer)(
            data(torch.int8, device)[0].int(), data(torch.int8, device)[1]
        )
