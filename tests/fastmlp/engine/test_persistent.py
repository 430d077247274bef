"""The persistent engine: bitwise the steps of the fused one, and a launch a phase in the interpreter."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import backends
from fastmlp.engine import network
from fastmlp.engine.persistent import problem
from fastmlp.kernels.launch import INTERPRETED, record_launches
from fastmlp.kernels.training import epoch as epoch_kernels
from tests.classifiers import OPTIMIZERS
from tests.problems import DTYPES


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with backends.use("triton"):
        yield


def train(engine: str, device: str, **options: Any) -> tuple[fastmlp.training.History, list[torch.Tensor]]:
    """Two epochs of a net on 101 examples in batches of 37: the last has 27."""
    widths, act = options.pop("widths", (20, 33, 10)), options.pop("act", nn.ReLU)
    name, bias = options.pop("optimizer", "sgd"), options.pop("bias", True)
    pixels, loss = options.pop("pixels", True), options.pop("loss", {})
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers += [nn.Linear(k, n, bias), act()]
    net = nn.Sequential(*layers[:-1]).to(device)
    x = torch.randint(256, (101, widths[0]), dtype=torch.uint8, device=device)
    y = torch.randint(widths[-1], (101,), device=device)
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    history = fastmlp.fit(
        net,
        (x if pixels else x.float() / 99, y),
        epochs=2,
        batch_size=37,
        optimizer=optimizer,
        loss=nn.CrossEntropyLoss(**loss),
        engine=engine,
        **options,
    )
    states = [t for s in optimizer.state.values() for t in s.values() if t is not None]
    return history, [*(p.detach() for p in net.parameters()), *states]


VARIANTS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "deep": {"widths": (20, 33, 17, 21, 10), "act": nn.GELU, "optimizer": "momentum", "bias": False},
    "nesterov": {"act": nn.Tanh, "optimizer": "nesterov", "pixels": False, "schedule": "one-cycle"},
    "adam": {"widths": (64, 32, 16, 10), "optimizer": "groups", "loss": {"label_smoothing": 0.1}},
    "leaky": {"act": lambda: nn.LeakyReLU(-0.2), "loss": {"reduction": "sum", "ignore_index": 3}},
}


@pytest.mark.few(2)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_bits_as_the_fused_steps(variant: str, dtype: torch.dtype, device: str) -> None:
    if device == "cuda":
        pytest.skip("on a GPU the tiles differ, and with them the order of the sums: see the next test")
    ours, tensors = train("persistent", device, dtype=dtype, **VARIANTS[variant])
    fused, expected = train("fused", device, dtype=dtype, **VARIANTS[variant])
    assert (ours.engine, fused.engine) == ("persistent", "fused")
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected))
    assert [e.train_loss for e in ours.epochs] == [e.train_loss for e in fused.epochs]
    assert [e.train_accuracy for e in ours.epochs] == [e.train_accuracy for e in fused.epochs]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_close_to_the_fused_steps(variant: str, dtype: torch.dtype, device: str) -> None:
    if device == "cpu":
        pytest.skip("the test before this is stricter")
    ours, _ = train("persistent", device, dtype=dtype, **VARIANTS[variant])
    fused, _ = train("fused", device, dtype=dtype, **VARIANTS[variant])
    tolerance = 100 * torch.finfo(dtype).eps
    assert [e.train_loss for e in ours.epochs] == pytest.approx(
        [e.train_loss for e in fused.epochs], rel=tolerance
    )


def test_weights_kept_on_the_chip_or_not(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a program for each tile of the weights they stay in registers; the bits are the same."""
    if device == "cuda":
        pytest.skip("the number of programs is the GPU's")
    from fastmlp.engine import persistent

    several, expected = train("persistent", device, optimizer="adam")
    resident: list[bool] = []
    monkeypatch.setattr(persistent, "_INTERPRETED_PROGRAMS", 6)
    with record_launches() as launches:
        _, tensors = train("persistent", device, optimizer="adam")
    resident = [launch.options["RESIDENT"] for launch in launches]
    assert all(resident)
    assert several.epochs
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected))


def test_a_launch_a_phase_or_an_epoch(device: str) -> None:
    with record_launches() as launches:
        train("persistent", device, widths=(20, 16, 16, 10))
    names = [launch.name for launch in launches]
    assert set(names) == {"epoch_kernel"}
    steps, phases = 2 * 3, epoch_kernels.phases(3)
    assert phases == 5
    assert len(names) == (steps * phases if INTERPRETED else 2)


def test_bitwise_repeatable(device: str) -> None:
    first, again = (train("persistent", device, optimizer="adamw") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[1], again[1]))


def test_what_one_kernel_cannot_run(device: str) -> None:
    def reason(*layers: nn.Module) -> str | None:
        found = network.recognise(nn.Sequential(*layers).to(device), nn.CrossEntropyLoss())
        assert not isinstance(found, str)
        return problem(found)

    linear = nn.Linear
    assert reason(linear(4, 4), nn.ReLU(), linear(4, 4), nn.ReLU(), linear(4, 3)) is None
    assert "activations" in str(reason(linear(4, 4), nn.ReLU(), linear(4, 4), nn.Tanh(), linear(4, 3)))
    assert "bias" in str(reason(linear(4, 4, False), nn.ReLU(), linear(4, 3)))


def test_random_order_is_torchs(device: str) -> None:
    """Epoch e sees the (e + 1)-th permutation of the seeded generator, as with the other engines."""
    from fastmlp.engine import choose

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(50, 8, device=device), torch.randint(3, (50,), device=device)
    generator = torch.Generator(device).manual_seed(random.Random(0).randrange(99))
    job = choose.Job(net, nn.CrossEntropyLoss(), optimizer, x, y, 16, generator, torch.float32)
    loop: Any = choose.loop("persistent", job)
    again = torch.Generator(device).manual_seed(generator.initial_seed())
    for _ in range(2):
        loop.epoch(torch.ones(4, dtype=torch.float64))
        assert torch.equal(loop.order, torch.randperm(50, generator=again, device=device))
