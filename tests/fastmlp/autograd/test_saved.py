"""Between forward and backward: parameters with other data, and writes in place that eager's ops allow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp import backends
from fastmlp.functional import chain_cross_entropy, mlp
from fastmlp.functional.linear import Layer, chain, mlp_layers
from fastmlp.functional.ways import aten_chain

PLANS = ("layers", "whole", "recompute")


@pytest.fixture(autouse=True)
def _triton():
    with backends.use("triton"):
        yield


def net(device: str, act: str | nn.Module = "silu", out: str = "tanh") -> tuple[Tensor, list[Layer]]:
    """An input and three layers, the same at every call."""
    torch.manual_seed(0)
    shapes = ((7, 5), (7, 7), (3, 7))
    weights = [nn.Parameter(torch.randn(shape, device=device)) for shape in shapes]
    biases = [nn.Parameter(torch.randn(n, device=device)) for n, _ in shapes]
    return torch.randn(6, 5, device=device, requires_grad=True), mlp_layers(weights, biases, act, out)


def tensors(x: Tensor, layers: list[Layer]) -> list[Tensor]:
    return [x, *(t for w, b, a, _ in layers for t in (w, b, a.weight) if t is not None)]


def grads(y: Tensor, of: list[Tensor]) -> list[Tensor | None]:
    """Of those that want one."""
    return list(torch.autograd.grad(y.square().sum(), [t for t in of if t.requires_grad], allow_unused=True))


def agree(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    assert len(ours) == len(theirs)
    for mine, torchs in zip(ours, theirs):
        torch.testing.assert_close(mine, torchs, rtol=1e-4, atol=1e-5)


def _exchanged(data: Callable[[Tensor], Tensor]) -> Callable[[list[Tensor]], None]:
    def exchange(params: list[Tensor]) -> None:
        for p in params:
            p.data = data(p)

    return exchange


EXCHANGES = {
    "zeros": _exchanged(torch.zeros_like),
    "double": _exchanged(lambda p: p.double()),
    "half": _exchanged(lambda p: p.half() * 3),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_parameters_with_other_data(exchange: str, plan: str, device: str) -> None:
    """The backward is by the forward's weights, biases and slopes, as eager's."""
    found = []
    for ours in (True, False):
        x, layers = net(device, nn.PReLU(7, device=device))
        y = chain(x, layers, plan) if ours else aten_chain(x, layers)
        EXCHANGES[exchange](tensors(x, layers)[1:])
        y.square().sum().backward()
        found.append([x.grad])
    agree(*found)


@pytest.mark.parametrize("plan", PLANS)
def test_the_same_of_a_second_derivative(plan: str, device: str) -> None:
    """A gradient that is only a number may be had by torch's ops too; of its own gradient there is none."""
    x, layers = net(device)
    y = chain(x, layers, plan)
    upstream = torch.randn(4, *y.shape, device=device)
    expected = torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)
    EXCHANGES["zeros"](tensors(x, layers)[1:])
    agree(list(torch.autograd.grad(y, x, upstream, is_grads_batched=True, retain_graph=True)), list(expected))
    with pytest.raises(RuntimeError, match=r"a parameter \(7, 5\) has other data than in the forward"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_a_loss_by_the_head(device: str) -> None:
    """Its last layer's gradients are there already: nothing reads its weight again."""
    target, found = torch.tensor([0, 1, 2, 0, 1, 2], device=device), []
    for ours in (True, False):
        x, layers = net(device, out="none")
        if ours:
            loss = chain_cross_entropy(x, layers, target)[0]
        else:
            loss = nn.functional.cross_entropy(aten_chain(x, layers), target)
        EXCHANGES["double"](tensors(x, layers)[1:])
        loss.backward()
        found.append([x.grad])
    agree(*found)


def _bias(x: Tensor, layers: list[Layer]) -> None:
    for layer in layers:
        assert layer.bias is not None
        layer.bias.add_(1)


WRITES: dict[str, Callable[[Tensor, list[Layer]], object]] = {
    "biases": _bias,
    "the first weight": lambda x, layers: layers[0].weight.add_(1),
    "a frozen layer's input": lambda x, layers: x.add_(1),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("plan", PLANS)
def test_writes_to_what_is_not_read(write: str, plan: str, device: str) -> None:
    """No gradient of the input is wanted. Run again, the forward reads them all: then it is torch's error."""
    found = []
    for ours in (True, False):
        x, layers = net(device)
        x.requires_grad_(False)
        if write == "a frozen layer's input":
            if plan != "layers":
                pytest.skip("a net with a frozen layer runs layer by layer")
            for t in tensors(x, layers[:1])[1:]:
                t.requires_grad_(False)
        y = chain(x, layers, plan) if ours else aten_chain(x, layers)
        with torch.no_grad():
            WRITES[write](x, layers)
        if ours and plan == "recompute":
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                grads(y, tensors(x, layers))
            return
        found.append(grads(y, tensors(x, layers)))
    agree(*found)


@pytest.mark.parametrize("plan", ["layers", "whole"])
def test_a_second_derivative_reads_everything(plan: str, device: str) -> None:
    x, layers = net(device)
    y = chain(x, layers, plan)
    with torch.no_grad():
        _bias(x, layers)
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation: a parameter \(7,\)"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("plan", ["layers", "whole", "torch"])
@pytest.mark.parametrize("twice", [False, True])
def test_an_output_that_eager_does_not_keep(plan: str, twice: bool, device: str) -> None:
    """leaky_relu keeps its input. What follows may write over the output, and again for a second backward."""
    found = []
    for ours in (True, False):
        x, layers = net(device, "leaky_relu", "leaky_relu")
        if ours:
            y = aten_chain(x, layers) if plan == "torch" else chain(x, layers, plan)
        else:
            y = x
            for weight, bias, act, _ in layers:
                y = act(nn.functional.linear(y, weight, bias))
        y += 3
        z = nn.functional.elu_(y)
        if twice:
            torch.autograd.grad(z.sum(), x, retain_graph=True)
        found.append(grads(z, tensors(x, layers)))
    agree(*found)


@pytest.mark.parametrize("act", ["none", "relu", "leaky_relu", "tanh", "silu"])
def test_an_output_of_a_dropout(act: str, device: str) -> None:
    """Eager keeps what went into it and the mask. The gradient is that of an output left alone."""
    found = []
    for write in (True, False):
        x, layers = net(device, act, act)
        layers = [layer._replace(dropout=0.5) for layer in layers]
        torch.manual_seed(1)
        y = chain(x, layers)
        if write:
            y += 3  # which changes its values, and no gradient
        found.append(list(torch.autograd.grad(y.sum(), tensors(x, layers))))
    agree(*found)


def test_in_a_sequential(device: str) -> None:
    """The next child writes over the chain's output."""
    x, found = torch.randn(6, 5, device=device), []
    for kind in (fastmlp.Sequential, nn.Sequential):
        torch.manual_seed(0)
        made = kind(nn.Linear(5, 7), nn.LeakyReLU(0.2), nn.ELU(inplace=True), nn.Linear(7, 3)).to(device)
        found.append(grads(made(x), list(made.parameters())))
    agree(*found)


def test_of_frozen_layers_nothing_is_kept(device: str) -> None:
    x, layers = net(device)
    for t in tensors(x, layers[:2]):
        t.requires_grad_(False)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        y = chain(x, layers)
    assert sorted(kept) == [(3,), (3, 7), (6, 3), (6, 7)]  # what the last is of
    agree(grads(y, tensors(x, layers)), grads(aten_chain(x, layers), tensors(x, layers)))


@pytest.mark.few(1)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (5,)], ids=str)
def test_a_compiled_output_that_is_written_over(shape: tuple[int, ...], plan: str, device: str) -> None:
    """It is torch's error where the backward reads the values, as of torch's own: no other gradient."""
    torch._dynamo.reset()
    weights = [torch.randn(n, k, device=device, requires_grad=True) for n, k in ((4, 5), (3, 4))]
    x = torch.randn(shape, device=device)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def net(act: str) -> Tensor:
        return mlp(x, weights, activation="relu", output_activation=act, plan=plan)

    read, unread = net("tanh"), net("gelu")
    read += 1
    unread += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        read.sum().backward()
    want = F.gelu(F.linear(F.linear(x, weights[0]).relu(), weights[1])).sum()
    agree(torch.autograd.grad(unread.sum(), weights), torch.autograd.grad(want, weights))
