"""An operation launches what its row says, and what a first call has chosen and compiled serves the next."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from benchmarks.host import python_calls
from fastmlp import backends
from fastmlp.kernels import launch
from tests.compatibility.operations import At, Operation, every_operation
from tests.processes import output_of

#: What the first call of its kind enters to choose a plan. What a module's layers are is found out anew for
#: parameters that replace its own, as here; see `tests/benchmarks/test_host.py`.
CHOICE = ("fastmlp/costs/choice.py", "fastmlp/costs/plans.py")


@pytest.mark.few(36)
@every_operation("launches")
def test_launches(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    problem = operation.make(At(dtype, device))
    by_kernels = backend == "triton" or (backend, device) == ("auto", "cuda")
    expected = [operation.forward, operation.backward]
    if dtype == torch.float16 and operation.backward == 0:  # the gradients wait for the loss' scale
        expected = [1, 1]
    if not by_kernels or dtype not in backends.KERNEL_DTYPES:
        expected = [0, 0]
    leaves = [t.requires_grad_() for t in problem.leaves]
    with launch.record_launches() as forward:
        value = problem.ours(*leaves)
    with launch.record_launches() as backward:
        torch.autograd.grad(value.sum(), leaves)
    assert [len(forward), len(backward)] == expected
    with torch.no_grad(), launch.record_launches() as alone:
        problem.ours(*leaves)
    assert len(alone) <= expected[0]


@contextmanager
def unseen(launch: launch.Launch) -> Iterator[tuple[Any, ...]]:
    """An interpreted launch is none of the host's work."""
    profile = sys.getprofile()
    sys.setprofile(None)
    yield launch.args
    sys.setprofile(profile)


@pytest.mark.few(12)
@every_operation("chosen once")
def test_chosen_once(operation: Operation, device: str) -> None:
    """A second call, of other numbers, chooses nothing."""
    problem = operation.make(At(device=device))

    def step() -> None:
        leaves = [torch.randn_like(t).requires_grad_() for t in problem.leaves]
        torch.autograd.grad(problem.ours(*leaves).sum(), leaves)

    with backends.use("triton"), launch.around(unseen):
        step()
        assert not [call for call in python_calls(step) if call.startswith(CHOICE)]


_COMPILED = """
import json, torch
from benchmarks import host
from tests.compatibility.operations import NODES, OPERATIONS, At

entered = {name: [] for name in NODES}
with host.gpu("cpu"):
    for name in NODES:
        for rows in (6, 6, 7, 32):
            torch.manual_seed(0)
            problem = OPERATIONS[name].make(At(rows=rows))
            leaves = [t.requires_grad_() for t in problem.leaves]
            step = lambda: torch.autograd.grad(problem.ours(*leaves).sum(), leaves)
            entered[name].append([call for call in host.python_calls(step) if call.startswith("triton/")])
print(json.dumps(entered))
"""


@pytest.mark.deep
def test_compiled_once() -> None:
    """As for a GPU: of another number of rows nothing is compiled, and of the same nothing specialized."""
    entered = json.loads(output_of(_COMPILED, timeout=600.0, without=("TRITON_INTERPRET",)))
    for name, (_, same, *others) in entered.items():
        assert not any("/jit.py" in call for call in same) or "300 classes" in name, name  # each tile its own
        assert not any("triton/compiler/compiler.py:compile" in calls for calls in others), name
