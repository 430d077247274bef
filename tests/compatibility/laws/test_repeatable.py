"""One seed gives the same bits twice, the second time under torch's switch to deterministic algorithms."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.compatibility.compare import same
from tests.compatibility.operations import At, Operation, every_operation, second


@contextmanager
def switch() -> Iterator[None]:
    """torch's switch, and fresh memory full of NaN; a warning is an error."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # torch's; an interpreter's NumPy has others
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


def derived(operation: Operation, at: At) -> list[Tensor]:
    torch.manual_seed(3)
    problem = operation.make(at)
    return second(problem.ours, [t.requires_grad_() for t in problem.leaves])


@pytest.mark.few(22)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_operation("the same bits twice, torch.use_deterministic_algorithms")
def test_repeatable(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    at = At(dtype, device, rows=17)
    expected = derived(operation, at)
    with switch():
        found = derived(operation, at)
    assert all(map(same, found, expected))
