"""Activations and their gradients, as what trains here computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.activations import NAMES, from_module, module_of
from fastmlp.functional import linear_act
from fastmlp.plots import style

#: The book's, and three that came later.
SHOWN = ("relu", "prelu", "sigmoid", "tanh", "gelu", "silu")
_TITLES = {"relu": "ReLU", "prelu": "PReLU", "gelu": "GELU", "gelu_tanh": "GELU (tanh)", "silu": "SiLU"}
_RANGE, _POINTS = 5.0, 200  # to either side of 0, which is one of them


class Curve(NamedTuple):
    """An activation f on a grid: (points,) float32 each, on the CPU."""

    x: Tensor
    f: Tensor
    gradient: Tensor


@style.styled
def activations(
    names: Sequence[str] = SHOWN,
    *,
    device: torch.device | str | None = None,
) -> style.Picture:
    """Each activation and its gradient, a panel each; the title says whose derivatives they are.

    Args:
        names: of `fastmlp.activations.NAMES`.
        device: where they are computed; None for the GPU if there is one.

    Raises:
        ValueError: a name that is none of these.
    """
    found, source = curves(names, device=device)
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = style.figure(3 * columns, 2.35 * rows + 0.5)
    for i, (name, curve) in enumerate(found.items()):
        axis = figure.add_subplot(rows, columns, i + 1)
        axis.axhline(0, color=style.GREY, linewidth=0.6)
        axis.axvline(0, color=style.GREY, linewidth=0.6)
        x, f, gradient = (tensor.numpy() for tensor in curve)
        axis.plot(x, f, color=style.BLUE, linewidth=2, label="f(x)")
        axis.plot(x, gradient, "--", color=style.ORANGE, linewidth=1.8, label="gradient f′(x)")
        axis.set_title(_title(name))
        axis.set_xlim(-_RANGE, _RANGE)
        if i >= len(found) - columns:
            axis.set_xlabel("x")
        if i == 0:
            axis.legend(loc="upper left")
    figure.suptitle(f"Activations and their gradients, computed by {source}", fontsize=10)
    return figure


def curves(names: Sequence[str], *, device: torch.device | str | None = None) -> tuple[dict[str, Curve], str]:
    """What `activations` draws, and whose derivatives these are.

    Where the kernels run, a layer of one neuron with weight 1 forwards the grid, and its backward gives
    the gradient: both from the device functions in ``kernels/common``. Elsewhere they are those of
    the table `fastmlp.activations`, which the device functions are tested against.
    """
    if not names:
        raise ValueError(f"names: expected some of {', '.join(NAMES)}, got none")
    for name in names:
        if name not in NAMES:
            raise ValueError(f"names: expected some of {', '.join(NAMES)}, got {name!r}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    x = torch.arange(-_POINTS, _POINTS + 1, device=place) * (_RANGE / _POINTS)
    by_kernels = backends.choose(x).backend is not None
    found = {}
    for name in names:
        f, gradient = _by_kernels(name, x) if by_kernels else _by_table(name, x)
        found[name] = Curve(x.cpu(), f.cpu(), gradient.cpu())
    if not by_kernels:
        return found, "fastmlp's table of derivatives (no Triton kernel runs here)"
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else "in Triton's interpreter"
    return found, f"the Triton kernels' own device functions ({where})"


def _by_kernels(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    column = x[:, None].clone().requires_grad_()
    f = linear_act(column, x.new_ones(1, 1), None, module_of(name).to(x.device))
    (gradient,) = torch.autograd.grad(f.sum(), column)
    return f.detach()[:, 0], gradient[:, 0]


def _by_table(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    act = from_module(module_of(name).to(x.device).requires_grad_(False))
    assert act is not None
    f = act(x)
    return f, act.derivative(f if act.saves_output else x)


def _title(name: str) -> str:
    title = _TITLES.get(name, name.replace("_", " "))
    return f"{title} (slope 0.25)" if name == "prelu" else title
