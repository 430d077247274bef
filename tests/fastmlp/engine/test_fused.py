"""Steps of the fused executor against float64 and against torch's autograd and optimizers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from fastmlp import backends
from fastmlp.engine import network, rules
from fastmlp.engine.fused import FusedExecutor, problem
from fastmlp.kernels.launch import record_launches
from tests.classifiers import OPTIMIZERS, Run, random_data, random_run
from tests.numerics import error
from tests.problems import DTYPES


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with backends.use("triton"):
        yield


def executor(run: Run, dtype: torch.dtype = torch.float32, **options: bool) -> FusedExecutor:
    found = network.recognise(run.net, run.loss)
    assert not isinstance(found, str), found
    rule = rules.recognise(run.optimizer, found.parameters)
    assert not isinstance(rule, str), rule
    return FusedExecutor(found, rule, dtype, **options)


def allowed(torchs: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """Twice torch's error, and a few roundings of the products' dtype: three steps of up to four layers."""
    return 2 * error(torchs, exact) + 6 * torch.finfo(dtype).eps * (0.5 + 4 / exact.numel() ** 0.5)


@pytest.mark.few(5)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_random_run(name: str, dtype: torch.dtype, seed: int, device: str) -> None:
    """3 x 7 x 3 = 63 nets, three steps each: losses, what the parameters moved, and optimizer state."""
    rng = random.Random(f"{name}{dtype}{seed}")
    ours = random_run(rng, name, device)
    theirs, exact = ours.copy(), ours.double()
    start = ours.parameters()
    x, y = random_data(rng, ours, 150, device)
    engine = executor(ours, dtype)
    for batch in (rng.choice([64, 97]), rng.choice([1, 33, 128]), 64):
        rows = torch.randperm(150, device=device)[:batch] if rng.random() < 0.7 else None
        if rows is not None:  # label 0: not ignored; a column of others, which lies apart
            rows = torch.stack([torch.cat([rows[:-1], rows.new_zeros(1)]), rows.flip(0)], 1)[:, 0]
        batch_x, batch_y = (x, y) if rows is None else (x[rows], y[rows])
        value = engine.step(x, y, rows)
        want = theirs.step(batch_x, batch_y, dtype)
        right = exact.step(batch_x, batch_y, torch.float64)
        assert error(value, right) <= allowed(want, right, dtype), "loss"
    for i, (p, q, r, p0) in enumerate(zip(ours.parameters(), theirs.parameters(), exact.parameters(), start)):
        assert error(p - p0, r - p0) <= allowed(q - p0, r - p0, dtype), f"parameter {i}"
    assert len(ours.states()) == len(theirs.states())
    for mine, torchs, right in zip(ours.states(), theirs.states(), exact.states()):
        assert error(mine, right) <= allowed(torchs, right, dtype), "state"


def book(device: str, widths: tuple[int, ...] = (20, 32, 10), name: str = "sgd") -> Run:
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers += [nn.Linear(k, n), nn.ReLU()]
    net = nn.Sequential(*layers[:-1]).to(device)
    return Run(net, nn.CrossEntropyLoss(), OPTIMIZERS[name](list(net.parameters())))


def batch_of(run: Run, rows: int, device: str) -> tuple[Tensor, Tensor]:
    return random_data(random.Random(0), run, rows, device)


@pytest.mark.parametrize("depth", [2, 3, 5, 8])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_launches_a_step(depth: int, name: str, device: str) -> None:
    run = book(device, (20, *([16] * (depth - 1)), 10), name)
    engine = executor(run)
    x, y = batch_of(run, 64, device)
    with record_launches() as launches:
        engine.step(x, y)
    names = [launch.name for launch in launches]
    assert len(names) == 2 * depth - 1
    forward, backward = ["linear_act_kernel"] * (depth - 1), ["linear_backward_kernel"] * (depth - 2)
    assert names == [*forward, "head_kernel", *backward, "update_kernel"]


def test_a_long_batch_is_one_update_too(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs share a tile, the last one adds up: still one launch, right, and repeatable."""
    from fastmlp.kernels.linear import backward as linear_backward

    monkeypatch.setattr(linear_backward, "_ROWS_PER_SPLIT", 64)
    run = book(device)
    again, reference = run.copy(), run.double()
    x, y = batch_of(run, 700, device)
    engine = executor(run)
    with record_launches() as launches:
        engine.step(x, y)
    assert launches[-1].name == "update_kernel"
    assert launches[-1].grid[0] > engine.memory.tiles
    reference.step(x, y, torch.float64)
    for p, r in zip(run.parameters(), reference.parameters()):
        assert error(p, r) < 1e-6
    assert not engine.counters.any()
    executor(again).step(x, y)
    assert all(torch.equal(p, q) for p, q in zip(run.parameters(), again.parameters()))


def test_sums(device: str) -> None:
    run = book(device)
    engine = executor(run)
    x, y = batch_of(run, 90, device)
    total = right = 0.0
    for rows in torch.arange(90, device=device).split(40):
        logits = run.net((x[rows].float() / 255) if x.dtype == torch.uint8 else x[rows])
        right += (logits.argmax(1) == y[rows]).sum().item()
        total += engine.step(x, y, rows).item() * len(rows)
    assert engine.sums.tolist() == pytest.approx([total, right], rel=1e-6)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_ordinary_steps_before_and_after(name: str, device: str) -> None:
    """Optimizer and engine share one state: who steps when does not matter."""
    run = book(device, name=name)
    reference = run.copy()
    x, y = batch_of(run, 64, device)
    engine = executor(run)
    run.step(x, y, torch.float32)
    for _ in range(2):
        engine.step(x, y)
    run.step(x, y, torch.float32)
    engine.step(x, y)
    for _ in range(5):
        reference.step(x, y, torch.float32)
    for p, q in zip([*run.parameters(), *run.states()], [*reference.parameters(), *reference.states()]):
        assert error(p, q) < 1e-5
    assert [s.get("step") for s in run.optimizer.state.values()] == [
        s.get("step") for s in reference.optimizer.state.values()
    ]


def test_a_loaded_state_is_used(device: str) -> None:
    run = book(device, name="adamw")
    x, y = batch_of(run, 64, device)
    engine = executor(run)
    engine.step(x, y)
    kept = [p.clone() for p in run.parameters()], run.copy().optimizer.state_dict()
    engine.step(x, y)
    wanted = run.parameters()
    run.optimizer.load_state_dict(kept[1])
    with torch.no_grad():
        for p, value in zip(run.net.parameters(), kept[0]):
            p.copy_(value)
    engine.step(x, y)
    assert all(torch.equal(p, q) for p, q in zip(run.parameters(), wanted))


def test_changed_settings_are_seen(device: str) -> None:
    """Momentum switched on between two steps is another kernel, and another state."""
    run = book(device)
    reference = run.copy()
    x, y = batch_of(run, 64, device)
    engine = executor(run)
    for settings in (
        {},
        {"momentum": 0.9},
        {"nesterov": True, "lr": 0.01},
        {"momentum": 0.0, "nesterov": False},
    ):
        for each in (run, reference):
            each.optimizer.param_groups[0].update(settings)
        engine.step(x, y)
        reference.step(x, y, torch.float32)
    assert all(error(p, q) < 1e-5 for p, q in zip(run.parameters(), reference.parameters()))


def write_data(weight: Tensor) -> None:
    weight.data.mul_(3.0)  # which leaves no trace


def write(weight: Tensor) -> None:
    with torch.no_grad():
        weight.mul_(3.0)


@pytest.mark.parametrize("change", [write, write_data])
@pytest.mark.parametrize("copies", [False, True])
def test_changed_weights_are_read(copies: bool, change: Callable[[Tensor], None], device: str) -> None:
    """16-bit products may read copies of the weights: whatever is written to those must count."""
    run = book(device)
    x, y = batch_of(run, 64, device)
    engine = executor(run, torch.bfloat16, copies=copies)
    engine.step(x, y)
    change(run.net[0].weight)
    fresh = run.copy()
    value = engine.step(x, y)
    assert torch.equal(value, executor(fresh, torch.bfloat16).step(x, y))


def test_copies_give_the_same_bits(device: str) -> None:
    """A weight that is rounded as it is stored, or as it is loaded, is the same number."""
    run = book(device, (20, 33, 17, 10), "adamw")
    again = run.copy()
    x, y = batch_of(run, 64, device)
    for which, copies in ((run, False), (again, True)):
        engine = executor(which, torch.bfloat16, copies=copies)
        for _ in range(3):
            engine.step(x, y)
    assert all(torch.equal(p, q) for p, q in zip(run.parameters(), again.parameters()))


def test_a_step_bumps_the_versions(device: str) -> None:
    """Autograd must notice: a backward through the old weights is refused."""
    run = book(device)
    x, y = batch_of(run, 64, device)
    value = run.loss(run.net(x.float().requires_grad_()), y)
    executor(run).step(x, y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_no_row_counts(device: str) -> None:
    """A mean over no rows is NaN, its gradient 0."""
    run = book(device)
    x, y = batch_of(run, 8, device)
    start = run.parameters()
    assert executor(run).step(x, torch.full_like(y, -100)).isnan()
    assert all(torch.equal(p, q) for p, q in zip(run.parameters(), start))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
def test_special_values(value: float, device: str) -> None:
    """What torch gives we give: NaN where it has NaN."""
    run = book(device)
    reference = run.copy()
    x, y = torch.randn(8, 20, device=device), torch.arange(8, device=device)
    x[3, 5] = value
    ours, theirs = executor(run).step(x, y), reference.step(x, y, torch.float32)
    assert ours.isnan() == theirs.isnan()
    for p, q in zip(run.parameters(), reference.parameters()):
        assert torch.equal(p.isfinite(), q.isfinite())


def test_what_does_not_fit_is_said_before_anything_is_written(device: str) -> None:
    run = book(device)
    engine = executor(run)
    start = run.parameters()
    x, y = torch.randn(8, 20, device=device), torch.zeros(8, dtype=torch.int64, device=device)
    for batch, error_type, words in (
        ((x[:, :5], y), ValueError, r"x: expected \(N, 20\), got \(8, 5\)"),
        ((x, y[:3]), ValueError, r"y: expected \(8,\)"),
        ((x, y.float()), TypeError, "y: expected torch.int64"),
        ((x.long(), y), TypeError, "x: expected torch.uint8 or torch.float32"),
        ((x.double(), y), TypeError, "x: expected torch.uint8 or torch.float32"),
        ((x, y, y.float()), ValueError, r"rows: expected \(B,\) torch.int64"),
    ):
        with pytest.raises(error_type, match=words):
            engine.step(*batch)
    assert all(torch.equal(p, q) for p, q in zip(run.parameters(), start))


def test_what_the_kernels_cannot_run(device: str) -> None:
    def reason(*layers: nn.Module) -> str | None:
        found = network.recognise(nn.Sequential(*layers).to(device), nn.CrossEntropyLoss())
        assert not isinstance(found, str)
        return problem(found)

    assert reason(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)) is None
    assert reason(nn.Linear(4, 3)) == "there is no hidden layer"
    assert "256 classes" in str(reason(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 257)))
