"""An epoch as a CUDA graph: on a GPU alone. What needs none is the table of the schedule."""

from __future__ import annotations

import pytest
import torch

from fastmlp.engine.base import Job
from fastmlp.engine.graph import GraphLoop
from fastmlp.engine.whole_loop import Schedule
from fastmlp.kernels.launch import arch_of, has_dependent_launch
from tests.fastmlp.engine.test_fused import book, executor
from tests.fastmlp.engine.test_persistent import VARIANTS, train
from tests.problems import DTYPES

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def test_a_schedule_is_sent_when_it_changes(device: str) -> None:
    schedule = Schedule(3, 1, 8, torch.device(device))
    rows = torch.randn(3, 1, 8)
    schedule.set(rows)
    assert torch.equal(schedule.rows.cpu(), rows)
    address = schedule.rows.data_ptr()
    schedule.rows.zero_()
    schedule.set(rows.clone())  # the same numbers: nothing is sent
    assert not schedule.rows.any()
    schedule.set(rows + 1)
    assert torch.equal(schedule.rows.cpu(), rows + 1)
    assert schedule.rows.data_ptr() == address  # which a graph has captured


@gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_bits_as_the_fused_steps(variant: str, dtype: torch.dtype) -> None:
    ours, tensors = train("graph", "cuda", dtype=dtype, **VARIANTS[variant])
    fused, expected = train("fused", "cuda", dtype=dtype, **VARIANTS[variant])
    assert ours.engine.startswith("graph")
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected))
    assert [e.train_loss for e in ours.epochs] == [e.train_loss for e in fused.epochs]


@gpu
def test_programmatic_dependent_launch_gives_the_same_bits() -> None:
    results = []
    for early in (False, True):
        run = book("cuda", (784, 256, 10))
        if early and not has_dependent_launch(arch_of(run.net[0].weight)):
            pytest.skip("this GPU has none")
        torch.manual_seed(0)
        x = torch.randint(256, (1000, 784), dtype=torch.uint8, device="cuda")
        y = torch.randint(10, (1000,), device="cuda")
        generator = torch.Generator("cuda").manual_seed(0)
        job = Job(run.net, run.loss, run.optimizer, x, y, 256, generator, torch.float32)
        loop = GraphLoop(executor(run, pdl=early, copies=True), job)
        for p in run.net.parameters():
            torch.nn.init.constant_(p, 0.01)
        loop.epoch(torch.ones(4, dtype=torch.float64))
        results.append(run.parameters())
    assert all(torch.equal(a, b) for a, b in zip(*results))


@gpu
def test_nothing_is_captured_twice_nor_waited_for() -> None:
    run = book("cuda")
    x, y = torch.randn(100, 20, device="cuda"), torch.randint(10, (100,), device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    job = Job(run.net, run.loss, run.optimizer, x, y, 32, generator, torch.float32)
    loop = GraphLoop(executor(run), job)
    factors = torch.ones(4, dtype=torch.float64)
    loop.epoch(factors)
    graph = loop._graph
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.executor.prepare(32)
        loop.schedule.set(loop.executor.rule.rows(factors / 2))
        graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    loop.epoch(factors)
    assert loop._graph is graph
