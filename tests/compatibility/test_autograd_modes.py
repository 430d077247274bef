"""What else autograd can be asked: checkpoints, hooks, modes, freed and written-over graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastmlp
from fastmlp import backends
from fastmlp.functional import cross_entropy, linear_act, linear_cross_entropy
from tests.compatibility.nets import TARGET, agree, all_grads, children, losses, rows_of
from tests.compatibility.page import Refusal

GROUP = "Autograd"
AUTO = {"backend": "torch", "dtype": "float32"}


@pytest.mark.feature(GROUP, "torch.utils.checkpoint")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant: bool, backend: str, dtype: torch.dtype, device: str) -> None:
    def run(net: nn.Sequential, x: Tensor, _: torch.dtype) -> list[Tensor]:
        y = checkpoint(net, x, use_reentrant=reentrant)
        y.square().sum().backward()
        return [y, *all_grads(net, x)]

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "torch.utils.checkpoint with dropout")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint_with_dropout(reentrant: bool, backend: str, dtype: torch.dtype, device: str) -> None:
    """The recomputed forward draws the first one's masks: bit for bit the gradients without a checkpoint."""
    found = []
    for wrapped in (False, True):
        net = fastmlp.Sequential(*children(dtype, device, dropout=0.5))
        x = rows_of(dtype, device).requires_grad_()
        torch.manual_seed(5)
        y = checkpoint(net, x, use_reentrant=reentrant) if wrapped else net(x)
        torch.manual_seed(99)  # what happens between forward and backward
        y.square().sum().backward()
        found.append([y, *all_grads(net, x)])
    assert all(map(torch.equal, *found))


@pytest.mark.feature(GROUP, "checkpoint of a loss")
def test_checkpointed_loss(backend: str, dtype: torch.dtype, device: str) -> None:
    for name, (function, x) in losses(device, dtype).items():
        found = []
        for wrapped in (False, True):
            leaf = x.clone().requires_grad_()
            value = checkpoint(function, leaf, use_reentrant=False) if wrapped else function(leaf)
            found.append([value, *torch.autograd.grad(value, leaf)])
        assert all(map(torch.equal, *found)), name


@pytest.mark.feature(GROUP, "saved-tensor hooks")
def test_saved_tensor_hooks(backend: str, dtype: torch.dtype, device: str) -> None:
    """What is kept goes through pack and unpack, and the backward works with what unpack gives."""
    for name, (function, x) in losses(device, dtype).items():
        plain, hooked = (x.clone().requires_grad_() for _ in range(2))
        packed: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            packed.append(tensor)  # noqa: B023
            return tensor.detach().clone()

        (expected,) = torch.autograd.grad(function(plain), plain)
        with saved_tensors_hooks(pack, lambda t: t.clone()):
            value = function(hooked)
        (grad,) = torch.autograd.grad(value, hooked)
        assert packed, name
        assert torch.equal(grad, expected), name


@pytest.mark.feature(GROUP, "save_on_cpu")
def test_save_on_cpu(backend: str, dtype: torch.dtype, device: str) -> None:
    for name, (function, x) in losses(device, dtype).items():
        found = []
        for context in (nullcontext(), save_on_cpu(pin_memory=device == "cuda")):
            leaf = x.clone().requires_grad_()
            with context:  # type: ignore[attr-defined]
                value = function(leaf)
            found += torch.autograd.grad(value, leaf)
        assert torch.equal(*found), name


@pytest.mark.feature(GROUP, "anomaly mode")
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode(backend: str, dtype: torch.dtype, device: str) -> None:
    """Results are the same; a NaN in a gradient is an error that names the node."""

    def run(net: nn.Sequential, x: Tensor, _: torch.dtype) -> list[Tensor]:
        with torch.autograd.detect_anomaly(check_nan=True):
            y = net(x)
            y.square().sum().backward()
        return [y, *all_grads(net, x)]

    agree(run, backend, dtype, device)
    node = "(WholeNet|Chain)" if backend == "triton" and dtype != torch.float64 else "Addmm"
    net = fastmlp.Sequential(*children(dtype, device))
    nn.init.constant_(net[3].weight, float("nan"))
    with torch.autograd.detect_anomaly():
        y = net(rows_of(dtype, device))
        with pytest.raises(RuntimeError, match=f"{node}Backward.* returned nan values"):
            y.backward(torch.ones_like(y))


@pytest.mark.feature(GROUP, "retain_graph and a second backward")
def test_second_backward(backend: str, dtype: torch.dtype, device: str) -> None:
    for name, (function, x) in losses(device, dtype).items():
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        value.backward(retain_graph=True)
        first = leaf.grad.clone()  # type: ignore[union-attr]
        leaf.grad = None
        value.backward(retain_graph=True)
        # A linear cross-entropy hands its first gradient out, and computes the second anew.
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            leaf.grad, first, rtol=tolerance, atol=tolerance * first.abs().max().item(), msg=name
        )
        (twice,) = torch.autograd.grad(value, leaf, torch.full_like(value, 2.0))
        torch.testing.assert_close(
            twice, 2 * first, rtol=tolerance, atol=2 * tolerance * first.abs().max().item(), msg=name
        )


@pytest.mark.feature(GROUP, "a backward through a freed graph")
def test_freed_graph(backend: str, dtype: torch.dtype, device: str, refuses: Refusal) -> None:
    for function, x in losses(device, dtype).values():
        value = function(x.clone().requires_grad_())
        value.backward()
        with refuses(RuntimeError, "backward through the graph a second time"):
            value.backward()


@pytest.mark.feature(GROUP, "a saved tensor that is written over")
def test_written_over(backend: str, dtype: torch.dtype, device: str, refuses: Refusal) -> None:
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    made = children(dtype, device)
    net = fastmlp.Sequential(*made)
    x = rows_of(dtype, device).requires_grad_()
    weight = torch.randn(300, 5, **like)
    target = torch.tensor(TARGET, device=device)
    for function, saved in (
        (lambda t: net(t).sum(), made[3].weight),
        (lambda t: linear_act(t, weight, None, "silu").sum(), weight),
        (lambda t: linear_cross_entropy(t, weight, target), weight),
    ):
        value = function(x)
        with torch.no_grad():
            saved.mul_(2)
        with refuses(RuntimeError, "modified by an inplace operation"):
            value.backward()
    inputs = x * 1.0
    y = linear_act(inputs, weight.requires_grad_(), None, "silu")
    inputs.add_(1)
    with refuses(RuntimeError, "modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.feature(GROUP, "an output that is written over")
def test_output_written_over(backend: str, dtype: torch.dtype, device: str) -> None:
    """Where the derivative comes from the output it is refused, as torch's; a linear layer does not mind."""
    x, w = rows_of(dtype, device).requires_grad_(), torch.randn(4, 5, device=device).to(dtype)
    for activation in (None, "tanh"):
        for function in (
            lambda: linear_act(x, w, None, activation),  # noqa: B023
            lambda: F.linear(x, w) if activation is None else F.linear(x, w).tanh(),  # noqa: B023
        ):
            y = function()
            y.mul_(2)
            if activation is None:
                (grad,) = torch.autograd.grad(y.sum(), x)
                torch.testing.assert_close(grad, 2 * w.sum(0).expand(6, 5), rtol=1e-2, atol=1e-2)
            else:
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    y.sum().backward()


def contexts() -> dict[str, Callable[[], AbstractContextManager[object]]]:
    return {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "set_grad_enabled(False)": lambda: torch.set_grad_enabled(False),
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.feature(GROUP, name)) for name in contexts()]
)
def test_without_grad(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """The same values, nothing to differentiate, and grad mode inside is grad mode."""
    for function, x in losses(device, dtype).values():
        leaf = x.clone().requires_grad_()
        with_grad = function(leaf)
        with contexts()[name]():
            value = function(leaf)
            assert not value.requires_grad
            assert value.is_inference() == (name == "inference_mode")
        torch.testing.assert_close(value, with_grad.detach(), rtol=1e-2, atol=1e-2)

    def run(net: nn.Sequential, x: Tensor, _: torch.dtype) -> list[Tensor]:
        with contexts()[name]():
            quiet = net(x).clone()
            if name == "inference_mode":
                return [quiet]
            with torch.enable_grad():
                loud = net(x)
        loud.sum().backward()
        return [quiet, loud, *all_grads(net, x)]

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "inference tensors in autograd")
def test_inference_tensors(backend: str, dtype: torch.dtype, device: str, refuses: Refusal) -> None:
    """They cannot be saved for a backward, and torch says so; a clone can, and without grad all is well."""
    made = children(dtype, device)
    net, plain = fastmlp.Sequential(*made), nn.Sequential(*made)
    with torch.inference_mode():
        x = rows_of(dtype, device)
        frozen = torch.randn(4, 5, device=device).to(dtype)
    leaf = rows_of(dtype, device).requires_grad_()
    for function in (lambda: net(x), lambda: linear_act(leaf, frozen, None, "tanh"), lambda: plain(x)):
        with refuses(RuntimeError, "Inference tensors cannot be saved for backward"):
            function()
    net(x.clone()).sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain(x), rtol=2e-2, atol=2e-2)
    cross_entropy(net(x.clone()), torch.tensor(TARGET, device=device)).backward()


@pytest.mark.feature(GROUP, "modes at sizes that 'auto' treats by itself on a CPU", **AUTO)
@pytest.mark.parametrize("name", ["many classes", "many logits"])
def test_ways_of_auto(name: str, device: str) -> None:
    """Checkpoint, hooks, a second backward and a freed graph where the forward already forms gradients."""
    target = torch.randint(512, (4096,), device=device)
    weight = torch.randn(1024, 4, device=device, requires_grad=True)
    data, function = {
        "many classes": (torch.randn(4096, 512), lambda x: cross_entropy(x, target)),
        "many logits": (torch.randn(4096, 4), lambda x: linear_cross_entropy(x, weight, target)),
    }[name]
    leaf = data.to(device).requires_grad_()
    with backends.use("auto"):
        value = function(leaf)
        (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
        (second,) = torch.autograd.grad(value, leaf)
        torch.testing.assert_close(first, second)
        (scaled,) = torch.autograd.grad(function(leaf), leaf, torch.tensor(-0.5, device=device))
        torch.testing.assert_close(scaled, -0.5 * first)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(value, leaf)
        again = checkpoint(function, leaf, use_reentrant=False)
        assert torch.equal(*torch.autograd.grad(again, leaf), first)
        with save_on_cpu():
            kept = function(leaf)
        assert torch.equal(*torch.autograd.grad(kept, leaf), first)
        with torch.inference_mode():
            torch.testing.assert_close(function(leaf), value.detach())
