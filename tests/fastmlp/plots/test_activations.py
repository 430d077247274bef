"""The curves that are drawn are the functions and gradients of torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastmlp import backends, plots
from fastmlp.activations import NAMES, module_of
from fastmlp.backends.triton_backend import TritonBackend
from fastmlp.kernels.launch import record_launches
from fastmlp.plots.activations import SHOWN, curves


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", NAMES)
def test_curves_are_torchs(name: str, backend: str, device: str) -> None:
    """By the table, and by the kernels' device functions, to a few units of float32."""
    with backends.use(backend):
        found, source = curves([name], device=device)
    x = found[name].x.double().requires_grad_()
    f = module_of(name).double()(x)
    (gradient,) = torch.autograd.grad(f.sum(), x)
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(found[name].f.double(), f.detach(), rtol=8 * eps, atol=8 * eps)
    torch.testing.assert_close(found[name].gradient.double(), gradient, rtol=8 * eps, atol=8 * eps)
    assert ("Triton kernels' own" in source) == (backend == "triton")


def test_the_kernels_are_what_is_drawn(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the table nor torch's autograd of the activation stands in for them."""
    ran = []

    def spied(name: str) -> Callable[..., object]:
        kernel = getattr(TritonBackend, name)

        def spy(*args: object, **kwargs: object) -> object:
            ran.append(name)
            return kernel(*args, **kwargs)

        return spy

    for name in ("linear_act", "linear_backward"):
        monkeypatch.setattr(TritonBackend, name, spied(name))
    # Who watches the launches has the calls made as they are written, not as an earlier test's were recorded.
    with backends.use("triton"), record_launches():
        curves(["gelu"], device=device)
    assert ran == ["linear_act", "linear_backward"]


@pytest.mark.parametrize(("backend", "names"), [("torch", SHOWN), ("triton", ("silu",))])
def test_the_picture(backend: str, names: tuple[str, ...], device: str) -> None:
    """Each panel holds f and its gradient, and the title says whose they are."""
    with backends.use(backend):
        figure, (found, source) = plots.activations(names, device=device), curves(names, device=device)
    assert source in figure.get_suptitle()
    titles = ["ReLU", "PReLU (slope 0.25)", "sigmoid", "tanh", "GELU", "SiLU"]
    assert [axis.get_title() for axis in figure.axes] == titles[-len(names) :]
    for axis, curve in zip(figure.axes, found.values()):
        *_, f, gradient = axis.lines
        for line, values in ((f, curve.f), (gradient, curve.gradient)):
            assert line.get_xdata().tolist() == curve.x.tolist()
            assert line.get_ydata().tolist() == values.tolist()


@pytest.mark.parametrize(("names", "got"), [((), "none"), (("relu", "swish"), "'swish'")])
def test_unknown_names_are_refused(names: tuple[str, ...], got: str) -> None:
    with pytest.raises(ValueError, match=f"names: expected some of none, relu, .*, got {got}"):
        plots.activations(names)
