"""fit against a loop written by hand with torch's own modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import backends
from fastmlp.data import Images, fashion_mnist, synthetic
from fastmlp.training import Epoch, TrainingError, accuracy, fit
from tests.fashion import real_data


def book_net(sequential: type[nn.Sequential], seed: int = 0) -> nn.Sequential:
    """784-256-10 as the book starts it."""
    torch.manual_seed(seed)
    net = sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    for layer in (net[1], net[3]):
        nn.init.normal_(layer.weight, std=0.01)
    return net


def reference(train: Images, epochs: int, device: str, seed: int = 0) -> tuple[list[float], nn.Module]:
    """nn.Sequential, nn.CrossEntropyLoss and SGD, in the documented batch order."""
    net = book_net(nn.Sequential, seed).to(device)
    optimizer, loss = torch.optim.SGD(net.parameters(), lr=0.1), nn.CrossEntropyLoss()
    generator = torch.Generator(device).manual_seed(seed)
    x, y = train.images.to(device), train.labels.to(device)
    curve = []
    for _ in range(epochs):
        order, total = torch.randperm(len(x), generator=generator, device=device), 0.0
        for rows in order.split(256):
            value = loss(net(x[rows].float() / 255), y[rows])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item() * len(rows)
        curve.append(total / len(x))
    return curve, net


def small() -> tuple[Images, Images]:
    return synthetic(train=2 * 256 + 96, test=200)


def test_curve_is_the_references(device: str) -> None:
    """The same seed and batch order by torch's modules, on a subset of the real data, tail included."""
    train, test = fashion_mnist(real_data())
    train = train.subset(8 * 256 + 96)
    curve, net = reference(train, 3, device)
    ours = book_net(fastmlp.Sequential).to(device)
    history = fit(ours, train, test.subset(1000), epochs=3)
    for epoch, expected in zip(history.epochs, curve):
        assert abs(epoch.train_loss / expected - 1) < 1e-3
    theirs = accuracy(net, test.subset(1000))
    assert abs(theirs - history.epochs[-1].test_accuracy) < 0.02  # type: ignore[operator]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("backend", "engine"),
    [("torch", "eager"), ("auto", "auto"), ("triton", "fused"), ("triton", "persistent")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_curve_in_every_dtype(dtype: torch.dtype, backend: str, engine: str, device: str) -> None:
    """Three epochs follow torch's in float32: within 1 %, in half precision 3 %; the loss falls tenfold."""
    y = torch.randint(10, (5 * 64 + 32,), device=device)
    x = torch.randn(10, 100, device=device)[y] + torch.randn(len(y), 100, device=device)

    def train(sequential: type[nn.Sequential], precision: torch.dtype, by: str) -> list[float]:
        torch.manual_seed(0)
        net = sequential(nn.Linear(100, 48), nn.ReLU(), nn.Linear(48, 10)).to(device)
        loss = nn.CrossEntropyLoss() if sequential is nn.Sequential else None
        history = fit(net, (x, y), epochs=3, batch_size=64, lr=0.2, loss=loss, dtype=precision, engine=by)
        assert all(parameter.dtype == torch.float32 for parameter in net.parameters())
        return [epoch.train_loss for epoch in history.epochs]

    curve = train(nn.Sequential, torch.float32, "eager")
    assert curve[-1] < curve[0] / 10
    with backends.use(backend):
        for ours, theirs in zip(train(fastmlp.Sequential, dtype, engine), curve):
            assert abs(ours / theirs - 1) < (0.01 if dtype == torch.float32 else 0.03)


@pytest.mark.deep
def test_the_book_on_the_synthetic_set(device: str) -> None:
    """The embedded set is hard enough to show that training works: 80 to 95 % after ten epochs."""
    history = fit(book_net(fastmlp.Sequential), *synthetic(), device=device, dtype=torch.bfloat16)
    tested = [epoch.test_accuracy for epoch in history.epochs]
    assert tested[0] < 0.6  # type: ignore[operator]
    assert 0.80 < tested[-1] < 0.95  # type: ignore[operator]


@pytest.mark.parametrize(
    ("backend", "engine"),
    [("torch", "eager"), ("auto", "auto"), ("triton", "fused"), ("triton", "persistent")],
)
def test_two_runs_are_equal_to_the_bit(backend: str, engine: str, device: str) -> None:
    x, y = torch.randn(2 * 64 + 32, 100, device=device), torch.randint(10, (2 * 64 + 32,), device=device)
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        net = fastmlp.MLP(100, [48, 10], device=device)
        with backends.use(backend):
            fit(net, (x, y), epochs=1, batch_size=64, engine=engine)
        nets.append(net)
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


def test_history(device: str) -> None:
    train, test = small()
    net = book_net(fastmlp.Sequential).eval()
    seen: list[Epoch] = []
    counted: list[int] = []
    callbacks = {"on_epoch": seen.append, "on_batch": counted.append}
    history = fit(net, train, test, epochs=2, device=device, engine="fused", **callbacks)
    assert history.epochs == seen
    assert counted == [256, 256, 96] * 2
    assert [epoch.number for epoch in seen] == [1, 2]
    assert all(0 <= epoch.train_accuracy <= 1 and epoch.examples_per_second > 0 for epoch in seen)
    assert seen[-1].test_accuracy == accuracy(net, test)
    assert history.seconds >= sum(epoch.seconds for epoch in seen)
    assert not net.training


def test_tensors_and_an_optimizer(device: str) -> None:
    """Any pair of tensors, any optimizer, no test set."""
    x, y = torch.randn(100, 5, device=device), torch.randint(3, (100,), device=device)
    net = fastmlp.MLP(5, [16, 3], device=device)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    history = fit(net, (x, y), epochs=20, batch_size=32, optimizer=optimizer)
    assert history.epochs[-1].test_accuracy is None
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss


def test_a_loss_that_is_no_number_stops(device: str) -> None:
    train, _ = small()
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1"):
        fit(book_net(fastmlp.Sequential), train, epochs=3, lr=1e30, device=device)


def test_bad_input() -> None:
    net = fastmlp.MLP(5, [3])
    x, y = torch.randn(10, 5), torch.randint(3, (10,))
    with pytest.raises(ValueError, match=r"train: expected labels \(10,\) torch\.int64, got \(9,\)"):
        fit(net, (x, y[:9]))
    with pytest.raises(ValueError, match=r"train: expected labels .* got \(10,\) torch\.float32"):
        fit(net, (x, y.float()))
    with pytest.raises(ValueError, match="train: expected at least one example"):
        fit(net, (x[:0], y[:0]))
    for wrong in (-1, 3):
        labels = y.clone()
        labels[7] = wrong
        with pytest.raises(ValueError, match=r"train: expected labels from 0 to 2, got"):
            fit(net, (x, labels))
        fit(net, (x, labels), epochs=1, loss=fastmlp.CrossEntropyLoss(ignore_index=wrong))
    with pytest.raises(ValueError, match=r"net: expected an output for each example, got \(6,\)"):
        fit(nn.Sequential(net, nn.Flatten(0)), (x, y))
    with pytest.raises(ValueError, match=r"dtype: expected one of torch\.float32, .* got torch\.float64"):
        fit(net, (x, y), dtype=torch.float64)
    with pytest.raises(ValueError, match=r"batch_size: expected a whole number, got 16\.0"):
        fit(net, (x, y), batch_size=16.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"epochs: expected a whole number, got 2\.0"):
        fit(net, (x, y), epochs=2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        fit(net, (x, y), batch_size=0)
    with pytest.raises(ValueError, match="epochs: expected at least 0, got -1"):
        fit(net, (x, y), epochs=-1)
