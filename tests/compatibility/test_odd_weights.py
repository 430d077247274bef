"""Tensors whose elements an address does not tell: sparse ones, negated views, types of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp.functional import chain_cross_entropy, cross_entropy, linear_act, linear_cross_entropy
from fastmlp.functional.layer import Layer
from tests.compatibility.nets import TARGET
from tests.compatibility.twins import agree, plain, rows

GROUP = "Modules"


class Counted(Tensor):
    """A tensor of a type of its own, which sees every linear layer it is in."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls += func is F.linear
        return super().__torch_function__(func, types, args, kwargs or {})


#: Each from a weight to one of the same values.
ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "a tensor type of one's own": lambda w: w.as_subclass(Counted),
    "sparse": lambda w: w.to_sparse_csr(),
    "the imaginary part of a conjugate": lambda w: torch.complex(w, -w).conj().imag,
}


@pytest.mark.feature(GROUP, "weights of odd kinds: sparse, negated views, tensor subclasses", dtype="float32")
@pytest.mark.parametrize("name", list(ODD))
@pytest.mark.filterwarnings("ignore:Sparse")
def test_odd_weights(name: str, backend: str, device: str) -> None:
    """Kernels do not read them: the very bits of torch's ops."""
    torch.manual_seed(0)
    x, w, b = rows(device), torch.randn(4, 5, device=device), torch.randn(4, device=device)
    odd = nn.Parameter(ODD[name](w), requires_grad=False)
    made = {
        "Linear": fastmlp.Sequential(nn.Linear(5, 4), nn.ReLU()),
        "LinearAct": fastmlp.Sequential(fastmlp.LinearAct(5, 4)),
    }
    for net in made.values():
        net.to(device).load_state_dict({"0.weight": w, "0.bias": b})
        net[0].weight = odd
        Counted.calls = 0
        assert torch.equal(net(x), F.linear(x, odd, b).relu())
        assert Counted.calls == (2 if name.startswith("a tensor type") else 0)
    assert torch.equal(linear_act(x, odd, b), F.linear(x, odd, b).relu())
    if name != "sparse":
        target = torch.tensor(TARGET, device=device)
        assert torch.equal(
            linear_cross_entropy(x, odd, target, linear_bias=b), F.cross_entropy(F.linear(x, odd, b), target)
        )


@pytest.mark.feature(GROUP, "negated views as input, target, class weight and gradient")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)  # as there are complex numbers
def test_negated_views(backend: str, dtype: torch.dtype, device: str) -> None:
    """A complex output's gradient is one: kernels that read its memory took it with the wrong sign."""
    torch.manual_seed(0)
    values, weight = torch.randn(6, 4, device=device, dtype=dtype), torch.rand(4, device=device, dtype=dtype)
    target, chances = torch.tensor(TARGET, device=device), torch.randn_like(values).softmax(1)

    def negated(t: Tensor) -> Tensor:
        odd = torch.complex(t, -t).conj().imag
        assert odd.is_neg()
        return odd

    layers = [Layer(torch.randn(3, 4, device=device, dtype=dtype).requires_grad_(), None)]
    for function, arguments in (
        (lambda x: linear_act(x, layers[0].weight, None, "tanh"), [values]),
        (lambda x, y, w: cross_entropy(x, y, w), [values, chances, weight]),
        (lambda x, w: cross_entropy(x, target, w, z_loss=0.1), [values, weight]),
        (lambda x, w: chain_cross_entropy(x, layers, target.clamp(max=2), w[:3])[0], [values, weight]),
        (lambda x, w: linear_cross_entropy(x, values[:4], target, weight=w), [values, weight]),
    ):
        for i in range(len(arguments)):
            odd = [negated(t) if i == j else t for j, t in enumerate(arguments)]
            torch.testing.assert_close(function(*odd), function(*arguments))

    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        y, signs = net(x), []
        y.register_hook(lambda grad: signs.append(grad.is_neg()))
        turned = torch.complex(torch.zeros_like(y), y).conj() * (1 + 2j)
        torch.view_as_real(turned).square().sum().backward()
        assert signs == [True]
        return [x.grad, *(p.grad for p in net.parameters())]  # type: ignore[list-item]

    agree(plain, backend, device, dtype, run=run)
    logits = values.clone().requires_grad_()
    upstream = torch.randn(6, device=device, dtype=dtype)
    for each in (
        lambda: cross_entropy(logits, target, reduction="none"),
        lambda: linear_cross_entropy(logits, values[:4], target, reduction="none"),
    ):
        grads = [torch.autograd.grad(each(), logits, g)[0] for g in (negated(upstream), upstream)]
        torch.testing.assert_close(*grads)
