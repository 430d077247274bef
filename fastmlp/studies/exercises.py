"""The chapter's exercises: one thing of the net or its training is varied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from fastmlp.studies.study import Study

#: What every study takes besides its own.
_Place = torch.device | str | None
_Say = Callable[[str], None]


def width(
    widths: Sequence[int] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    small: bool = False,
    data: Path | str | None = None,
    device: _Place = None,
    say: _Say = print,
) -> Study:
    """How does the test accuracy grow with the width of the hidden layer?"""
    raise NotImplementedError


def depth(
    depths: Sequence[int] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    small: bool = False,
    data: Path | str | None = None,
    device: _Place = None,
    say: _Say = print,
) -> Study:
    """What do more hidden layers bring, and from which number on does training fail?"""
    raise NotImplementedError


def learning_rate(
    rates: Sequence[float] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    small: bool = False,
    data: Path | str | None = None,
    device: _Place = None,
    say: _Say = print,
) -> Study:
    """Which learning rates are too small, and from which one on does training diverge?"""
    raise NotImplementedError


def activation(
    names: Sequence[str] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    small: bool = False,
    data: Path | str | None = None,
    device: _Place = None,
    say: _Say = print,
) -> Study:
    """Which activation trains best?"""
    raise NotImplementedError


def initialization(
    names: Sequence[str] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    small: bool = False,
    data: Path | str | None = None,
    device: _Place = None,
    say: _Say = print,
) -> Study:
    """How much does the start matter, and why must it not be symmetric?"""
    raise NotImplementedError
