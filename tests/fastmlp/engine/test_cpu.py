"""The CPU's training steps against nn.Sequential, nn.CrossEntropyLoss and torch.optim."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp.backends import onednn
from fastmlp.engine.cpu import CpuExecutor
from fastmlp.engine.network import Network, recognise
from tests.classifiers import ACTIVATIONS, OPTIMIZERS
from tests.numerics import assert_as_good_as_torch

ROWS = (33, 7, 64, 1)  # tails, and a batch larger than those before


def classifier(widths: tuple[int, ...], act: Callable[[], nn.Module] = nn.ReLU, bias: bool = True):
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers += [nn.Linear(k, n, bias), act()]
    return nn.Sequential(*layers[:-1])


def network_of(net: nn.Module, loss: nn.Module) -> Network:
    found = recognise(net, loss)
    assert isinstance(found, Network), found
    return found


def batches(widths: tuple[int, ...], steps: int = 6) -> list[tuple[Tensor, Tensor]]:
    return [
        (torch.randn(n, widths[0]), torch.randint(widths[-1], (n,)))
        for n in (ROWS[i % 4] for i in range(steps))
    ]


def train(net: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, data: list) -> list[Tensor]:
    """Ordinary steps; the losses."""
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        value = loss(net(x.to(next(net.parameters()).dtype)), y)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return losses


def compare(
    widths: tuple[int, ...],
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = OPTIMIZERS["sgd"],
    act: Callable[[], nn.Module] = nn.ReLU,
    bias: bool = True,
    loss: nn.Module | None = None,
    data: list[tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Losses and parameters after several steps: ours, torch's, and torch's in float64."""
    loss, data = loss or nn.CrossEntropyLoss(), data or batches(widths)
    theirs = classifier(widths, act, bias)
    ours, exact = copy.deepcopy(theirs), copy.deepcopy(theirs).double()
    optimizers = [make(list(net.parameters())) for net in (theirs, ours, exact)]
    executor = CpuExecutor(network_of(ours, loss), optimizers[1], torch.float32)
    mine = [executor.step(x, y).clone() for x, y in data]
    torchs = train(theirs, loss, optimizers[0], data)
    doubles = train(exact, copy.deepcopy(loss).double(), optimizers[2], data)
    roundings = 2 * len(data) * len(widths)
    for a, b, c in zip(mine, torchs, doubles):
        assert_as_good_as_torch(a, b, c, "loss", roundings)
    for a, b, c in zip(ours.parameters(), theirs.parameters(), exact.parameters()):
        assert_as_good_as_torch(a, b, c, "parameter", roundings)


def use_library(monkeypatch: pytest.MonkeyPatch, library: str, dtype: torch.dtype) -> None:
    """Products as with the processor for which this library is chosen."""
    for name in ("FORWARD_IN_STEPS", "INPUT_GRAD_IN_STEPS"):
        monkeypatch.setattr(onednn, name, dtype if library == "oneDNN" else None)
    monkeypatch.setattr(onednn, "LEAST_WORK", dict.fromkeys(onednn.LEAST_WORK, 1))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bias", [True, False])
def test_optimizers(name: str, bias: bool) -> None:
    compare((13, 31, 5), OPTIMIZERS[name], bias=bias)


@pytest.mark.parametrize(
    "options", [{"maximize": True}, {"momentum": 0.9, "maximize": True, "weight_decay": 0.1}]
)
def test_sgd_that_climbs(options: dict) -> None:
    compare((13, 31, 5), lambda p: torch.optim.SGD(p, lr=0.01, **options))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activations(act: Callable[[], nn.Module]) -> None:
    compare((13, 31, 17, 5), act=act)


@pytest.mark.parametrize("widths", [(7, 3), (7, 1), (1, 2, 1, 40), (5, *[9] * 8, 4), (784, 128, 10)], ids=str)
@pytest.mark.parametrize("library", ["MKL", "oneDNN"])
def test_shapes(widths: tuple[int, ...], library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One layer, one class, many classes, deep; by either library, whichever this processor would have."""
    use_library(monkeypatch, library, torch.float32)
    data = batches(widths, 3)
    if widths[0] == 784:
        data.append((torch.rand(100, 784), torch.randint(10, (100,))))
    compare(widths, data=data)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(weight=torch.rand(5) + 0.1),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(ignore_index=2),
    ],
)
def test_losses(loss: nn.Module) -> None:
    compare((13, 31, 5), lambda p: torch.optim.SGD(p, lr=1e-3), loss=loss)


def test_ignored_rows_and_z_loss() -> None:
    data = batches((13, 31, 5))
    for _, y in data[1:]:
        y[::2] = -100
    compare((13, 31, 5), OPTIMIZERS["momentum"], data=data)
    net = classifier((13, 31, 5))
    loss, again = fastmlp.CrossEntropyLoss(z_loss=0.1), copy.deepcopy(net)
    executor = CpuExecutor(
        network_of(again, loss), OPTIMIZERS["sgd"](list(again.parameters())), torch.float32
    )
    torchs = train(net, loss, OPTIMIZERS["sgd"](list(net.parameters())), data)
    for (x, y), expected in zip(data, torchs):  # of the batch of one row, which is ignored, NaN
        torch.testing.assert_close(executor.step(x, y), expected, equal_nan=True)
    for a, b in zip(again.parameters(), net.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("onednn_there", [True, False])
def test_huge_logits_and_nan(onednn_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of 1e4 are right, and a NaN in the first weights reaches the loss."""
    if not onednn_there:
        monkeypatch.setattr(onednn, "PRODUCT", None)
    for classes in (10, 100):
        net = classifier((784, 128, classes))
        with torch.no_grad():
            net[2].weight.mul_(1e5)
        x, y = torch.rand(128, 784), torch.randint(classes, (128,))
        expected = nn.CrossEntropyLoss()(net(x), y)
        assert expected > 1e3
        network = network_of(net, nn.CrossEntropyLoss())
        executor = CpuExecutor(network, torch.optim.SGD(net.parameters(), lr=0.0), torch.float32)
        torch.testing.assert_close(executor.step(x, y), expected.detach())
        with torch.no_grad():
            net[0].weight[3, 4] = float("nan")
        assert executor.step(x, y).isnan()


def pair(name: str = "momentum", dtype: torch.dtype = torch.float32, widths: tuple[int, ...] = (13, 31, 5)):
    """A net, its twin, an optimizer of each, and the twin's executor."""
    net = classifier(widths)
    twin = copy.deepcopy(net)
    optimizers = [OPTIMIZERS[name](list(n.parameters())) for n in (net, twin)]
    return net, twin, optimizers, CpuExecutor(network_of(twin, nn.CrossEntropyLoss()), optimizers[1], dtype)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_ordinary_steps_in_between(name: str) -> None:
    """The optimizer's state is torch's: ordinary steps go on from ours and ours from them."""
    net, twin, (theirs, ours), executor = pair(name)
    data, loss = batches((13, 31, 5), 9), nn.CrossEntropyLoss()
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (theirs, ours)]
    for i, one in enumerate(data):
        train(net, loss, theirs, [one])
        if i % 3 == 2:
            train(twin, loss, ours, [one])
        else:
            executor.step(*one)
        for schedule in schedules:
            schedule.step()  # a warning here would be an error
    for a, b in zip(twin.parameters(), net.parameters()):
        torch.testing.assert_close(a, b)
    mine, torchs = ours.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == torchs["param_groups"]
    for key, state in torchs["state"].items():
        for field, value in state.items():
            torch.testing.assert_close(mine["state"][key][field], value)


def test_hooks_and_a_frozen_part_of_the_optimizer() -> None:
    net, twin, _, _ = pair()
    seen = []
    made = [torch.optim.SGD(list(n.parameters())[:2], lr=0.1) for n in (net, twin)]
    made[1].register_step_post_hook(lambda *_: seen.append(1))
    data = batches((13, 31, 5), 3)
    executor = CpuExecutor(network_of(twin, nn.CrossEntropyLoss()), made[1], torch.float32)
    for x, y in data:
        executor.step(x, y)
    train(net, nn.CrossEntropyLoss(), made[0], data)
    assert len(seen) == 3
    for a, b in zip(twin.parameters(), net.parameters()):
        torch.testing.assert_close(a, b)


def test_versions_and_sums() -> None:
    _, twin, _, executor = pair()
    versions = [p._version for p in twin.parameters()]
    data, total, right = batches((13, 31, 5)), 0.0, 0
    for x, y in data:
        right += int((twin(x).argmax(1) == y).sum())
        total += float(executor.step(x, y)) * len(y)
    assert all(p._version > v for p, v in zip(twin.parameters(), versions))
    assert executor.sums.dtype == torch.float64
    torch.testing.assert_close(executor.sums, torch.tensor([total, right]).double())


@pytest.mark.parametrize("flatten", [True, False])
def test_bytes_rows_and_layouts(flatten: bool) -> None:
    """uint8 stands for x / 255, rows pick, strides do not matter, nor does the batch that was before."""
    net = classifier((12, 20, 4))
    model = nn.Sequential(nn.Flatten(), *net) if flatten else net
    twin = copy.deepcopy(model)
    executor = CpuExecutor(
        network_of(twin, nn.CrossEntropyLoss()), OPTIMIZERS["sgd"](list(twin.parameters())), torch.float32
    )
    optimizer, loss = OPTIMIZERS["sgd"](list(model.parameters())), nn.CrossEntropyLoss()
    shape = (50, 3, 4) if flatten else (50, 12)
    pixels, y, rows = torch.randint(256, shape).byte(), torch.randint(4, (50,)), torch.randperm(50)[:23]
    strided = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2]
    assert not strided.is_contiguous()
    for x in (pixels, strided, pixels.flip(0), strided.contiguous()):
        wide = x.float() / 255 if x.dtype == torch.uint8 else x.float()
        for pick in (rows, None):
            batch = (wide, y) if pick is None else (wide[pick], y[pick])
            (expected,) = train(model, loss, optimizer, [batch])
            torch.testing.assert_close(executor.step(x, y, pick), expected)
    for a, b in zip(twin.parameters(), model.parameters()):
        torch.testing.assert_close(a, b)


def test_no_rows() -> None:
    """A NaN loss and a gradient of 0, as torch's; the sums stay numbers."""
    net, twin, (theirs, _), executor = pair("momentum")
    full, empty = batches((13, 31, 5), 1), [(torch.zeros(0, 13), torch.zeros(0, dtype=torch.long))]
    train(net, nn.CrossEntropyLoss(), theirs, full + empty)
    executor.step(*full[0])
    before = executor.sums.clone()
    assert executor.step(*empty[0]).isnan()
    assert torch.equal(executor.sums, before)
    for a, b in zip(twin.parameters(), net.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("library", ["MKL", "oneDNN"])
def test_bfloat16(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to float64 as autocast is."""
    use_library(monkeypatch, library, torch.bfloat16)
    net, twin, (theirs, _), executor = pair(name, torch.bfloat16, (64, 128, 10))
    exact, data, loss = copy.deepcopy(net).double(), batches((64, 128, 10)), nn.CrossEntropyLoss()
    doubles = train(exact, loss, OPTIMIZERS[name](list(exact.parameters())), data)
    mine = [executor.step(x, y) for x, y in data]
    with torch.autocast("cpu", torch.bfloat16):
        torchs = train(net, loss, theirs, data)
    for a, b, c in zip(mine, torchs, doubles):
        assert a.dtype == torch.float32
        assert abs(a - c) <= 2 * abs(b - c) + 0.01 * c
    for a, b, c in zip(twin.parameters(), net.parameters(), exact.parameters()):
        assert (a - c).norm() <= 2 * (b - c).norm() + 1e-3 * c.norm()


X, Y = torch.zeros(6, 13), torch.zeros(6, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((X[:, :12], Y), ValueError, r"x: expected \(N, 13\), got \(6, 12\)"),
        ((X[0], Y), ValueError, r"x: expected .* got \(13,\)"),
        ((X.long(), Y), TypeError, "x: expected torch.uint8 or torch.float32"),
        ((X, Y[:5]), ValueError, r"y: expected \(6,\).* got \(5,\)"),
        ((X, Y.int()), TypeError, r"y: expected torch\.int64"),
        ((X, Y, Y.int()), ValueError, r"rows: expected \(B,\)"),
        ((X, Y, torch.tensor([6])), (IndexError, RuntimeError), "index"),
        ((X, Y + 5), IndexError, "out of bounds"),
        ((X, Y - 1), IndexError, "out of bounds"),
        ((X.to("meta"), Y), RuntimeError, "x: expected on cpu"),
    ],
)
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_bad_input_leaves_the_parameters_alone(
    arguments: tuple, error: type[Exception], match: str, name: str
) -> None:
    _, twin, _, executor = pair(name)
    executor.step(X, Y)
    before, sums = [p.detach().clone() for p in twin.parameters()], executor.sums.clone()
    with pytest.raises(error, match=match):
        executor.step(*arguments)
    assert all(map(torch.equal, twin.parameters(), before))
    assert torch.equal(executor.sums, sums)


def test_dtypes() -> None:
    _, twin, (_, ours), _ = pair()
    with pytest.raises(ValueError, match=r"dtype: expected torch\.float32 .* got torch\.float16"):
        CpuExecutor(network_of(twin, nn.CrossEntropyLoss()), ours, torch.float16)


@pytest.mark.parametrize("classes", [5, 40])
def test_what_counts_as_right(classes: int) -> None:
    """As argmax says: the first of equals, and a NaN before any number; on demand alone."""
    net = nn.Sequential(nn.Linear(4, classes, bias=False))
    with torch.no_grad():
        net[0].weight.zero_()[1, 0] = 1.0
        net[0].weight[3, 0] = 1.0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    executor = CpuExecutor(network_of(net, nn.CrossEntropyLoss()), optimizer, torch.float32)
    x = torch.tensor([[1.0, 0, 0, 0], [1, 0, 0, 0], [-1, 0, 0, 0], [float("nan"), 0, 0, 0]])
    y = torch.tensor([1, 3, 0, 0])
    right = net(x).argmax(1) == y
    assert right.tolist() == [True, False, True, True]
    executor.step(x, y, count=False)
    assert not executor.sums.any()
    executor.step(x, y)
    assert executor.sums[1] == 3
