"""The stage that trains by every engine: what it finds, and what it says before something hangs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import peers, store
from benchmarks.epochs import EPOCH
from benchmarks.gpu import engines, headlines
from benchmarks.gpu.engines import DTYPES, EAGER, ENGINES, FUSED, PERSISTENT, Problem
from benchmarks.gpu.worker import Bench
from benchmarks.measure import Row, new_row
from benchmarks.peers import OURS, OURS_ENGINES
from fastmlp.engine import fused, persistent
from fastmlp.kernels.launch import INTERPRETED, Launch
from tests.processes import output_of

SMALL = Problem((12, 8, 4), "SGD", 8, 12, 1)

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a rehearsal: on a GPU the stage itself runs")


class Heard:
    """What the stage says, with the rows of some engines alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *names: str, dtype: str = "float32") -> None:
        self.messages: list[dict[str, Any]] = []
        monkeypatch.setattr(engines, "TOY", {SMALL: (dtype,)})
        monkeypatch.setattr(engines, "ENGINES", names)
        engines.run(Bench(self.messages.append, 1000.0, device="cpu", toy=True))

    @property
    def rows(self) -> list[Row]:
        return [message["row"] for message in self.messages if "row" in message]

    @property
    def notes(self) -> list[str]:
        return [message["note"] for message in self.messages if "note" in message]


def test_every_engine_that_can_run_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(monkeypatch, *ENGINES)
    assert [row["engine"] for row in heard.rows] == [*ENGINES]
    for row in heard.rows:
        assert row["key"] == f"engines, 12-8-4, SGD, {row['engine']}, float32"
        assert (row["group"], row["dtype"], row["seconds"], row["missing"]) == ("engines", "float32", {}, {})
        assert "error" not in row, row
        if row["engine"] in (EAGER, FUSED, PERSISTENT):
            assert row["repeatable"]
            assert 0 < row["worst"]["error"] <= row["worst"]["allowed"] < 1e-4
            assert len(row["losses"]) == SMALL.epochs
        else:
            assert row["skipped"] == "it needs a GPU, and the parameters are on cpu"


def test_kernels_are_named_before_they_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard(monkeypatch, FUSED, PERSISTENT, dtype="bfloat16")
    of_fused, of_persistent = heard.rows
    assert "error" not in of_fused
    said = [note.removeprefix(f"{of_fused['key']}: ") for note in heard.notes]
    assert [one for one in said if one.endswith("_kernel")][:3] == [
        "linear_act_kernel", "head_kernel", "update_kernel",
    ]  # fmt: skip
    first = said.index("epoch 1, a whole fused one")
    assert said[first + 1] == "linear_act_kernel"
    assert f"{of_persistent['key']}: epoch_kernel" in heard.notes


def test_the_kernel_before_is_waited_for_but_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the one that hangs is the one that was named last."""
    events: list[Any] = []
    capturing = iter([False, False, True])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("wait"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: next(capturing))
    bench = Bench(lambda message: events.append(message["note"]), 9.0, device="cuda")
    from fastmlp.kernels import launch

    with engines._said(bench, "graph"):
        for name in ("one", "two", "three"):
            kernel = type("Kernel", (), {"__name__": name})()
            for observer in launch._observers:
                observer(Launch(kernel, (1,), (), {}))
    assert events == [
        "wait", "graph: one", "wait", "graph: two", "graph: the capture of three, or the graph's replay",
    ]  # fmt: skip


def tampered(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], object]) -> None:
    """Every step of the fused engine is followed by ``change`` of the first weight."""
    step = fused.train_step

    def wrong(memory: Any, *arguments: Any) -> None:
        step(memory, *arguments)
        change(memory.layers[0].weight.detach())

    monkeypatch.setattr(fused, "train_step", wrong)


def test_wrong_weights_are_an_error_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    tampered(monkeypatch, lambda weight: weight.mul_(1.001))
    (row,) = Heard(monkeypatch, FUSED).rows
    assert row["worst"]["what"] == "0.weight"
    assert row["worst"]["error"] > row["worst"]["allowed"]
    assert row["repeatable"]
    assert row["error"].startswith(f"0.weight: error {row['worst']['error']:.3g}, allowed ")
    assert (row["engine"], row["dtype"]) == (FUSED, "float32")


def test_other_bits_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    count = itertools.count()
    tampered(monkeypatch, lambda weight: weight.view(-1)[0].mul_(1 + next(count) * 2.0**-23))
    (row,) = Heard(monkeypatch, FUSED).rows
    assert row["worst"]["error"] <= row["worst"]["allowed"]
    assert not row["repeatable"]
    assert row["error"].startswith("not repeatable: losses [")


def test_what_raises_is_an_error_and_the_next_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("too many resources requested for launch")

    monkeypatch.setattr(persistent, "epoch", fail)
    first, second = Heard(monkeypatch, PERSISTENT, FUSED).rows
    assert first["error"] == "RuntimeError: too many resources requested for launch"
    assert first["engine"] == PERSISTENT
    assert "error" not in second


def test_weights_that_are_no_numbers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    tampered(monkeypatch, lambda weight: weight[0].fill_(float("nan")))
    (row,) = Heard(monkeypatch, FUSED).rows
    assert row["error"].startswith("losses: error inf, allowed ")


def test_batches_are_the_same_whatever_the_dtype() -> None:
    full, half, exact = (SMALL.job(d, "cpu") for d in (torch.float32, torch.bfloat16, torch.float64))
    assert torch.equal(full.y, exact.y)
    assert torch.equal(full.x.double() / 255, exact.x)
    assert torch.equal(full.x, half.x)
    for p, q in zip(full.model.parameters(), exact.model.parameters()):
        assert torch.equal(p.double(), q)
    assert len(full.y) % SMALL.batch, "the last batch is a short one"
    for problem in engines.PROBLEMS:
        assert problem.examples % problem.batch
    assert all(set(dtypes) == set(DTYPES) for dtypes in engines.PROBLEMS.values())


def test_a_wrong_engine_has_no_time_in_the_dtype_where_it_is_wrong(tmp_path: Path) -> None:
    wrong = new_row("engines", dtype="bfloat16", engine="graph+pdl", part="engines", key="x", error="off")
    store.write(tmp_path / "report.json", {"rows": [wrong]})
    bench = Bench(lambda message: None, 1.0, out=tmp_path)
    names = (OURS, *OURS_ENGINES.values(), peers.EAGER)
    for dtype, left in (("float32", set(names)), ("bfloat16", set(names) - {OURS, OURS_ENGINES["graph"]})):
        row = new_row(EPOCH, dtype=dtype, seconds={name: {} for name in names})
        found = headlines._without_broken_engines(bench, row)
        assert found["seconds"].keys() == left
        assert ("error" in found) == (left != set(names))


_AHEAD = """
from unittest import mock
import torch
from triton.backends.compiler import GPUTarget
from benchmarks import stub
from benchmarks.gpu import ahead, engines
from fastmlp.kernels.compile import specializations

ahead._start(GPUTarget("cuda", 90, 32), 132)
problem = engines.Problem((784, 64, 32, 10), "Adam", 256, 300, 1)
for dtype in engines.DTYPES:
    before = {}
    for engine in engines.ENGINES[1:]:
        with specializations() as keys:
            ahead.compiled(engines.launches, engine, problem, dtype)
        before[engine] = {*keys}
    assert not before["graph"] & before["graph+pdl"]
    with stub.gpu(), engines.products(dtype):
        for engine in (engines.FUSED, engines.PERSISTENT):
            job = problem.job(engines.DTYPES[dtype][0], "cpu")
            made = engines.loop(engine, job)
            made.looks = False  # at a loss that nobody computed
            with specializations() as keys:
                made.epoch(torch.ones(2, dtype=torch.float64))
            print(engine, dtype, len({*keys}), {*keys} == before[engine])
"""


@pytest.mark.deep
def test_what_is_compiled_ahead_is_what_is_launched() -> None:
    said = output_of(_AHEAD, without=["TRITON_INTERPRET", "FASTMLP_BACKEND"]).splitlines()
    expected = [f"{name} {dtype} {n} True" for dtype in DTYPES for name, n in ((FUSED, 5), (PERSISTENT, 1))]
    assert said == expected
