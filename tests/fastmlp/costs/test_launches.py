"""What launches take, against what `fastmlp.costs.plans` and `floors` count without any."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp.costs import floors as work
from fastmlp.costs import plans
from fastmlp.costs.launches import _KERNELS, Counted, count, size
from fastmlp.functional import mlp
from fastmlp.kernels.common.arguments import Source, matrix
from fastmlp.kernels.launch import Launch, num_sms, observe, record_launches
from fastmlp.kernels.linear.backward import Asked, linear_backward
from fastmlp.kernels.loss import cross_entropy, mse
from tests.entry_points import entry_points

WIDTHS, ROWS = (24, 16, 20, 4), 40


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with backends.use("triton"):
        yield


def parameters(device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    pairs = list(itertools.pairwise(WIDTHS))
    weights = [torch.randn(n, k, device=device, dtype=dtype, requires_grad=True) for k, n in pairs]
    biases = [torch.randn(n, device=device, dtype=dtype, requires_grad=True) for _, n in pairs]
    return weights, biases


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("plan", "act", "keeps_z"), [("layers", "relu", False), ("layers", "gelu", True)])
def test_a_chain_takes_what_its_plan_counts(
    plan: str, act: str, keeps_z: bool, dtype: torch.dtype, device: str
) -> None:
    weights, biases = parameters(device, dtype)
    x = torch.randn(ROWS, WIDTHS[0], device=device, dtype=dtype)
    with record_launches() as launches:
        y = mlp(x, weights, biases, act, plan=plan)
        y.backward(torch.randn_like(y))
    layers = plans.chain(WIDTHS, act, keeps_z=keeps_z)
    counted = plans.count(plan, layers, ROWS, dtype, num_sms(0)).launches
    found = [count(launch) for launch in launches]
    assert [(one.operations, one.bytes) for one in counted] == [
        (one.work.operations, one.work.bytes) for one in found if one.work is not None
    ]
    assert {one.dtype for one in found} == {str(dtype).removeprefix("torch.")}
    order = [0, 1, 2, 2, 1, 0]
    assert [[w.data_ptr() for w in one.weights] for one in found] == [[weights[i].data_ptr()] for i in order]


@pytest.mark.parametrize("plan", ["whole", "recompute"])
def test_a_whole_net_takes_what_its_plan_counts(plan: str, device: str) -> None:
    """Within the columns that the plan counts with its alignment, and which no argument has."""
    weights, biases = parameters(device, torch.float32)
    x = torch.randn(ROWS, WIDTHS[0], device=device)
    with record_launches() as launches:
        y = mlp(x, weights, biases, plan=plan)
        y.backward(torch.randn_like(y))
    counted = plans.count(plan, plans.chain(WIDTHS), ROWS, torch.float32, num_sms(0)).launches
    works = [count(launch).work for launch in launches]
    assert [one.operations for one in counted] == [one.operations for one in works if one]
    for one, found in zip(counted, works):
        assert found is not None
        assert found.bytes == pytest.approx(one.bytes, rel=0.02)


def recorded_step(
    device: str, optimizer: str = "sgd", squared: bool = False
) -> tuple[list[Counted], nn.Module]:
    layers = [f for k, n in itertools.pairwise(WIDTHS) for f in (nn.Linear(k, n), nn.ReLU())]
    net = fastmlp.Sequential(*layers[:-1]).to(device)
    made = {
        "sgd": lambda: torch.optim.SGD(net.parameters(), lr=0.1),
        "adam": lambda: torch.optim.Adam(net.parameters()),
    }
    loss = fastmlp.MSELoss() if squared else fastmlp.CrossEntropyLoss()
    step = fastmlp.TrainStep(net, loss, made[optimizer]())
    x = torch.randn(ROWS, WIDTHS[0], device=device)
    y = torch.randn(ROWS, WIDTHS[-1], device=device)
    y = y if squared else y.argmax(1)
    with record_launches() as launches:
        step(x, y)
        # While the network lives: a launch knows its table alone.
        return [count(launch) for launch in launches], net


def test_a_training_step(device: str) -> None:
    found, net = recorded_step(device)
    expected = work.training_step(WIDTHS, ROWS, torch.float32)
    assert len(found) == expected.launches
    assert sum(one.work.operations for one in found if one.work) == expected.operations
    assert len(found[-1].weights) == 3  # the update's
    assert found[0].weights[0] is net[0].weight
    with_adam, _ = recorded_step(device, "adam")
    assert found[-1].work is not None
    assert with_adam[-1].work is not None
    parameters = sum(p.numel() for p in net.parameters())
    # Two moments, each read and written.
    assert with_adam[-1].work.bytes - found[-1].work.bytes == 2 * 2 * 4 * parameters


def test_an_epoch_is_its_steps(device: str) -> None:
    """By the persistent kernel, in the interpreter a launch a phase."""
    torch.manual_seed(0)
    net = fastmlp.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to(
        device
    )
    x, y = torch.randn(40, 8, device=device), torch.randint(4, (40,), device=device)
    found: list[Counted] = []

    def observer(launch: Launch) -> None:  # at once: the launch knows its table for as long as that lives
        if launch.name == "epoch_kernel":
            found.append(count(launch))

    with observe(observer):
        fastmlp.fit(net, (x, y), epochs=1, batch_size=32, engine="persistent")
    expected = [work.training_step((8, 16, 16, 4), rows, torch.float32) for rows in (32, 8)]
    assert sum(one.work.operations for one in found if one.work) == sum(one.operations for one in expected)
    # Weights are resident: loaded once and stored once a launch, not read and written by each update.
    resident = 2 * 4 * sum(p.numel() for p in net.parameters())
    moved = sum(one.work.bytes - resident for one in found if one.work)
    assert moved == pytest.approx(sum(one.bytes - resident for one in expected), rel=0.1)
    assert all(len(one.weights) == 3 for one in found)


def test_half_a_backward_is_half_of_it(device: str) -> None:
    grad, x = torch.randn(8, 4, device=device), torch.randn(8, 6, device=device)
    weight, source = torch.randn(4, 6, device=device), Source(matrix(x))

    def of(need_input: bool, need_params: bool) -> tuple[int, int]:
        with record_launches() as launches:
            asked = Asked(need_input, need_params)
            linear_backward(grad, source, weight, asked=asked, dtype=torch.float32, precision="ieee")
        found = count(launches[0]).work
        assert found is not None
        return found.operations, found.bytes

    assert of(True, False) == (2 * 8 * 4 * 6, 4 * (8 * 4 + 4 * 6 + 8 * 6))
    assert of(False, True) == (2 * 8 * 4 * 6, 4 * (8 * 4 + 8 * 6 + 4 * 6))


def test_cross_entropy(device: str) -> None:
    logits, target = torch.randn(16, 10, 1, device=device), torch.randint(10, (16, 1), device=device)
    options = {"reduction": "none", "ignore_index": -100, "label_smoothing": 0.0}
    with record_launches() as launches:
        _, stats = cross_entropy.forward(logits, target, None, z_loss=0.0, **options)
        grad = torch.ones(16, 1, device=device)
        cross_entropy.backward(grad, logits, target, None, stats, torch.empty_like(logits), **options)
    forward, backward = (count(launch).work for launch in launches)
    assert forward is not None
    assert backward is not None
    small = 16 * 8 + 3 * 16 * 4 + 16 * 4  # classes, statistics, losses or their gradients
    assert backward.bytes == 2 * 16 * 10 * 4 + small
    assert 0 <= forward.bytes - (16 * 10 * 4 + small) < 200  # and the programs' sums
    assert forward.operations == backward.operations == 0


def test_the_squared_error(device: str) -> None:
    x, target = torch.randn(16, 10, device=device), torch.randn(16, 10, device=device)
    with record_launches() as launches:
        _, denominator = mse.forward(x, target, None, reduction="mean")
        mse.backward(torch.ones((), device=device), x, target, None, denominator, reduction="mean")
    forward, backward = (count(launch).work for launch in launches)
    assert forward is not None
    assert backward is not None
    assert 0 < forward.bytes - 2 * 640 < 50  # the loss, what it is divided by, the programs' sums
    assert backward.bytes == 3 * 640 + 2 * 4


def test_a_step_with_targets_reads_rows_of_them(device: str) -> None:
    """The head's targets are a matrix then, and nothing else is another."""
    labels, _ = recorded_step(device)
    targets, _ = recorded_step(device, squared=True)
    kinds = [(one.work.operations, one.work.bytes) for one in labels if one.work]
    others = [(one.work.operations, one.work.bytes) for one in targets if one.work]
    heads = [i for i, (a, b) in enumerate(zip(kinds, others)) if a != b]
    assert len(kinds) == len(others) == len(labels)
    ((operations, moved), (same, more)) = kinds[heads[0]], others[heads[0]]
    assert len(heads) == 1
    assert same == operations
    assert more - moved == ROWS * (4 * WIDTHS[-1] - 8)


def test_every_kernel_is_known() -> None:
    """A new one is to be counted too."""
    assert {name for _, name in entry_points()} == _KERNELS.keys()


def test_a_place_in_memory_counts_once() -> None:
    x = torch.zeros(8, 4)
    assert size(x, [x, None, 3], x.t()) == 128
    assert size(x.expand(5, 8, 4)) == 128
    assert size(torch.zeros(())) == 4
    assert size(torch.zeros(0, 4)) == 0
