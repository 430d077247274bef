"""Every kind of module of ours that runs linear layers, and what it replaces."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp.modules.timm_mlp import TimmMlp
from tests.stateful.sides import ACTS, build

KINDS = ("Sequential", "nested", "MLP", "fused", "timm", "LinearAct")


class Flattening(nn.Sequential):
    """`fastmlp.MLP`, by torch's own modules."""

    flatten = False

    def forward(self, input: Tensor) -> Tensor:
        x = input.flatten(1) if self.flatten else input
        for child in self:
            x = child(x)
        return x


class Block(nn.Module):
    """A Sequential inside of somebody's module."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.body(x)


class Ordered(nn.Module):
    """`TimmMlp`'s twin."""

    def forward(self, x: Tensor) -> Tensor:
        for name in TimmMlp.ORDER:
            x = getattr(self, name)(x)
        return x


class Activated(nn.Linear):
    """`fastmlp.LinearAct`, by torch's own functions."""

    activation: Any = "relu"

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.weight, self.bias)
        return z if self.activation is None else getattr(torch, self.activation)(z)


def make(ours: bool, kind: str, widths: tuple[int, ...], acts: tuple[str, ...], bias: bool) -> nn.Module:
    """Linear layers of those widths with activations between them; dropouts of next to nothing in some."""
    if kind in ("Sequential", "nested"):
        return build(ours, True, widths, acts, bias, kind == "nested")
    if kind == "fused":
        block = Block(build(False, False, widths, acts, bias, False))
        return fastmlp.fuse(block) if ours else block
    if kind == "LinearAct":
        layer = fastmlp.LinearAct if ours else Activated
        return nn.Sequential(*(layer(k, n, bias) for k, n in itertools.pairwise(widths)))
    if kind == "MLP":
        mlp = fastmlp.MLP(widths[0], widths[1:], bias=bias, dropout=1e-12)
        return mlp if ours else Flattening(*mlp)
    made: nn.Module = TimmMlp() if ours else Ordered()
    ends = (widths[0], widths[1]), (widths[1], widths[-1])
    fc1, fc2 = (nn.Linear(k, n, bias) for k, n in ends)
    act = ACTS[acts[0] if acts else "gelu"](widths[1])
    for name, child in zip(TimmMlp.ORDER, (fc1, act, nn.Dropout(1e-12), nn.Identity(), fc2, nn.Dropout(0.0))):
        setattr(made, name, child)
    return made
