"""Chains of layers with their loss, for the tests of the loss' autograd nodes."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fastmlp.activations import NONE, TABLE, Act
from fastmlp.functional import Layer
from tests.numerics import assert_as_good_as_torch

#: Loss, output and every gradient; and the names of the launches.
Results = tuple[list[Tensor], list[str]]


def chain_of(
    widths: tuple[int, ...], name: str, device: str, dtype: torch.dtype = torch.float32, wide: bool = False
) -> tuple[list[Layer], list[Tensor]]:
    """Layers with ``name`` between them, and all their leaves: numbers in ``dtype``, ``wide`` in float64."""
    torch.manual_seed(1)
    kind = torch.float64 if wide else dtype
    layers = []
    for i, (k, n) in enumerate(itertools.pairwise(widths)):
        w, b = (t.to(device, dtype) for t in (torch.randn(n, k) / k**0.5, torch.randn(n)))
        w, b = (t.to(kind).requires_grad_() for t in (w, b))
        slope = torch.full((1,), 0.25, device=device, dtype=kind, requires_grad=True)
        act = Act(TABLE[name], 0.1 if name == "leaky_relu" else 0.0, slope if name == "prelu" else None)
        layers.append(Layer(w, b, NONE if i == len(widths) - 2 else act))
    return layers, [t for w, b, a, *_ in layers for t in (w, b, a.weight) if t is not None]


def differentiated(loss: Tensor, output: Tensor | None, leaves: list[Tensor]) -> list[Tensor]:
    """Loss, output, and every gradient for an upstream of 1.5."""
    assert output is not None
    assert not output.requires_grad
    upstream = torch.tensor(1.5, device=loss.device, dtype=loss.dtype)
    return [loss, output, *torch.autograd.grad(loss, leaves, upstream)]


def assert_closed(ours: Results, theirs: Results, exact: Results, depth: int) -> None:
    """The head closed a chain of ``depth`` layers, each launched once a way, and it is as good as torch."""
    names = ours[1]
    assert names.count("head_kernel") == 1
    assert names.count("linear_act_kernel") == depth - 1
    assert names.count("linear_backward_kernel") == depth
    for i, (a, b, c) in enumerate(zip(ours[0], theirs[0], exact[0])):
        assert_as_good_as_torch(a, b, c, f"tensor {i}", roundings=2 * depth + 2)
