"""The node of linear_cross_entropy: which gradients its sweeps make and when, and what they launch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.functional import linear_cross_entropy
from fastmlp.kernels.launch import record_launches
from tests.references import linear_cross_entropy as reference

BACKENDS = ("triton", "auto")


@pytest.fixture(autouse=True)
def _low_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small problem runs in tiles on a CPU, and in several of them."""
    monkeypatch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 1)
    monkeypatch.setattr("fastmlp.autograd.tile_sizes._LEAST", 0)


@pytest.mark.few(4)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_some_need_gradients(
    needs: tuple[int, ...], backend: str, dtype: torch.dtype, device: str
) -> None:
    """Which leaves them alone as they are beside the others; and what needs none gets none."""
    data = [torch.randn(s, device=device).to(dtype) for s in ((40, 8), (301, 8), (301,))]
    target = torch.randint(301, (40,), device=device)

    def grads(needs: tuple[int, ...]) -> list[Tensor | None]:
        x, w, b = (t.clone().requires_grad_(bool(need)) for t, need in zip(data, needs))
        with backends.use(backend):
            linear_cross_entropy(x, w, target, linear_bias=b).backward()
        return [x.grad, w.grad, b.grad]

    for got, wanted, need in zip(grads(needs), grads((1, 1, 1)), needs):
        assert (got is None) == (not need)
        if need:
            torch.testing.assert_close(got, wanted)


@pytest.mark.few(3)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_backward_twice(backend: str, reduction: str, dtype: torch.dtype, device: str) -> None:
    """The first hands out what the forward made, the second makes it again; the input is left alone."""
    x = torch.randn(30, 9, device=device).to(dtype).requires_grad_()
    w = (torch.randn(300, 9, device=device) / 3).to(dtype).requires_grad_()
    before = x.detach().clone()
    with backends.use(backend):
        loss = linear_cross_entropy(x, w, torch.arange(30, device=device), reduction=reduction)
        grad = torch.randn_like(loss)
        passes = [torch.autograd.grad(loss, (x, w), grad, retain_graph=True) for _ in range(3)]
        passes += [torch.autograd.grad(loss, leaf, grad, retain_graph=True) for leaf in (x, w)]
    alone = (passes[-2][0], passes[-1][0])
    for again in (*passes[1:3], alone):
        assert all(map(torch.equal, passes[0], again))
    assert torch.equal(x.detach(), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss_scaling_of_half_precision(backend: str, device: str) -> None:
    """A gradient of 1/N² passes float16 when the loss is scaled, as in torch; and does without."""
    x = torch.randn(200, 8, device=device).half().requires_grad_()
    w = (torch.randn(300, 8, device=device) / 3).half().requires_grad_()
    target = torch.randint(300, (200,), device=device)
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    wanted = torch.autograd.grad(reference(*exact, target), exact)
    for scale in (1.0, 2.0**14):
        with backends.use(backend):
            loss = linear_cross_entropy(x, w, target).float() * scale
        for got, exactly in zip(torch.autograd.grad(loss, (x, w)), wanted):
            error = (got.double() / scale - exactly).norm() / exactly.norm()
            assert error < (4e-3 if scale > 1 else 4e-2), scale


@pytest.mark.parametrize(("dtype", "launches"), [(torch.float32, 8), (torch.bfloat16, 12)], ids=str)
def test_launches(dtype: torch.dtype, launches: int, device: str) -> None:
    """Two a tile of rows, loss and gradient; and one a tile of classes, which float32 does not need."""
    x = torch.randn(64, 4, device=device).to(dtype).requires_grad_()
    w = torch.randn(512, 4, device=device).to(dtype).requires_grad_()
    with backends.use("triton"), record_launches() as seen:
        linear_cross_entropy(x, w, torch.zeros(64, device=device).long()).backward()
    assert len(seen) == launches, [launch.name for launch in seen]
    assert {launch.name for launch in seen} == {
        "cross_entropy_forward_kernel",
        "cross_entropy_backward_kernel",
    }
