"""Whole nets and training steps on whatever Hypothesis thinks of, against nn.Sequential and autograd."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp.backends import onednn
from tests.classifiers import OPTIMIZERS, Run
from tests.fuzzing import SEEDS, fuzz, judge, sprinkle, tensor
from tests.numerics import error


@pytest.fixture(params=["torch", "triton", "auto"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Also what runs by default; on a CPU small products then take oneDNN's way too."""
    monkeypatch.setattr(onednn, "LEAST_WORK", dict.fromkeys(onednn.LEAST_WORK, 1))
    with backends.use(request.param):
        yield request.param


#: What may stand between two linear layers; the last ones run as themselves.
BETWEEN: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda n: nn.ReLU(),
    "leaky": lambda n: nn.LeakyReLU(0.2),
    "leaky negative": lambda n: nn.LeakyReLU(-0.3),
    "prelu": lambda n: nn.PReLU(),
    "prelu each": lambda n: nn.PReLU(n),
    "sigmoid": lambda n: nn.Sigmoid(),
    "tanh": lambda n: nn.Tanh(),
    "gelu": lambda n: nn.GELU(),
    "gelu tanh": lambda n: nn.GELU("tanh"),
    "silu": lambda n: nn.SiLU(),
    "identity": lambda n: nn.Identity(),
    "inplace": lambda n: nn.ReLU(inplace=True),
    "norm": lambda n: nn.LayerNorm(n),
    "softplus": lambda n: nn.Softplus(),
    "nested": lambda n: nn.Sequential(nn.Linear(n, n), nn.Tanh()),
    "dropped": lambda n: nn.Dropout(0.0),
}
WIDTHS = st.lists(st.sampled_from([1, 2, 3, 7, 16, 17, 33]), min_size=2, max_size=4).map(tuple)


class Net(NamedTuple):
    """A Sequential and its input."""

    lead: tuple[int, ...] = (3,)
    widths: tuple[int, ...] = (5, 4)
    between: tuple[str, ...] = ("relu", "relu", "relu")  # and after the last
    bias: bool = True
    layout: str = "contiguous"
    special: str = "none"
    frozen: int = 3  # the layer without gradients, if there is one of that number
    input_grad: bool = True
    seed: int = 0


NETS = st.builds(
    Net,
    lead=st.sampled_from([(0,), (1,), (3,), (17,), (2, 5), (3, 0), (), (2, 1, 3)]),
    widths=WIDTHS,
    between=st.tuples(*[st.sampled_from(sorted(BETWEEN))] * 3),
    bias=st.booleans(),
    layout=st.sampled_from(["contiguous", "transposed", "sliced", "offset", "expanded"]),
    special=st.sampled_from(["none", "none", "nan", "inf", "-inf", "zeros", "denormal", "large"]),
    frozen=st.sampled_from([3, 3, 0, 1]),
    input_grad=st.booleans(),
    seed=SEEDS,
)


@pytest.mark.feature("Fuzzing", "Sequential: nets, inputs, frozen layers, special values")
@fuzz(10)
@given(case=NETS)
def test_sequential(case: Net, backend: str, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(case.seed)
    children: list[nn.Module] = []
    for (k, n), between in zip(itertools.pairwise(case.widths), case.between):
        children += [nn.Linear(k, n, case.bias), BETWEEN[between](n)]
    net = fastmlp.Sequential(*children).to(device, dtype)
    if case.frozen < len(case.widths) - 1:
        net[2 * case.frozen].requires_grad_(False)
    reference = nn.Sequential(*copy.deepcopy(children)).to(device, dtype)
    x = sprinkle(tensor((*case.lead, case.widths[0]), case.layout, dtype, device), case.special)
    x.requires_grad_(case.input_grad)
    upstream = torch.randn(*case.lead, case.widths[-1], device=device).to(dtype)

    def results(net: nn.Module, x: Tensor) -> list[Tensor | None]:
        y = net(x)
        inputs = [t for t in (x, *net.parameters()) if t.requires_grad]
        with torch.no_grad():
            inferred = net(x)
        if not y.requires_grad:
            return [y, inferred]
        return [y, inferred, *torch.autograd.grad(y, inputs, upstream.to(y.dtype), allow_unused=True)]

    def theirs(cast):
        again = cast(x)
        return results(reference if again.dtype == dtype else copy.deepcopy(reference).double(), again)

    judge(lambda cast: results(net, x), theirs, backend == "torch" or dtype == torch.float64, "", 12)


class Training(NamedTuple):
    """A classifier, its loss, its optimizer and batches of these sizes."""

    widths: tuple[int, ...] = (5, 4)
    act: str = "relu"
    bias: bool = True
    optimizer: str = "sgd"
    batches: tuple[int, ...] = (3, 3)
    pixels: bool = False
    weight: bool = False
    ignore: int = -100
    reduction: str = "mean"
    smoothing: float = 0.0
    seed: int = 0


TRAININGS = st.builds(
    Training,
    widths=WIDTHS,
    act=st.sampled_from([name for name in sorted(BETWEEN) if name not in ("prelu", "prelu each")]),
    bias=st.booleans(),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    batches=st.lists(st.sampled_from([0, 1, 2, 17, 33]), min_size=1, max_size=4).map(tuple),
    pixels=st.booleans(),
    weight=st.booleans(),
    ignore=st.sampled_from([-100, 0]),
    reduction=st.sampled_from(["mean", "sum"]),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=SEEDS,
)


def check_training(case: Training, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(case.seed)
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(case.widths):
        layers += [nn.Linear(k, n, case.bias), BETWEEN[case.act](n)]
    classes = case.widths[-1]
    loss = nn.CrossEntropyLoss(
        torch.rand(classes) + 0.1 if case.weight else None,
        ignore_index=case.ignore,
        reduction=case.reduction,
        label_smoothing=case.smoothing,
    )
    net = nn.Sequential(*layers[:-1]).to(device)
    ours = Run(net, loss.to(device), OPTIMIZERS[case.optimizer](list(net.parameters())))
    theirs, exact, start = ours.copy(), ours.double(), ours.parameters()
    step = fastmlp.TrainStep(ours.net, ours.loss, ours.optimizer, dtype=dtype)
    for rows in case.batches:
        x = torch.randn(rows, case.widths[0], device=device)
        if case.pixels:
            x = torch.randint(256, x.shape, dtype=torch.uint8, device=device)
        y = torch.randint(classes, (rows,), device=device)
        value, want, right = step(x, y), theirs.step(x, y, dtype), exact.step(x, y, torch.float64)
        assert _close(value, want, right, dtype), f"loss {value}, torch's {want}, {right}"
    for a, b, c, p in zip(ours.parameters(), theirs.parameters(), exact.parameters(), start):
        kept = 4 * torch.finfo(torch.float32).eps * p.norm() / max((c - p).norm(), 1e-30)  # as it is stored
        assert _close(a - p, b - p, c - p, dtype, float(kept)), "what a parameter moved"
    for a, b, c in zip(ours.states(), theirs.states(), exact.states(), strict=True):
        assert _close(a, b, c, dtype), "the optimizer's state"


def _close(ours: Tensor, torchs: Tensor, exact: Tensor, dtype: torch.dtype, more: float = 0.0) -> bool:
    """Twice torch's error, and some roundings of the products' dtype in each of the steps."""
    roundings = 16 * torch.finfo(dtype).eps * (0.5 + 8 / max(exact.numel(), 1) ** 0.5)
    return error(ours, exact) <= 2 * error(torchs, exact) + roundings + more


@pytest.mark.feature("Fuzzing", "TrainStep: nets, losses, optimizers, batch sizes", dtype="float32")
@fuzz(12)
@given(case=TRAININGS)
def test_train_step(case: Training, backend: str, device: str) -> None:
    check_training(case, torch.float32, device)


@pytest.mark.feature("Fuzzing", "TrainStep: nets, losses, optimizers, batch sizes", dtype="bfloat16")
@fuzz(5)
@given(case=TRAININGS)
def test_train_step_bfloat16(case: Training, backend: str, device: str) -> None:
    check_training(case, torch.bfloat16, device)
