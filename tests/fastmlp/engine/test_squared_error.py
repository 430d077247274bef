"""Regression by every executor: steps with a squared error against float64 and against torch's own."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp.engine import Executor, checks, choose, network
from fastmlp.engine.autograd import AutogradExecutor
from fastmlp.engine.fused import problem
from fastmlp.kernels.launch import record_launches
from fastmlp.kernels.loss.head import MAX_CLASSES
from tests.classifiers import OPTIMIZERS, Run, random_data, random_run
from tests.numerics import error
from tests.problems import DTYPES


@pytest.fixture
def triton() -> Iterator[None]:
    with backends.use("triton"):
        yield


def run(device: str, widths: tuple[int, ...] = (20, 32, 3), name: str = "sgd", **loss: Any) -> Run:
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers += [nn.Linear(k, n), nn.Tanh()]
    net = nn.Sequential(*layers[:-1]).to(device)
    optimizer = OPTIMIZERS[name](list(net.parameters()))
    if loss.get("reduction") == "sum":
        optimizer.param_groups[0]["lr"] *= 1e-3
    return Run(net, nn.MSELoss(**loss), optimizer)


def executor(run: Run, dtype: torch.dtype = torch.float32) -> Executor:
    found = choose.recognise(run.net, run.loss, run.optimizer, dtype)
    assert not isinstance(found, str), found
    return choose.of_network(found, run.optimizer, dtype)


def allowed(torchs: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """Twice torch's error, and a few roundings of the products' dtype: three steps of up to four layers."""
    return 2 * error(torchs, exact) + 6 * torch.finfo(dtype).eps * (0.5 + 4 / exact.numel() ** 0.5)


def compare(ours: Run, rng: random.Random, dtype: torch.dtype, device: str) -> None:
    """Three steps, of rows of a data set or of a batch: losses, parameters' moves, optimizer state."""
    theirs, exact, start = ours.copy(), ours.double(), ours.parameters()
    x, y = random_data(rng, ours, 150, device)
    engine = executor(ours, dtype)
    for batch in (64, rng.choice([1, 33, 128]), 97):
        rows = torch.randperm(150, device=device)[:batch] if rng.random() < 0.7 else None
        batch_x, batch_y = (x, y) if rows is None else (x[rows], y[rows])
        value = engine.step(x, y, rows)
        want = theirs.step(batch_x, batch_y, dtype)
        right = exact.step(batch_x, batch_y, torch.float64)
        assert error(value, right) <= allowed(want, right, dtype), "loss"
    if engine.name == "cpu":  # its products add up in the weights themselves
        start = [torch.zeros_like(p) for p in start]
    for i, (p, q, r, p0) in enumerate(zip(ours.parameters(), theirs.parameters(), exact.parameters(), start)):
        assert error(p - p0, r - p0) <= allowed(q - p0, r - p0, dtype), f"parameter {i}"
    for mine, torchs, right in zip(ours.states(), theirs.states(), exact.states(), strict=True):
        assert error(mine, right) <= allowed(torchs, right, dtype), "state"
    assert engine.sums[0] > 0
    assert engine.sums[1] == 0


@pytest.mark.few(2)
@pytest.mark.usefixtures("poisoned", "triton")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("sgd", dtype) for dtype in DTYPES),
        ("nesterov", torch.float16),
        ("adam", torch.bfloat16),
        ("groups", torch.float32),
    ],
    ids=str,
)
def test_random_run_by_the_kernels(name: str, dtype: torch.dtype, device: str) -> None:
    rng = random.Random(f"mse{name}{dtype}")
    compare(random_run(rng, name, device, squared=True), rng, dtype, device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_random_run_on_a_cpu(name: str) -> None:
    rng = random.Random(f"mse{name}")
    compare(random_run(rng, name, "cpu", squared=True), rng, torch.float32, "cpu")


@pytest.mark.parametrize("widths", [(7, 1), (7, 9, 40), (64, 128, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shapes_on_a_cpu(widths: tuple[int, ...], dtype: torch.dtype) -> None:
    """One layer, one output, outputs as rows and as columns, bfloat16 products."""
    compare(run("cpu", widths), random.Random(0), dtype, "cpu")


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("depth", [2, 3, 5])
def test_launches_a_step(depth: int, device: str) -> None:
    ours = run(device, (20, *([16] * (depth - 1)), 3))
    engine = executor(ours)
    x, y = torch.randn(64, 20, device=device), torch.randn(64, 3, device=device)
    with record_launches() as launches:
        engine.step(x, y)
    names = [launch.name for launch in launches]
    assert len(names) == 2 * depth - 1
    assert names[depth - 1] == "head_kernel"
    assert launches[depth - 1].named["criterion"].name == "mse"


def epochs(engine: str, dtype: torch.dtype, device: str, variant: dict[str, Any]) -> tuple[list, list]:
    """Two epochs over 70 examples in batches of 37: the sums, and all that was written."""
    ours = run(device, **variant)
    widths = [20, *(m.out_features for m in ours.net if isinstance(m, nn.Linear))]
    x = torch.randint(256, (70, widths[0]), dtype=torch.uint8, device=device)
    y = torch.randn(70, 2 * widths[-1], device=device)[:, ::2]
    generator = torch.Generator(device).manual_seed(3)
    job = choose.Job(ours.net, ours.loss, ours.optimizer, x, y, 37, generator, dtype)
    loop = choose.loop(engine, job)
    assert loop.name.split("+")[0] == engine
    sums = [loop.epoch(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    return sums, [*ours.parameters(), *ours.states()]


VARIANTS: list[dict[str, Any]] = [
    {},
    {"widths": (20, 33, 17, 1), "name": "adamw"},
    {"widths": (20, 17, 40), "name": "momentum", "reduction": "sum"},
]


@pytest.mark.few(1)
@pytest.mark.usefixtures("poisoned", "triton")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_whole_epochs_are_the_fused_steps(variant: dict[str, Any], dtype: torch.dtype, device: str) -> None:
    """To the bits; the persistent kernel's tiles, and with them the order of sums, are others on a GPU."""
    expected, tensors = epochs("fused", dtype, device, variant)
    assert all(right == 0 for _, right in expected)
    for engine in ("persistent",) if device == "cpu" else ("persistent", "graph"):
        sums, found = epochs(engine, dtype, device, variant)
        if engine == "graph" or device == "cpu":
            assert all(total == total for total, _ in sums)
            assert sums == expected
            assert all(map(torch.equal, found, tensors))
        else:
            for a, b in zip(sums, expected):
                assert a == pytest.approx(b, rel=100 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", ["torch", "triton", "auto"])
def test_an_epoch_by_autograd(backend: str, device: str) -> None:
    """A `fastmlp.Sequential` closes the chain with the head, where there are kernels."""
    ours, theirs = run(device), run(device)
    x, y = torch.randn(50, 20, device=device), torch.randn(50, 3, device=device)
    made = (fastmlp.fuse(ours.net), fastmlp.MSELoss(), ours.optimizer, x, y, 16)
    with backends.use(backend), record_launches() as launches:
        job = choose.Job(*made, torch.Generator(device).manual_seed(3), torch.float32)
        total, right = choose.loop("eager", job).epoch(torch.ones(4, dtype=torch.float64))
    kernels = backend == "triton" or (backend == "auto" and device == "cuda")
    assert ("head_kernel" in [launch.name for launch in launches]) == kernels
    order = torch.randperm(50, generator=torch.Generator(device).manual_seed(3), device=device)
    expected = sum(theirs.step(x[r], y[r], torch.float32).item() * len(r) for r in order.split(16))
    assert total == pytest.approx(expected, rel=1e-5)
    assert right == 0
    assert all(error(p, q) < 1e-5 for p, q in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("backend", ["torch", "triton", "auto"])
@pytest.mark.parametrize("norm", [False, True])
def test_what_does_not_fit_is_said_before_anything_is_written(backend: str, norm: bool, device: str) -> None:
    """torch would broadcast, with a warning; a net that no engine knows is stepped by autograd."""
    ours = run(device)
    if norm:
        ours.net.insert(1, nn.LayerNorm(32, elementwise_affine=False))
    x, y = torch.randn(8, 20, device=device), torch.randn(8, 3, device=device)
    for net in (ours.net, fastmlp.fuse(copy.deepcopy(ours.net))):
        start = [p.detach().clone() for p in net.parameters()]
        step = fastmlp.TrainStep(net, fastmlp.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.1))
        with backends.use(backend):
            for target in (y[:, 0], y[:, :1], y[:, :, None], y[:5]):
                with pytest.raises(ValueError, match=r"y: expected \(8, 3\)"):
                    step(x, target)
            # A newer torch takes those: test_as_eager has what comes of it.
            if not (norm or backend == "torch" or checks.takes_any_number()):
                with pytest.raises(TypeError, match=r"y: expected torch\.float32, got torch\.float64"):
                    step(x, y.double())
        assert all(map(torch.equal, start, net.parameters()))


@pytest.mark.usefixtures("triton")
def test_too_many_outputs(device: str) -> None:
    """The head holds a row of them; autograd runs more."""
    ours = run(device, (6, 5, MAX_CLASSES + 1))
    found = network.recognise(ours.net, ours.loss)
    assert not isinstance(found, str)
    assert "256 classes or outputs" in str(problem(found))
    theirs = ours.copy()
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)
    x, y = torch.randn(9, 6, device=device), torch.randn(9, MAX_CLASSES + 1, device=device)
    assert error(step(x, y), theirs.step(x, y, torch.float32)) < 1e-6
    assert step.engine.startswith("eager: the head has at most")
    assert all(error(p, q) < 1e-6 for p, q in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("backend", ["torch", "triton", "auto"])
def test_an_empty_batch(backend: str, device: str) -> None:
    """As torch: a mean of NaN, and an update with gradients of 0."""
    ours, theirs = run(device, name="momentum"), run(device, name="momentum")
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer)
    x, y = torch.randn(40, 20, device=device), torch.randn(40, 3, device=device)
    with backends.use(backend):
        for rows in (40, 0, 7):
            mine, other = step(x[:rows], y[:rows]), theirs.step(x[:rows], y[:rows], torch.float32)
            assert mine.isnan() == other.isnan()
    assert all(error(p, q) < 1e-5 for p, q in zip(ours.parameters(), theirs.parameters()))


def test_no_rows_by_the_cpu_executor() -> None:
    ours, theirs = run("cpu", name="momentum"), run("cpu", name="momentum")
    engine = executor(ours)
    x, y = torch.randn(40, 20), torch.randn(40, 3)
    for rows in (40, 0):
        mine, other = engine.step(x[:rows], y[:rows]), theirs.step(x[:rows], y[:rows], torch.float32)
        assert mine.isnan() == other.isnan()
    assert engine.sums.isfinite().all()
    assert all(error(p, q) < 1e-5 for p, q in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e30])
@pytest.mark.parametrize("backend", ["triton", "auto"])
def test_special_values(backend: str, value: float, device: str) -> None:
    """What torch gives we give: infinities and NaN in the same parameters."""
    ours, theirs = run(device), run(device)
    x, y = torch.randn(8, 20, device=device), torch.randn(8, 3, device=device)
    y[3, 1] = value
    with backends.use(backend):
        mine = executor(ours).step(x, y)
    other = theirs.step(x, y, torch.float32)
    assert mine.isnan() == other.isnan()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert torch.equal(p.isfinite(), q.isfinite())


def test_floating_targets_of_another_loss_are_no_labels(device: str) -> None:
    """Of soft labels, and of any loss with floating targets, autograd's executor counts no right answers."""
    net = nn.Linear(4, 3).to(device)
    x, y = torch.randn(6, 4, device=device), torch.rand(6, 3, device=device)
    for loss in (nn.CrossEntropyLoss(), nn.L1Loss()):
        engine = AutogradExecutor(net, loss, torch.optim.SGD(net.parameters()), x.device, torch.float32)
        engine.step(x, y)
        assert engine.sums[0] > 0
        assert engine.sums[1] == 0


def test_a_compiled_net_runs_as_compiled(device: str) -> None:
    """`nn.Module.compile` is what its owner asked for: no engine passes by it, nor does the head."""
    for loss in (fastmlp.MSELoss(), fastmlp.CrossEntropyLoss()):
        net = fastmlp.fuse(run(device).net)
        graphs: list[object] = []

        def compiler(graph: Any, _: Any, graphs: list[object] = graphs) -> Any:
            graphs.append(graph)
            return graph

        net.compile(backend=compiler)
        assert network.recognise(net, loss) == "the model is compiled"
        step = fastmlp.TrainStep(net, loss, torch.optim.SGD(net.parameters(), lr=0.1))
        y = torch.rand(8, 3, device=device)
        step(torch.randn(8, 20, device=device), y if isinstance(loss, nn.MSELoss) else y.argmax(1))
        assert step.engine == "eager: the model is compiled"
        assert len(graphs) == 1
