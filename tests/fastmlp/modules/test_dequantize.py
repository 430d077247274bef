"""fastmlp.Dequantize: alone, in front of a chain, and in state_dict."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import backends
from fastmlp.functional.layer import Layers
from fastmlp.kernels.launch import record_launches
from fastmlp.modules.stages import Dequantized, stages_of
from tests.numerics import assert_as_good_as_torch

NUMBERS = [(1 / 255, None), (1 / 255, -0.5), (torch.rand(20) + 0.5, None), (0.01, torch.randn(20))]


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest):
    with backends.use(request.param):
        yield request.param


@pytest.mark.parametrize(("scale", "shift"), NUMBERS, ids=["scale", "shift", "scales", "shifts"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int8], ids=str)
def test_in_front_of_a_chain(scale, shift, kind: torch.dtype, backend: str, device: str) -> None:
    """As torch's ops one after another, with a Flatten before or after it; one launch a layer."""
    low = 0 if kind == torch.uint8 else -128
    flat = [nn.Flatten()] if isinstance(scale, float) and not isinstance(shift, torch.Tensor) else []
    children = [fastmlp.Dequantize(scale, shift), *flat, nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 4)]
    net = fastmlp.Sequential(*children).to(device)
    x = torch.randint(low, low + 256, (13, 4, 5) if flat else (13, 20), dtype=kind, device=device)
    with record_launches() as launches:
        y = net(x)
        grads = torch.autograd.grad(y.square().sum(), list(net.parameters()))
    assert len(launches) == (4 if backend == "triton" else 0)
    with backends.use("torch"):
        theirs = net(x)
        torchs = torch.autograd.grad(theirs.square().sum(), list(net.parameters()))
        exact = net.double()(x)
        truth = torch.autograd.grad(exact.square().sum(), list(net.parameters()))
    for a, b, e in zip((y, *grads), (theirs, *torchs), (exact, *truth)):
        assert_as_good_as_torch(a, b, e, roundings=6)


def test_alone_it_is_torchs_ops(backend: str, device: str) -> None:
    x = torch.randint(-128, 128, (3, 5), dtype=torch.int8, device=device)
    scale, shift = torch.rand(5, device=device), torch.randn(5, device=device)
    module = fastmlp.Dequantize(scale, shift).to(device)
    assert torch.equal(module(x), x.float() * scale + shift)
    assert module.half()(x).dtype == torch.float16
    assert fastmlp.Dequantize(0.5, dtype=torch.float64)(x.cpu()).dtype == torch.float64
    assert torch.equal(fastmlp.Sequential(fastmlp.Dequantize(0.5)).to(device)(x), x * 0.5)


def test_state_dict_and_repr() -> None:
    module = fastmlp.Dequantize(0.5, torch.ones(3))
    assert set(module.state_dict()) == {"scale", "shift"}
    assert set(fastmlp.Dequantize(0.5).state_dict()) == {"scale"}
    assert repr(module) == "Dequantize(scale=0.5, shift=[3])"
    other = fastmlp.Dequantize(0.1, torch.zeros(3))
    other.load_state_dict(module.state_dict())
    assert other.scale == 0.5
    assert not list(module.parameters())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"scale: expected a number or \(features,\), got \(2, 3\)"):
        fastmlp.Dequantize(torch.ones(2, 3))
    with pytest.raises(TypeError, match=r"dtype: expected a floating dtype, got torch\.int8"):
        fastmlp.Dequantize(1.0, dtype=torch.int8)


def stages(*children: nn.Module) -> list[type]:
    return [type(stage) for stage in stages_of(children, (nn.Sequential,))]


def test_what_is_folded() -> None:
    """What is not next to a layer of its dtype, or has many numbers before a Flatten, runs as itself."""
    many, linear = fastmlp.Dequantize(torch.ones(4)), nn.Linear(4, 3)
    assert stages(fastmlp.Dequantize(0.5), linear, nn.ReLU()) == [Dequantized]
    assert stages(nn.Flatten(), many, linear, nn.LayerNorm(3)) == [nn.Flatten, Dequantized, nn.LayerNorm]
    assert stages(fastmlp.Dequantize(0.5, 1.0), nn.Flatten(), linear) == [Dequantized]
    assert stages(many, nn.Flatten(), linear) == [fastmlp.Dequantize, nn.Flatten, Layers]
    assert stages(fastmlp.Dequantize(0.5), nn.ReLU(), linear) == [fastmlp.Dequantize, nn.ReLU, Layers]
    assert stages(fastmlp.Dequantize(0.5).half(), linear) == [fastmlp.Dequantize, Layers]
    hooked = fastmlp.Dequantize(0.5)
    hooked.register_forward_hook(lambda *_: None)
    assert stages(hooked, linear) == [fastmlp.Dequantize, Layers]


def test_floats_are_multiplied_too(backend: str, device: str) -> None:
    """As the module alone: a forward of floats is no forward of integers."""
    net = fastmlp.Sequential(fastmlp.Dequantize(0.5, 1.0), nn.Linear(5, 3)).to(device)
    x = torch.randn(7, 5, device=device, requires_grad=True)
    torch.testing.assert_close(net(x), net[1](x * 0.5 + 1), rtol=1e-5, atol=1e-6)
    net(x).sum().backward()
    torch.testing.assert_close(x.grad, (net[1].weight.sum(0) / 2).expand(7, 5), rtol=1e-5, atol=1e-6)


def test_the_loss_in_the_head(device: str) -> None:
    net = fastmlp.Sequential(fastmlp.Dequantize(1 / 255, -0.2), nn.Flatten(), nn.Linear(20, 9), nn.ReLU())
    net = net.append(nn.Linear(9, 4)).to(device)
    x, y = (
        torch.randint(256, (13, 4, 5), dtype=torch.uint8, device=device),
        torch.randint(4, (13,), device=device),
    )
    with backends.use("triton"), record_launches() as launches:
        fused = net.cross_entropy(x, y, fastmlp.CrossEntropyLoss())
    assert fused is not None
    assert [one.name for one in launches] == ["linear_act_kernel", "head_kernel"]
    with backends.use("torch"):
        torch.testing.assert_close(fused[0], nn.functional.cross_entropy(net(x), y), rtol=1e-5, atol=1e-6)
