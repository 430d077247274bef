"""Mixed precision: training with autocast and GradScaler, regions within regions, dtypes that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp.functional import cross_entropy, linear_act, linear_cross_entropy, mlp
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.page import Refusal

GROUP = "AMP and dtypes"
#: What autocast casts to. The parameters are float32.
casts = pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
ROWS, CLASSES = 16, 5


def net_of(device: str, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """The same weights at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.SiLU(), nn.Linear(9, CLASSES)).to(device, dtype)


def batch(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x, y = torch.randn(ROWS, 6), torch.randint(CLASSES, (ROWS,))
    return x.to(device, dtype), y.to(device)


def scaler_of(device: str, cast: torch.dtype, **options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device, enabled=cast == torch.float16, **options)


def moved(net: nn.Module) -> Tensor:
    """How far training took all parameters, as one vector: few numbers may be exact by luck."""
    before = net_of(str(next(net.parameters()).device)).parameters()
    return torch.cat([(now - then).detach().flatten() for now, then in zip(net.parameters(), before)])


def grads_of(net: nn.Module) -> list[Tensor]:
    return [p.grad for p in net.parameters() if p.grad is not None]


Autocast = Callable[[], AbstractContextManager[object]]
Run = Callable[[nn.Module, nn.Module, Tensor, Tensor, Autocast], list[Tensor]]


def compare(run: Run, backend: str, device: str, cast: torch.dtype) -> None:
    """``run`` of a net, a loss and a batch: ours, torch's, and torch's in float64 without autocast."""
    smooth, autocast, (x, y) = {"label_smoothing": 0.1}, partial(torch.autocast, device, cast), batch(device)
    ours = run(fastmlp.fuse(net_of(device)), fastmlp.CrossEntropyLoss(**smooth), x, y, autocast)
    theirs = run(net_of(device), nn.CrossEntropyLoss(**smooth), x, y, autocast)
    exact = run(net_of(device).double(), nn.CrossEntropyLoss(**smooth), x.double(), y, nullcontext)
    same_or_as_good(ours, theirs, exact, backend, "result", eps=torch.finfo(cast).eps)


@pytest.mark.feature(GROUP, "training with autocast and GradScaler")
@casts
@pytest.mark.parametrize("fused", [False, True], ids=["modules", "head"])
def test_training(fused: bool, backend: str, dtype: str, device: str) -> None:
    """Losses, parameters and scale after three steps; with the loss apart, and with it in the head's node."""
    cast = getattr(torch, dtype)

    def run(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, autocast: Autocast) -> list[Tensor]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
        scaler = scaler_of(device, cast)
        found = []
        for _ in range(3):
            with autocast():
                head = None
                if fused and isinstance(net, fastmlp.Sequential):
                    head = net.cross_entropy(x, y, loss)  # type: ignore[arg-type]
                    assert (head is None) == (backend == "torch")
                value = loss(net(x), y) if head is None else head[0]
            optimizer.zero_grad()
            scaler.scale(value).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            scaler.step(optimizer)
            scaler.update()
            found.append(value.detach())
        return [*found, moved(net)]

    compare(run, backend, device, cast)


@pytest.mark.feature(GROUP, "gradient penalty under autocast with GradScaler")
@casts
def test_penalty(backend: str, dtype: str, device: str) -> None:
    """The recipe of torch's documentation."""
    cast = getattr(torch, dtype)

    def run(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, autocast: Autocast) -> list[Tensor]:
        scaler = scaler_of(device, cast, init_scale=256.0)
        with autocast():
            value = loss(net(x), y)
        scaled = torch.autograd.grad(scaler.scale(value), list(net.parameters()), create_graph=True)
        grads = [g / scaler.get_scale() for g in scaled]
        with autocast():
            value = value + sum(g.square().sum() for g in grads).sqrt()
        scaler.scale(value).backward()
        return [value.detach(), *(g / scaler.get_scale() for g in grads_of(net))]

    compare(run, backend, device, cast)


@pytest.mark.feature(GROUP, "GradScaler skips a step whose gradients are not finite")
@pytest.mark.parametrize("dtype", ["float16"])
def test_skipped_step(backend: str, dtype: str, device: str) -> None:
    """An overflow leaves the kernels as inf or NaN: weights and momentum stay, the scale halves."""
    net, loss = fastmlp.fuse(net_of(device)), fastmlp.CrossEntropyLoss()
    x, y = batch(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**26)
    before = [p.clone() for p in net.parameters()]
    with torch.autocast(device, getattr(torch, dtype)):
        value = loss(net(x), y)
    assert value.isfinite()
    scaler.scale(value).backward()
    assert not all(g.isfinite().all() for g in grads_of(net))
    scaler.step(optimizer)
    scaler.update()
    assert all(map(torch.equal, before, net.parameters()))
    assert not optimizer.state
    assert scaler.get_scale() == 2.0**25


@pytest.mark.feature(GROUP, "autocast(enabled=False) inside of autocast")
@casts
def test_nested(backend: str, dtype: str, device: str) -> None:
    """The inner region computes in float32, and its gradient flows on into the outer one's layers."""
    cast = getattr(torch, dtype)

    def run(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, autocast: Autocast) -> list[Tensor]:
        with autocast():
            hidden = net[:2](x)  # type: ignore[index]
            assert hidden.dtype == (cast if x.dtype == torch.float32 else torch.float64)
            with torch.autocast(device, enabled=False):
                logits = net[2:](hidden.to(x.dtype))  # type: ignore[index]
                assert logits.dtype == x.dtype
            value = loss(logits, y)
        value.backward()
        return [value.detach(), logits.detach(), *grads_of(net)]

    compare(run, backend, device, cast)


@pytest.mark.feature(GROUP, "weight, bias or input of another dtype")
@pytest.mark.parametrize("other", [torch.float16, torch.float64], ids=str)
def test_mixed_dtypes(other: torch.dtype, backend: str, device: str, refuses: Refusal) -> None:
    """The error names the argument, its dtype and the one expected."""
    (x, y), net = batch(device), net_of(device)
    w, b = net[0].weight, net[0].bias
    message = "{}: expected {} as the input, got {}"
    with refuses(TypeError, message.format("weight", torch.float32, other)):
        linear_act(x, w.to(other))
    with refuses(TypeError, message.format("bias", torch.float32, other)):
        linear_act(x, w, b.to(other))
    with refuses(TypeError, message.format("weight of layer 1", torch.float32, other)):
        mlp(x, [w, net[2].weight.to(other)])
    with refuses(TypeError, message.format("PReLU's weight", torch.float32, other)):
        linear_act(x, w, b, nn.PReLU(device=device).to(other))
    # A module's error is torch's own on torch's ops.
    ours = fastmlp.fuse(net_of(device))
    with refuses((TypeError, RuntimeError), "dtype|expected"):
        ours(x.to(other))
    with refuses(RuntimeError, "dtype|expected"):
        linear_cross_entropy(x, w.to(other), y)
    with refuses(RuntimeError, "weight|expected scalar type"):
        cross_entropy(x, y, torch.ones(6, device=device, dtype=other))


@pytest.mark.feature(GROUP, "float64 beside another dtype under autocast")
def test_mixed_float64_under_autocast(backend: str, device: str, refuses: Refusal) -> None:
    """Autocast leaves float64 alone, so that nothing fits, and torch's ops refuse it too."""
    (x, y), w = batch(device), net_of(device)[0].weight
    with torch.autocast(device, torch.bfloat16):
        for a, b in ((x.double(), w), (x, w.double())):
            with pytest.raises(RuntimeError, match="dtype"):
                F.linear(a, b)
            with refuses(TypeError, f"weight: expected {a.dtype} as the input, got {b.dtype}"):
                linear_act(a, b)
            with refuses(RuntimeError, "dtype"):
                linear_cross_entropy(a, b, y)


@pytest.mark.feature(GROUP, "TrainStep and fit in 16 bits")
@casts
def test_engine(backend: str, dtype: str, device: str) -> None:
    """Losses and float32 parameters after three steps, against autocast's."""
    cast = getattr(torch, dtype)

    def run(net: nn.Module, loss: nn.Module, x: Tensor, y: Tensor, autocast: Autocast) -> list[Tensor]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
        scaler = scaler_of(device, cast)
        if isinstance(net, fastmlp.Sequential):
            step = fastmlp.TrainStep(net, loss, optimizer, dtype=cast)
            return [*(step(x, y) for _ in range(3)), moved(net)]
        found = []
        for _ in range(3):
            with autocast():
                value = loss(net(x), y)
            optimizer.zero_grad()
            scaler.scale(value).backward()
            scaler.step(optimizer)
            scaler.update()
            found.append(value.detach())
        return [*found, moved(net)]

    compare(run, backend, device, cast)
    x, y = batch(device)
    net = fastmlp.fuse(net_of(device))
    history = fastmlp.fit(net, (x, y), epochs=3, batch_size=ROWS, lr=0.5, dtype=cast)
    assert history.epochs[2].train_loss < history.epochs[0].train_loss
    assert {p.dtype for p in net.parameters()} == {torch.float32}
