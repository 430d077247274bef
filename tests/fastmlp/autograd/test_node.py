"""What every node of ours does: it keeps nothing for nobody, and the caller's autocast changes nothing."""

from __future__ import annotations

import pytest
import torch

import fastmlp
from fastmlp import backends
from fastmlp.autograd import linear_cross_entropy as node
from fastmlp.functional import linear_act, linear_cross_entropy, mlp
from fastmlp.kernels.launch import record_launches


@pytest.fixture(autouse=True)
def _triton():
    with backends.use("triton"):
        yield


def test_no_grad_keeps_nothing(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Parameters require grad in evaluation too; nothing is kept, and no gradient formed, for that alone."""
    weights = [torch.randn(n, k, device=device, requires_grad=True) for n, k in ((5, 3), (4, 5))]
    x = torch.randn(6, 3, device=device)
    with torch.no_grad(), record_launches() as launches:
        for plan in ("layers", "whole"):
            mlp(x, weights, activation="gelu", plan=plan)
    assert [s.named["z"] for s in launches] == [None] * 3
    assert launches[-1].named["saved"] is None

    formed: list[object] = []
    monkeypatch.setattr(node.Work, "_add", lambda *a: formed.append(a))
    weight, target = torch.randn(300, 3, device=device, requires_grad=True), torch.arange(6, device=device)
    with torch.no_grad():
        linear_cross_entropy(x, weight, target)
    assert not formed
    linear_cross_entropy(x, weight, target)
    assert formed


def test_the_callers_autocast_changes_nothing(device: str) -> None:
    """A float32 forward has a float32 double backward, wherever that is called."""
    x, w = torch.randn(6, 5, device=device), torch.randn(4, 5, device=device)
    found = []
    for cast in (False, True):
        xi = x.clone().requires_grad_()
        loss = linear_act(xi, w, None, "tanh").square().sum()
        with torch.autocast(device, torch.bfloat16, enabled=cast):
            (gx,) = torch.autograd.grad(loss, xi, create_graph=True)
        found.append((gx, *torch.autograd.grad(gx.square().sum(), xi)))
    assert all(map(torch.equal, *found))


def test_a_batch_of_upstream_gradients_leaves_no_graph(device: str) -> None:
    net = fastmlp.MLP(3, [4, 2]).to(device)
    x = torch.randn(5, 3, device=device, requires_grad=True)
    ups = torch.randn(2, 5, 2, device=device)
    (batched,) = torch.autograd.grad(net(x), x, ups, is_grads_batched=True)
    assert not batched.requires_grad
    for one, up in zip(batched, ups):
        torch.testing.assert_close(one, *torch.autograd.grad(net(x), x, up))
