"""What is refused writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def untouched(net: nn.Module) -> Iterator[None]:
    """Within it no parameter of ``net`` changes, wherever it goes."""
    before = [p.detach().cpu().clone() for p in net.parameters()]
    yield
    assert all(torch.equal(p.cpu(), old) for p, old in zip(net.parameters(), before, strict=True))
