"""torch's default device and dtype: where a net and its data are decides, whatever these say."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import fastmlp
from fastmlp import backends

ROOT = Path(__file__).parents[2]
#: What torch makes by its defaults, and which of these are floating unless they are told otherwise.
FLOATING = {"empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randn", "zeros"}
MAKERS = FLOATING | {"arange", "as_tensor", "asarray", "empty_strided", "randint", "randperm", "tensor"}


@pytest.mark.parametrize("path", ["fastmlp", "kernels"])
def test_every_tensor_that_is_made_says_where_and_of_what(path: str) -> None:
    """Commands and pictures may go by the default dtype: their nets do."""
    loose = {f"fastmlp/{name}/" for name in ("cli", "plots", "profiling", "studies")}
    found = []
    for file in sorted((ROOT / path).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or not ast.unparse(call.func).startswith("torch."):
                continue
            maker, given = ast.unparse(call.func)[6:], {keyword.arg for keyword in call.keywords}
            if maker not in MAKERS or "out" in given:
                continue
            wants_dtype = maker in FLOATING and not name.startswith(tuple(loose))
            if "device" not in given or (wants_dtype and "dtype" not in given):
                found.append(f"{name}:{call.lineno}: {ast.unparse(call)}")
    assert not found


def _meta() -> Callable[[], None]:
    torch.set_default_device("meta")
    return lambda: torch.set_default_device(None)


def _double() -> Callable[[], None]:
    torch.set_default_dtype(torch.float64)
    return lambda: torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[_meta, _double])
def other_default(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """A function that sets another default, for the rest of the test."""
    undo: list[Callable[[], None]] = []
    yield lambda: undo.append(request.param())
    for each in undo:
        each()


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_training_is_the_same(other_default: Callable[[], None], backend: str, device: str) -> None:
    x, y = torch.randn(40, 6, device=device), torch.randint(4, (40,), device=device)
    whole = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).to(device)
    parts = fastmlp.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 4), nn.Dropout(0.3)).to(device)

    def steps(
        net: nn.Sequential,
        loss: nn.Module,
        targets: Tensor,
        dtype: torch.dtype,
        make: Callable[..., torch.optim.Optimizer] = sgd,
    ) -> list[float]:
        net = copy.deepcopy(net)
        step = fastmlp.TrainStep(net, loss, make(net.parameters()), dtype=dtype)
        torch.manual_seed(1)
        return [step(x, targets).item() for _ in range(2)]

    def everything() -> list[object]:
        entropy = fastmlp.CrossEntropyLoss(z_loss=0.1)
        found: list[object] = [
            steps(whole, entropy, y, torch.float32, adam),
            steps(whole, nn.MSELoss(), whole(x).detach() + 1, torch.bfloat16),
            steps(parts, nn.CrossEntropyLoss(), y, torch.float32),
        ]
        for engine, data in (("auto", (x, y)), ("eager", TensorDataset(x.cpu(), y.cpu()))):
            net = copy.deepcopy(whole)
            optimizer = sgd(net.parameters())
            history = fastmlp.fit(
                net, data, (x, y), epochs=2, optimizer=optimizer, schedule="cosine", engine=engine
            )
            found.append([(e.train_loss, e.test_loss) for e in history.epochs])
        return found

    # In torch 2.11 Adam itself, which a kernel's epilogue can be, makes a tensor on the default device.
    adam = torch.optim.Adam if backend == "triton" else sgd
    with backends.use(backend):
        expected = everything()
        other_default()
        assert everything() == expected


def test_large_losses_are_the_same(other_default: Callable[[], None]) -> None:
    """Above some sizes they have ways of their own."""
    logits, labels = torch.randn(1100, 700), torch.randint(700, (1100,))

    def gradient(reduction: str) -> Tensor:
        x = logits.clone().requires_grad_()
        loss = fastmlp.functional.cross_entropy(x, labels, reduction=reduction)
        return torch.autograd.grad(loss, x, torch.ones_like(loss))[0]

    expected = [gradient(reduction) for reduction in ("mean", "sum", "none")]
    other_default()
    assert all(torch.equal(gradient(r), g) for r, g in zip(("mean", "sum", "none"), expected))


def test_a_scale_has_the_digits_of_its_dtype() -> None:
    assert fastmlp.Dequantize(1 / 255, dtype=torch.float64).scale.item() == 1 / 255
