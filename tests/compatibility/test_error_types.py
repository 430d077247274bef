"""Wrong arguments by the grid, for torch's databases have few: errors of torch's types, or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp import functional

GROUP = "torch's own test inputs"
TARGETS = [(), (4,), (5,), (1,), (4, 3), (4, 2), (5, 3), (4, 3, 2), (4, 2, 3)]
KINDS = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32, torch.float16, torch.complex64]


def options(device: str) -> list[dict[str, Any]]:
    weights = [torch.ones(3), torch.ones(2), torch.ones(1, 3), torch.ones(3, dtype=torch.float64)]
    return [
        {},
        {"ignore_index": 1},
        {"reduction": "none"},
        {"reduction": "average"},
        {"label_smoothing": 1.5},
        *({"weight": weight.to(device)} for weight in weights),
    ]


def outcome(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> type[Exception] | torch.Size:
    try:
        return function(*args, **kwargs).shape
    except Exception as error:
        return type(error)


def targets(device: str) -> Iterator[Tensor]:
    for shape, kind in product(TARGETS, KINDS):
        yield torch.ones(shape, device=device).to(kind)


@pytest.mark.feature(GROUP, "wrong arguments: cross_entropy", dtype="float32")
def test_cross_entropy(backend: str, device: str) -> None:
    for shape in ((4, 3), (4, 3, 2), (3,)):
        x = torch.randn(shape, device=device)
        for target, given in product(targets(device), options(device)):
            found = outcome(functional.cross_entropy, x, target, **given)
            expected = outcome(F.cross_entropy, x, target, **given)
            assert found == expected, f"{shape}, {target.dtype}{tuple(target.shape)}, {given}"


@pytest.mark.feature(GROUP, "wrong arguments: linear_cross_entropy", dtype="float32")
@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch has no such function")
def test_linear_cross_entropy(backend: str, device: str) -> None:
    biases = [torch.ones(3), torch.ones(2), torch.ones(3, dtype=torch.float64)]
    all_options = [*options(device), *({"linear_bias": bias.to(device)} for bias in biases)]
    shapes = [((4, 5), (3, 5)), ((5,), (3, 5)), ((4, 5), (3, 2, 5)), ((4, 5), (3, 6)), ((4, 5), (5,))]
    for shape, of_weight in [*shapes, ((5,), (3, 2, 5)), ((0, 5), (3, 5))]:
        x, weight = torch.randn(shape, device=device), torch.randn(of_weight, device=device)
        for target, given in product(targets(device), all_options):
            found = outcome(functional.linear_cross_entropy, x, weight, target, **given)
            expected = outcome(F.linear_cross_entropy, x, weight, target, **given)
            assert found == expected, f"{shape}, {of_weight}, {target.dtype}{tuple(target.shape)}, {given}"


@pytest.mark.feature(GROUP, "wrong arguments: PReLU, GELU in a Sequential", dtype="float32")
def test_activations(backend: str, device: str) -> None:
    """The error is torch's own, where the module is called."""
    wrong = [nn.PReLU(3), nn.PReLU(4), nn.GELU("erf")]
    wrong[1].weight = nn.Parameter(torch.ones(1, 4))
    for act in wrong:
        layers = nn.Linear(5, 4, device=device), act.to(device)
        x = torch.randn(2, 5, device=device)
        found, expected = (outcome(kind(*layers), x) for kind in (fastmlp.Sequential, nn.Sequential))
        assert found is expected is RuntimeError, act
