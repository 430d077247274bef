"""torch.func as it is used: per-sample gradients and ensembles of our modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, func, nn
from torch.nn import functional as F

import fastmlp
from fastmlp import backends

GROUP = "Autograd"


@pytest.mark.feature(GROUP, "per-sample gradients: vmap of grad of functional_call")
def test_per_sample_gradients(backend: str, dtype: torch.dtype, device: str) -> None:
    net = fastmlp.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).to(device, dtype)
    loss = fastmlp.CrossEntropyLoss(label_smoothing=0.1)
    x, y = torch.randn(6, 3, device=device).to(dtype), torch.tensor([0, 1, 2, 3, 0, 1], device=device)
    params = {k: v.detach() for k, v in net.named_parameters()}

    def of_one(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(func.functional_call(net, params, (x[None],)), y[None])

    found = func.vmap(func.grad(of_one), (None, 0, 0))(params, x, y)
    plain = nn.Sequential(*net)
    for i in range(len(x)):
        theirs = torch.autograd.grad(
            F.cross_entropy(plain(x[i : i + 1]), y[i : i + 1], label_smoothing=0.1), list(plain.parameters())
        )
        for ours, grad in zip(found.values(), theirs):
            tolerance = 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(ours[i], grad, rtol=tolerance, atol=tolerance)


@pytest.mark.feature(GROUP, "ensembles: stack_module_state and vmap")
@pytest.mark.parametrize("kind", ["Sequential", "MLP", "LinearAct"])
def test_ensemble(kind: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """Forward, and the gradient of every member's loss."""

    def make() -> nn.Module:
        if kind == "LinearAct":
            return fastmlp.LinearAct(3, 4, activation=nn.PReLU())
        if kind == "MLP":
            return fastmlp.MLP(3, [5, 4], activation_layer=nn.SiLU)
        return fastmlp.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))

    members = [make().to(device, dtype) for _ in range(3)]
    params, buffers = func.stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    x, y = torch.randn(6, 3, device=device).to(dtype), torch.tensor([0, 1, 2, 3, 0, 1], device=device)

    def loss(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return fastmlp.functional.cross_entropy(func.functional_call(base, (params, buffers), (x,)), y)

    grads = func.vmap(func.grad(loss))(params, buffers)
    outputs = func.vmap(lambda p, b: func.functional_call(base, (p, b), (x,)))(params, buffers)
    tolerance = 4 * torch.finfo(dtype).eps
    for i, member in enumerate(members):
        with backends.use("torch"):
            theirs = member(x)
        torch.testing.assert_close(outputs[i], theirs, rtol=tolerance, atol=tolerance)
        expected = torch.autograd.grad(F.cross_entropy(theirs, y), list(member.parameters()))
        for ours, grad in zip(grads.values(), expected):
            torch.testing.assert_close(ours[i], grad, rtol=tolerance, atol=tolerance)


@pytest.mark.feature(GROUP, "vmap with dropout, randomness='different'")
def test_vmap_with_dropout(backend: str, dtype: torch.dtype, device: str) -> None:
    """torch's own masks, each copy its own; without ``randomness`` torch's error."""
    net = fastmlp.Sequential(nn.Linear(3, 50), nn.Dropout(0.5)).to(device, dtype)
    x = torch.randn(2, 3, device=device).to(dtype).expand(2, 2, 3)
    one, two = func.vmap(net, randomness="different")(x)
    assert not torch.equal(one == 0, two == 0)
    with pytest.raises(RuntimeError, match="randomness"):
        func.vmap(net)(x)
