"""Whatever order the programs of a launch run in, the bits are the same, and barriers and atomics say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given
from torch import Tensor
from triton.backends.compiler import GPUTarget

import fastmlp
from fastmlp import backends
from fastmlp.kernels.common.dropout import dropout_mask
from fastmlp.kernels.launch import dry_run, record_launches, tensors_in
from fastmlp.kernels.linear import backward as linear_backward
from fastmlp.kernels.linear import forward as linear
from fastmlp.kernels.loss import cross_entropy, head, mse, softmax
from fastmlp.kernels.mlp import backward as mlp_backward
from fastmlp.kernels.offline.case import NUMERICS
from fastmlp.kernels.offline.cases import backward
from fastmlp.kernels.offline.cases import linear as forward
from fastmlp.kernels.offline.loss_cases import cross_entropy as loss_of_logits
from fastmlp.kernels.offline.loss_cases import head as head_of
from fastmlp.kernels.offline.loss_cases import squared_error
from fastmlp.kernels.offline.mlp_cases import mlp
from fastmlp.kernels.offline.training_cases import Kind, Problem, problem
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.training import epoch, update
from tests.entry_points import entry_points
from tests.fuzzing import SEEDS, fuzz
from tests.interleaved import StuckError
from tests.ordered import RaceError
from tests.planted import plant

Interleaved = Callable[[int], AbstractContextManager[None]]
FP32, BF16 = NUMERICS["fp32"], NUMERICS["bf16"]
_TILE = (16, 16, 32, 1, 4, 1)
#: For both of an optimizer's rules here: see `fastmlp.kernels.training.optimizers.apply`.
_HYPERS = (0.1, 0.01, 0.9, 0.5, 0.5, 0.5, 0.01, 1.0)


@pytest.fixture(autouse=True)
def _several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles are small and batches are split early: toys are enough for several programs everywhere."""

    def lookup(family: str, *_: object) -> configs.Tile:
        return configs.TmaTile(*_TILE) if family in configs.TMA_FAMILIES else configs.Tile(*_TILE)

    monkeypatch.setattr(configs, "_lookup", lookup)
    monkeypatch.setattr(linear_backward, "_ROWS_PER_SPLIT", 16)
    monkeypatch.setattr(cross_entropy, "_ONE_PROGRAM", 0)
    monkeypatch.setattr(mse, "_ONE_PROGRAM", 0)
    monkeypatch.setattr(mse, "_BLOCK", 32)
    for module in (linear_backward, mlp_backward):
        monkeypatch.setattr(module, "_SUM_BLOCK", 256)


def trained(kind: Kind, examples: int, numerics: Any = FP32) -> Problem:
    made = problem(kind, numerics.compute, numerics.precision, device="cpu", examples=examples)
    made.hypers[:] = torch.tensor(_HYPERS)
    if kind.loss == "cross_entropy":
        made.y.matrix.ptr.random_(kind.widths[-1])
    return made


def state(made: Problem, family: str) -> list[Tensor]:
    """All that training changes."""
    _, into, _ = made.prepared(family)
    layers = [(m.weight, m.bias, m.copy, *m.state) for m in made.layers]
    return [t for t in (*sum(layers, ()), into.loss, into.sums, into.arrived) if t is not None]


def persistent(
    kind: Kind, programs: int, examples: int, numerics: Any = FP32
) -> Callable[[bool], list[Tensor]]:
    """An epoch's steps in one launch, behind the barrier, or in one for each phase."""

    def run(side_by_side: bool) -> list[Tensor]:
        made = trained(kind, examples, numerics)
        net, into, tile = made.prepared("epoch")
        into = into._replace(arrived=made.barrier)
        with mock.patch.object(epoch, "INTERPRETED", not side_by_side):
            epoch.epoch(net, made.recipe, made.x, made.y, kind.batch, made.hypers, into, tile, programs)
        return state(made, "epoch")

    return run


def steps(kind: Kind, numerics: Any = FP32) -> Callable[[bool], list[Tensor]]:
    """Two steps of a launch a phase, each the last one's programmatic dependent."""

    def run(side_by_side: bool) -> list[Tensor]:
        made = trained(kind, kind.batch, numerics)
        made.recipe = made.recipe.__class__(**{**vars(made.recipe), "pdl": side_by_side})
        for _ in range(2):
            made.step()
        return state(made, "update")

    return run


def updates(kind: Kind) -> Callable[[bool], list[Tensor]]:
    """Two updates alone: the second finds the counters as the first left them."""

    def run(_: bool) -> list[Tensor]:
        made = trained(kind, kind.batch)
        for memory in made.layers:
            memory.dz.normal_()
        for _ in range(2):
            made.update()
        return state(made, "update")

    return run


def launches(make: Callable[[], Callable[[], Any]]) -> Callable[[bool], list[Tensor]]:
    """All tensors that the launches of a case were given."""

    def run(_: bool) -> list[Tensor]:
        case = make()
        with record_launches() as made:
            case()
        return [t for one in made for argument in one.args for t in tensors_in(argument)]

    return run


@triton.jit
def pass_round(values, counter, rounds):
    """A ring of programs: each takes the value on its right, from one row into the other, round by round."""
    pid, programs = tl.program_id(0), tl.num_programs(0)
    for i in range(rounds):
        value = tl.load(values + i % 2 * programs + (pid + 1) % programs)
        tl.store(values + (i + 1) % 2 * programs + pid, value)
        epoch.grid_barrier(counter, (i + 1) * programs)


def ring(side_by_side: bool) -> list[Tensor]:
    """Nothing but the epoch's barrier, which one program after another cannot pass."""
    values, counter = torch.arange(8, dtype=torch.int32).view(2, 4), torch.zeros((), dtype=torch.int64)
    if side_by_side:
        pass_round[(4,)](values, counter, 3)
    return [values[1] if side_by_side else values[0].roll(-3)]


def linear_loss() -> Callable[[], Any]:
    """A linear cross-entropy that takes the classes in several tiles, and its gradients."""
    x, weight = torch.randn(20, 8, requires_grad=True), torch.randn(300, 8, requires_grad=True)
    target = torch.randint(300, (20,))

    def run() -> None:
        with backends.use("triton"):
            fastmlp.functional.linear_cross_entropy(x, weight, target, workspace=4096).backward()

    return run


_NET, _DEEP = (8, 17, 3), (8, 17, 17, 3)
#: By what they are: what gives the same tensors whether its programs run side by side or not.
CASES: dict[str, Callable[[bool], list[Tensor]]] = {
    "barrier": ring,
    "epoch": persistent(Kind(_DEEP, 17), 3, 17),
    "small epoch": persistent(Kind(_NET, 17), 3, 34),
    "epoch, resident": persistent(Kind(_NET, 17, "gelu", "adam"), 5, 26, BF16),
    "steps": steps(Kind(_DEEP, 17)),
    "updates": updates(Kind((8, 16, 3), 33, rule="momentum")),
    "linear": launches(lambda: forward(BF16, (20, 33, 40), "gelu", "cpu", keep_z=True, dropout=True)),
    "linear by TMA": launches(lambda: forward(FP32, (20, 40, 40), device="cpu", by_tma=True)),
    "backward": launches(lambda: backward(FP32, (33, 17, 20), "prelu", "none", "cpu")),
    "backward by TMA": launches(lambda: backward(FP32, (33, 20, 20), device="cpu", by_tma=True)),
    "mlp": launches(lambda: mlp(FP32, (5, 17, 7), 33, device="cpu", part="forward")),
    "mlp, backward": launches(lambda: mlp(FP32, (5, 17, 7), 33, device="cpu", part="backward")),
    "mlp, recomputed": launches(
        lambda: mlp(BF16, (5, 17, 9, 7), 33, "prelu", "tanh", "cpu", part="recompute")
    ),
    "head": launches(lambda: head_of(FP32, (33, 5, 20), device="cpu", keep_logits=True)),
    "head, squared error": launches(lambda: head_of(FP32, (33, 5, 20), device="cpu", loss="mse")),
    "cross-entropy": launches(lambda: loss_of_logits(torch.float32, (10, 300, 2), "cpu", weight=True)),
    "linear cross-entropy": launches(linear_loss),
    "squared error": launches(lambda: squared_error(torch.float32, (33, 5), "cpu", weight=True)),
    "dropout": launches(lambda: lambda: dropout_mask((0.5, torch.zeros(1, dtype=torch.int64), 0), 20, 200)),
}


def outcome(case: str, around: AbstractContextManager[None] | None = None) -> list[Tensor]:
    torch.manual_seed(0)
    with around or nullcontext():
        return CASES[case](around is not None)


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in zip(a, b, strict=True))


@cache
def expected(case: str) -> list[Tensor]:
    """Programs one after another; of an epoch a launch a phase."""
    return outcome(case)


@pytest.mark.few(5)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("case", CASES)
@fuzz(2)
@given(seed=SEEDS)
def test_the_same_bits_in_any_order(case: str, interleaved: Interleaved, seed: int) -> None:
    assert same(outcome(case, interleaved(seed)), expected(case))


@pytest.mark.usefixtures("interleaved")
def test_every_kernel_is_a_case() -> None:
    """With several programs, but for the one that adds the others' sums up."""
    with dry_run(GPUTarget("cuda", 90, 32)), record_launches() as made:
        for case in CASES:
            outcome(case)
    several = {(one.kernel.fn.__module__, one.name) for one in made if one.grid[0] > 1}
    assert several == entry_points() - {("fastmlp.kernels.loss.cross_entropy", "finish_loss_kernel")}


class Fault(NamedTuple):
    """Some texts of a device function for others, and the case that shows it."""

    case: str
    module: ModuleType
    function: str
    changes: dict[str, str]


_WAIT = "while tl.load(counter_ptr, volatile=True) < arrivals:"
_ARRIVE = 'tl.atomic_add(counter_ptr, 1, sem="acq_rel")'
_ACQUIRE = 'tl.atomic_add(counter_ptr, 0, sem="acquire")'
_THREADS = "    tl.debug_barrier()\n"
_CALL = "grid_barrier(into.arrived, done * programs)"
#: What the grid's barrier is made of, and how it is called.
BARRIER: dict[str, dict[str, str]] = {
    "not waited for": {_WAIT: "while False:"},
    "one short": {_WAIT: _WAIT.replace("arrivals", "arrivals - 1")},
    "one too many": {_WAIT: _WAIT.replace("arrivals", "arrivals + 1")},
    "one does not arrive": {_ARRIVE: f"if tl.program_id(0) != 0: {_ARRIVE}"},
    "counter read plainly": {"volatile=True": "volatile=False"},
    "arrival relaxed": {"acq_rel": "relaxed"},
    "arrival acquires alone": {"acq_rel": "acquire"},
    "nothing acquired": {_ACQUIRE: "pass"},
    "acquired relaxed": {'"acquire"': '"relaxed"'},
    "threads not waited for before": {f"{_THREADS}    {_ARRIVE}": f"    {_ARRIVE}"},
    "threads not waited for behind": {f"{_ACQUIRE}\n{_THREADS}": f"{_ACQUIRE}\n"},
}
EPOCH = {
    "removed": {_CALL: "pass"},
    "waits for the phase before": {_CALL: _CALL.replace("done", "(done - 1)")},
    "one short": {_CALL: f"{_CALL[:-1]} - 1)"},
    "loss by all": {"if pid == 0:": "if pid >= 0:"},
}
#: By case, phases behind which the barrier is not waited for: a net of two layers has three, of three five.
PHASES = {"small epoch": (0, 1, 2), "epoch": (0, 2, 3)}
_LAST = 'arrived = tl.atomic_add(into.arrived + tile, 1, sem="acq_rel") - (splits - 1)'
_PART, _BIAS = (
    "tl.store(parts + split * SIZE + in_tile, g)",
    "tl.store(parts + split * SIZE + in_bias, bias_g)",
)
#: The parts of a tile's gradient, of which the last program to arrive makes the sum.
UPDATE = {
    "threads not waited for": {"tl.debug_barrier()": "pass"},
    "arrival relaxed": {"acq_rel": "relaxed"},
    "arrival acquires alone": {"acq_rel": "acquire"},
    "arrival releases alone": {"acq_rel": "release"},
    "not waited for": {_LAST: "arrived = split"},
    "one short": {_LAST: _LAST.replace("- 1)", "- 2)")},
    "one too many": {_LAST: _LAST.replace("(splits - 1)", "splits")},
    "counter left as it was": {"tl.store(into.arrived + tile, 0)": "pass"},
    "arrives before it stores": {_BIAS: "pass", _LAST: f"{_LAST}\n        {_BIAS}"},
    "one counter for all": {"tl.atomic_add(into.arrived + tile,": "tl.atomic_add(into.arrived,"},
    "one place for all": {_PART: _PART.replace("split * SIZE", "0 * SIZE")},
    "loss by all": {"if tl.program_id(0) == 0:": "if tl.program_id(0) >= 0:"},
}


def faults() -> Iterator[tuple[str, Fault]]:
    for name, changes in BARRIER.items():
        yield f"barrier: {name}", Fault("barrier", epoch, "grid_barrier", changes)
    for name, changes in EPOCH.items():
        yield f"epoch: {name}", Fault("small epoch", epoch, "epoch_kernel", changes)
    for case, phases in PHASES.items():
        for phase in phases:
            changes = {_CALL: f"{_CALL[:-1]} if phase != {phase} else 0)"}
            yield f"{case}: not behind phase {phase}", Fault(case, epoch, "epoch_kernel", changes)
    for name, changes in UPDATE.items():
        yield f"update: {name}", Fault("updates", update, "update_kernel", changes)
    for module in (linear, head, linear_backward, update):
        name = module.__name__.rpartition(".")[2]
        yield (
            f"{name}: launch before not waited for",
            Fault("steps", module, "wait_for_previous", {"gdc_wait()": "pass"}),
        )
    for case, module, function, workspace, bias in (
        ("backward", linear_backward, "_weight_tile", "split", {"tl.where(pid_k == 0, N, 0)": "N"}),
        (
            "mlp, backward",
            mlp_backward,
            "gradient_tile",
            "split.index",
            {"(rows < N) & first_column": "rows < N"},
        ),
    ):
        part = {f"out.workspace + {workspace}.to(tl.int64)": "out.workspace + 0"}
        yield f"{case}: one place for all splits", Fault(case, module, function, part)
        yield f"{case}: bias by every column of tiles", Fault(case, module, function, bias)
    threads = {"tl.debug_barrier()": "pass"}
    yield (
        "mlp: threads not waited for",
        Fault("mlp, recomputed", mlp_backward, "mlp_backward_kernel", threads),
    )
    for case, module in (("cross-entropy", cross_entropy), ("head", softmax), ("squared error", mse)):
        one = {"tl.store(sums.partial + pid,": "tl.store(sums.partial,"}
        yield f"{case}: one place for all sums", Fault(case, module, "leave_sums", one)


FAULTS = dict(faults())


def found(fault: Fault, around: AbstractContextManager[None]) -> bool:
    """Whether it is seen: a race, programs that wait for ever, or other bits."""
    try:
        return not same(outcome(fault.case, around), expected(fault.case))
    except (RaceError, StuckError):
        return True


@pytest.mark.few(4)
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found(
    name: str, interleaved: Interleaved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With every seed."""
    fault = FAULTS[name]
    expected(fault.case)
    plant(monkeypatch, tmp_path, *fault[1:])
    assert [seed for seed in range(10) if not found(fault, interleaved(seed))] == []
