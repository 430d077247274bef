"""torch.compile has one graph of it, and make_fx a trace; both compute what eager computes."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.fx.experimental.proxy_tensor import make_fx

from tests.compatibility.compare import same_or_as_good
from tests.compatibility.operations import OPERATIONS, Operation, every_node, every_operation, first
from tests.compatibility.problems import At

#: Dynamo makes no parameters, and here the function makes its PReLU.
OF_A_NEW_MODULE = ("linear_act: PReLU, one slope", "linear_act: PReLU, a slope each")


@pytest.mark.few(12)
@every_operation("torch.compile, fullgraph", [name for name in OPERATIONS if name not in OF_A_NEW_MODULE])
def test_compile(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    torch._dynamo.reset()
    problem = operation.make(At(dtype, device))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(problem.ours, fullgraph=True, backend=counter)
    for _ in range(2):
        found = problem._replace(ours=compiled).run(first)
        same_or_as_good(*found, backend if operation.torchs_own else "triton", "result")
    assert counter.frame_count == 1


@pytest.mark.few(6)
@every_node
@pytest.mark.feature("Every operation", "make_fx: a trace for other numbers")
def test_make_fx(operation: Operation, backend: str, dtype: torch.dtype, device: str) -> None:
    problem = operation.make(At(dtype, device))
    traced = make_fx(problem.ours)(*problem.leaves)
    leaves = [t.flip(0) for t in problem.leaves]
    torch.testing.assert_close(traced(*leaves), problem.torchs(*leaves))
