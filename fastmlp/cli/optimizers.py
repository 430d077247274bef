"""torch's optimizers by name, with numbers that suit an MLP of the book's."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from fastmlp.cli.common import fail
from fastmlp.cli.options import Optimizer, Settings

_LR = {"sgd": 0.1, "momentum": 0.05, "nesterov": 0.05, "adam": 0.001, "adamw": 0.001}
_WITH_MOMENTUM = (Optimizer.momentum, Optimizer.nesterov)


def resolved(settings: Settings) -> Settings:
    """``settings`` with the numbers of its optimizer that were left to us."""
    kind = settings.optimizer
    if settings.momentum is not None and kind not in _WITH_MOMENTUM:
        fail(f"--momentum: --optimizer {kind.value} has none; expected momentum or nesterov", 2)
    decay = 0.01 if kind is Optimizer.adamw else 0.0
    return replace(
        settings,
        lr=_LR[kind.value] if settings.lr is None else settings.lr,
        momentum=0.9 if settings.momentum is None and kind in _WITH_MOMENTUM else settings.momentum,
        weight_decay=decay if settings.weight_decay is None else settings.weight_decay,
    )


def make(settings: Settings, net: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `resolved` settings over ``net``'s parameters."""
    lr, decay = settings.lr or 0.0, settings.weight_decay or 0.0
    if settings.optimizer is Optimizer.adam:
        return torch.optim.Adam(net.parameters(), lr=lr, weight_decay=decay)
    if settings.optimizer is Optimizer.adamw:
        return torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=decay)
    nesterov = settings.optimizer is Optimizer.nesterov
    return torch.optim.SGD(
        net.parameters(), lr=lr, momentum=settings.momentum or 0.0, weight_decay=decay, nesterov=nesterov
    )


def said(settings: Settings) -> str:
    """The optimizer in a few words: ``SGD 0.1``."""
    name = {"adam": "Adam", "adamw": "AdamW"}.get(settings.optimizer.value, "SGD")
    words = [f"{name} {settings.lr}"]
    if settings.momentum:
        kind = "Nesterov momentum" if settings.optimizer is Optimizer.nesterov else "momentum"
        words.append(f"{kind} {settings.momentum}")
    if settings.weight_decay:
        words.append(f"weight decay {settings.weight_decay}")
    if settings.schedule.value != "constant":
        words.append(settings.schedule.value)
    return ", ".join(words)
