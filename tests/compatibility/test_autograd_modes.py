"""What else autograd can be asked: checkpoints, hooks, modes, freed and written-over graphs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
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
from fastmlp.functional import Layer, chain, cross_entropy, linear_act, linear_cross_entropy, mlp
from fastmlp.kernels import launch
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.page import Refusal

GROUP = "Autograd"
Function = Callable[[Tensor], Tensor]
TARGET = (0, 3, 1, 2, 3, 0)


def children(dtype: torch.dtype, device: str, dropout: float = 0.0) -> list[nn.Module]:
    torch.manual_seed(0)
    layers = nn.Linear(5, 7), nn.GELU(), nn.Dropout(dropout), nn.Linear(7, 4)
    return [layer.to(device, dtype) for layer in layers]


def rows_of(dtype: torch.dtype, device: str) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 5).to(device, dtype)


def three(dtype: torch.dtype, device: str) -> Iterator[tuple[nn.Sequential, Tensor, torch.dtype]]:
    """Ours, torch's and float64's: a net of the same weights, and the same input."""
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        made = children(dtype, device)
        net = fastmlp.Sequential(*made) if ours else nn.Sequential(*made)
        yield net.to(kind), rows_of(dtype, device).to(kind, copy=True).requires_grad_(), kind


def agree(
    run: Callable[[nn.Sequential, Tensor, torch.dtype], Sequence[Tensor]],
    backend: str,
    dtype: torch.dtype,
    device: str,
) -> None:
    """``run``'s results on ours against torch's."""
    same_or_as_good(*(run(*case) for case in three(dtype, device)), backend, "result")


def all_grads(net: nn.Module, x: Tensor) -> list[Tensor]:
    grads = [x.grad, *(p.grad for p in net.parameters())]
    assert all(grad is not None for grad in grads)
    return grads  # type: ignore[return-value]


def losses(device: str, dtype: torch.dtype) -> dict[str, tuple[Function, Tensor]]:
    """A function of every autograd node, each from an input to a scalar."""
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    target = torch.tensor(TARGET, device=device)
    net = fastmlp.Sequential(*children(dtype, device))
    weights = [torch.randn(7, 5, **like), torch.randn(4, 7, **like)]
    layers = [Layer(weights[0], None), Layer(weights[1], None)]
    many, x = torch.randn(300, 5, **like), rows_of(dtype, device)
    return {
        "chain": (lambda x: chain(x, layers, "layers").sum(), x),
        "whole": (lambda x: mlp(x, weights, activation="tanh", plan="auto").sum(), x),
        "cross_entropy": (lambda x: cross_entropy(x, target), x),
        "linear_cross_entropy": (lambda x: linear_cross_entropy(x, many, target), x),
        "rows": (lambda x: linear_cross_entropy(x, many, target, reduction="none").sum(), x),
        "classifier": (lambda x: _classifier(net, x, target), x),
    }


def _classifier(net: fastmlp.Sequential, x: Tensor, target: Tensor) -> Tensor:
    loss = fastmlp.CrossEntropyLoss()
    found = net.cross_entropy(x, target, loss)
    return loss(net(x), target) if found is None else found[0]


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
    for function, x in losses(device, dtype).values():
        with torch.autograd.detect_anomaly():
            value = function(x.clone().requires_grad_())
            with pytest.raises(RuntimeError, match="returned nan values"):
                value.backward(torch.full_like(value, float("nan")))


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


@pytest.mark.feature(GROUP, "gradients that accumulate")
def test_accumulation(backend: str, dtype: torch.dtype, device: str) -> None:
    def run(net: nn.Sequential, x: Tensor, _: torch.dtype) -> list[Tensor]:
        for part in x.split([1, 3, 2]):
            net(part).square().sum().backward()
        kept = [p.grad for p in net.parameters()]
        net(x).sum().backward()
        assert all(a is p.grad for a, p in zip(kept, net.parameters())), "not in place"
        return all_grads(net, x)

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "some tensors alone require grad")
@pytest.mark.parametrize("wanted", range(1, 8))
def test_partial(wanted: int, backend: str, dtype: torch.dtype, device: str) -> None:
    """Every subset of input, weight and bias: gradients there, None elsewhere."""
    data = [rows_of(dtype, device), torch.randn(4, 5, device=device).to(dtype)]
    data.append(torch.randn(4, device=device).to(dtype))
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        tensors = [t.to(kind, copy=True).requires_grad_(bool(wanted >> i & 1)) for i, t in enumerate(data)]
        y = linear_act(*tensors, "sigmoid") if ours else F.linear(*tensors).sigmoid()
        y.sum().backward()
        assert [t.grad is not None for t in tensors] == [bool(wanted >> i & 1) for i in range(3)]
        runs.append([y, *(t.grad for t in tensors if t.grad is not None)])
    same_or_as_good(*runs, backend, "result")


@pytest.mark.feature(GROUP, "hooks on tensors")
def test_tensor_hooks(backend: str, dtype: torch.dtype, device: str) -> None:
    """On leaves, between stages, and after a gradient is accumulated; one may replace the gradient."""

    def run(net: nn.Sequential, x: Tensor, _: torch.dtype) -> list[Tensor]:
        seen: list[Tensor] = []
        weight = net[0].weight
        weight.register_hook(lambda g: seen.append(g) or 2 * g)
        net[3].bias.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        hidden = net[:2](x)
        hidden.register_hook(lambda g: 3 * g)
        hidden.retain_grad()
        net[3:](hidden).square().sum().backward()
        assert len(seen) == 2
        return [*seen, hidden.grad, *all_grads(net, x)]  # type: ignore[list-item]

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "an optimizer step in a post-accumulate hook")
def test_step_in_backward(backend: str, dtype: torch.dtype, device: str) -> None:
    def run(net: nn.Sequential, x: Tensor, _: torch.dtype) -> list[Tensor]:
        for p in net.parameters():
            optimizer = torch.optim.SGD([p], lr=0.5)

            def step(p: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            p.register_post_accumulate_grad_hook(step)
        for _ in range(2):
            net(x).square().mean().backward()
        return [p.detach() for p in net.parameters()]

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "weights that are no leaves")
def test_non_leaf_weights(backend: str, dtype: torch.dtype, device: str) -> None:
    """A weight that another net makes, or a view of a larger one."""
    data = [rows_of(dtype, device), torch.randn(8, 5, device=device).to(dtype)]
    runs = []
    for kind, ours in ((dtype, True), (dtype, False), (torch.float64, False)):
        x, base = (t.to(kind, copy=True).requires_grad_() for t in data)
        first, second = base[::2].tanh(), base[4:, :4] * x.mean()
        if ours:
            y = mlp(x, [first, second], activation="silu")
        else:
            y = F.linear(F.silu(F.linear(x, first)), second)
        y.square().sum().backward()
        runs.append([y, x.grad, base.grad])
    same_or_as_good(*runs, backend, "result")


@pytest.mark.feature(GROUP, "undefined and missing upstream gradients")
def test_undefined_upstream(backend: str, dtype: torch.dtype, device: str) -> None:
    """A loss that does not depend on a result, and a function that gives its gradient as None."""

    class Swallow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, y: Tensor) -> Tensor:
            return y.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    for name, (function, x) in losses(device, dtype).items():
        leaf = x.clone().requires_grad_()
        value = function(leaf)
        (Swallow.apply(value) + leaf.sum()).backward()
        assert torch.equal(leaf.grad, torch.ones_like(leaf)), name  # type: ignore[arg-type]
        grads = torch.autograd.grad(leaf.sum() + 0 * value.detach(), (leaf, value), allow_unused=True)
        assert grads[1] is None


@pytest.mark.feature(GROUP, "upstream gradients of any layout")
def test_upstream_layouts(backend: str, dtype: torch.dtype, device: str) -> None:
    """Expanded, transposed, zero."""

    def run(net: nn.Sequential, x: Tensor, kind: torch.dtype) -> list[Tensor]:
        found = []
        wide = torch.arange(24, device=device).to(kind) / 8
        for up in (
            wide[:1].expand(6, 4),
            wide.view(4, 6).t(),
            wide[:6, None].expand(6, 4),
            0 * wide.view(6, 4),
        ):
            found += torch.autograd.grad(net(x), [x, *net.parameters()], up)
        return found

    agree(run, backend, dtype, device)


@pytest.mark.feature(GROUP, "complex tensors")
def test_complex(backend: str, device: str, refuses: Refusal) -> None:
    """Modules hand them to torch; the functional forms name the argument."""
    net = fastmlp.Sequential(nn.Linear(5, 4), nn.Tanh()).to(device, torch.complex64)
    x = torch.randn(6, 5, device=device, dtype=torch.complex64, requires_grad=True)
    assert torch.equal(net(x), nn.Sequential(*net)(x))
    net(x).abs().sum().backward()
    with refuses(TypeError, "weight: expected floating dtypes, got torch.complex64"):
        linear_act(x, net[0].weight)


@pytest.mark.feature(GROUP, "memory: a graph holds nothing when it is gone")
def test_no_cycles(backend: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No node refers to itself: the input is freed without the garbage collector."""
    for function, x in losses(device, dtype).values():
        function(x)  # whose launches are on record; a record holds its tensors
    monkeypatch.setattr(launch, "_observers", [])
    gc.collect()
    gc.disable()
    try:
        for name, (function, x) in losses(device, dtype).items():
            leaf = x.clone().requires_grad_()
            alive = weakref.ref(leaf)
            function(leaf * 1.0).backward()
            value = function(leaf)
            del leaf, value
            assert alive() is None, name
    finally:
        gc.enable()


@pytest.mark.feature(GROUP, "modes at sizes that 'auto' treats by itself on a CPU")
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
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(value, leaf)
        again = checkpoint(function, leaf, use_reentrant=False)
        assert torch.equal(*torch.autograd.grad(again, leaf), first)
        with save_on_cpu():
            kept = function(leaf)
        assert torch.equal(*torch.autograd.grad(kept, leaf), first)
        with torch.inference_mode():
            torch.testing.assert_close(function(leaf), value.detach())
