"""Pairs of features and labels or targets, as others make them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def checked(batch: Any, name: str) -> Pair:
    """A pair of tensors that somebody else made, its labels int64.

    Raises:
        ValueError: it is something else, with what was expected.
    """
    x, y = pair_of(batch, name, "batches")
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise ValueError(
            f"{name}: expected batches of two tensors (features, targets), got {kind_of(x)} and {kind_of(y)}"
        )
    x, y = x.detach(), as_targets(y.detach())
    check_pair(x, y, name)
    return x, y


def pair_of(item: Any, name: str, what: str) -> tuple[Any, Any]:
    """``item`` if it is a pair.

    Raises:
        ValueError: it is none, with what would make it one.
    """
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], item[1]
    raise ValueError(
        f"{name}: expected {what} (features, target), got {kind_of(item)}; wrap the data set in one that "
        "gives pairs, or give a DataLoader with such a collate_fn"
    )


def kind_of(item: Any) -> str:
    """What ``item`` is, for messages."""
    if isinstance(item, dict):
        return f"a dict of {', '.join(map(str, item))}"
    if isinstance(item, (tuple, list)):
        return f"a {type(item).__name__} of {len(item)}"
    if type(item).__module__.split(".")[0] == "PIL":
        return "a PIL image"
    name = type(item).__name__
    return f"{'an' if name[0] in 'aeiouAEIO' or name == 'ndarray' else 'a'} {name}"


def as_targets(y: Tensor) -> Tensor:
    """Whole numbers as int64."""
    return y if y.is_floating_point() or y.is_complex() else y.to(torch.int64)


def check_pair(x: Tensor, y: Tensor, name: str) -> None:
    """See that there is a label or a target for each row of the features.

    Raises:
        ValueError: there is not.
    """
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"{name}: expected at least one example, got {tuple(x.shape)}")
    if y.dim() == 0 or len(y) != len(x):
        expected = f"targets ({len(x)}, ...)" if y.is_floating_point() else f"labels ({len(x)},) torch.int64"
        raise ValueError(f"{name}: expected {expected}, got {tuple(y.shape)} {y.dtype}")
