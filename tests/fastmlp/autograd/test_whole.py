"""A whole network's autograd node: gradients, second derivatives, what is kept, and who chooses it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp.activations import Act, resolve
from fastmlp.functional import Layer, chain, mlp
from fastmlp.functional.linear import mlp_layers
from fastmlp.functional.ways import aten_chain
from fastmlp.kernels.launch import record_launches

_WIDTHS = (11, 33, 17, 5)
_PLANS = ("whole", "recompute")


@pytest.fixture(autouse=True)
def _triton():
    with backends.use("triton"):
        yield


def net(
    device: str, dtype: torch.dtype = torch.float32, widths: tuple[int, ...] = _WIDTHS
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """An input of 40 rows, weights and biases, all leaves."""
    pairs = list(itertools.pairwise(widths))
    x = torch.randn(40, widths[0], device=device).to(dtype)
    weights = [torch.randn(n, k, device=device).div(k**0.5).to(dtype) for k, n in pairs]
    biases = [torch.randn(n, device=device).to(dtype) for _, n in pairs]
    leaves = [t.requires_grad_() for t in (x, *weights, *biases)]
    return leaves[0], leaves[1 : len(pairs) + 1], leaves[len(pairs) + 1 :]


def activation(name: str, device: str) -> nn.Module | str:
    return nn.PReLU(device=device) if name == "prelu" else name


@pytest.mark.parametrize("plan", ["layers", *_PLANS])
def test_the_forward_is_the_same_without_a_backward(plan: str, device: str) -> None:
    """Every bit of it, whatever is kept."""
    dtype = torch.bfloat16
    x, weights, biases = net(device, dtype)
    for name in ("silu", "gelu", "prelu", "tanh"):
        layers = mlp_layers(weights, biases, activation(name, device), "gelu" if name == "prelu" else name)
        layers = [layer._replace(act=_in(layer.act, dtype)) for layer in layers]
        with torch.no_grad():
            expected = chain(x, layers, plan)
        assert torch.equal(chain(x, layers, plan), expected), name


def _in(act: Act, dtype: torch.dtype) -> Act:
    return act if act.weight is None else act._replace(weight=act.weight.detach().to(dtype))


def test_recompute_keeps_the_input_alone(device: str) -> None:
    """Of an 8-layer net's activations "whole" keeps one matrix a hidden layer, "recompute" none."""
    widths = (16, *[64] * 7, 4)
    kept = {}
    for plan in _PLANS:
        x, weights, biases = net(device, widths=widths)
        params = {t.data_ptr() for t in (x, *weights, *biases)}
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            mlp(x, weights, biases, plan=plan)
        kept[plan] = sum(size for pointer, size in sizes.items() if pointer not in params)
    assert kept == {"whole": 40 * 7 * 64, "recompute": 0}


def test_autocast(device: str) -> None:
    """float32 parameters, products in bf16, gradients in float32: torch's autocast, no cast launched."""
    x, weights, biases = net(device)
    with torch.autocast(device, torch.bfloat16), record_launches() as launches:
        y = mlp(x, weights, biases, plan="whole")
    assert y.dtype == torch.bfloat16
    assert len(launches) == 1
    y.float().sum().backward()
    assert {t.grad.dtype for t in (x, *weights, *biases)} == {torch.float32}  # type: ignore[union-attr]


def test_leading_dimensions_and_an_empty_batch(device: str) -> None:
    _, weights, biases = net(device)
    for shape in ((11,), (0, 11), (2, 3, 11)):
        x = torch.randn(shape, device=device, requires_grad=True)
        y = mlp(x, weights, biases, plan="whole")
        assert y.shape == (*shape[:-1], 5)
        (dx,) = torch.autograd.grad(y.sum(), x)
        expected = aten_chain(x, mlp_layers(weights, biases, "relu"))
        torch.testing.assert_close(dx, torch.autograd.grad(expected.sum(), x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.deep
def test_a_sequential_of_eight_layers_runs_whole_by_itself(device: str) -> None:
    """One launch forward, at most three backward; torch's numbers."""
    layers = [m for i in range(7) for m in (nn.Linear(64 if i else 24, 64), nn.ReLU())]
    ours = fastmlp.Sequential(*layers, nn.Linear(64, 4), nn.Sigmoid()).to(device)
    x = torch.randn(1030, 24, device=device)
    with record_launches() as launches:
        y = ours(x)
    assert [one.name for one in launches] == ["mlp_forward_kernel"]
    with record_launches() as launches:
        y.sum().backward()
    assert len(launches) <= 3
    grads = [p.grad.clone() for p in ours.parameters()]  # type: ignore[union-attr]
    ours.zero_grad()
    with backends.use("torch"):
        theirs = ours(x)
        theirs.sum().backward()
    torch.testing.assert_close(y, theirs, rtol=1e-4, atol=1e-5)
    for mine, parameter in zip(grads, ours.parameters()):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_runs_by_layers_or_says_why(device: str) -> None:
    x = torch.randn(6, 8, device=device)

    def layer(n: int, k: int, act: str = "relu", dropout: float = 0.0) -> Layer:
        return Layer(torch.randn(n, k, device=device), None, resolve(act), dropout)

    cases = {
        "one layer": [layer(4, 8)],
        "a hidden width of 300": [layer(300, 8), layer(4, 300)],
        "different activations": [layer(9, 8, "relu"), layer(9, 9, "tanh"), layer(4, 9)],
        "a dropout": [layer(9, 8, dropout=0.5), layer(4, 9)],
        "not contiguous": [Layer(torch.randn(8, 9, device=device).t(), None), layer(4, 9)],
    }
    for reason, layers in cases.items():
        with record_launches() as launches:
            chain(x, layers)
        assert len(launches) == len(layers), reason
        with pytest.raises(ValueError, match=f"plan: 'whole' does not take these layers: .*{reason}"):
            chain(x, layers, "whole")
    with pytest.raises(ValueError, match="plan: 'fast' is not one of auto, layers, whole, recompute"):
        chain(x, [layer(4, 8)], "fast")
    with backends.use("torch"):  # which has no plans
        assert chain(x, cases["one layer"], "whole").shape == (6, 4)


def test_frozen_layers_are_skipped_by_layers(device: str) -> None:
    x, weights, biases = net(device)
    weights[0].requires_grad_(False)
    with record_launches() as launches:
        mlp(x.detach(), weights, biases)
    assert len(launches) == 3
