"""The smoke stage: on interpreted kernels, with kernels that are wrong, and what it compiles ahead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import references, smoke
from benchmarks.gpu.ahead import Ahead
from benchmarks.gpu.smoke import Key
from benchmarks.gpu.worker import BROKEN, Bench
from fastmlp.kernels.launch import INTERPRETED, record_launches
from fastmlp.kernels.offline.case import Case
from tests.entry_points import entry_points

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a rehearsal is on interpreted kernels")
ROOT = Path(__file__).parents[2]
MSE = Key("mse", "weight", "bf16")


def stage(*keys: Key, **options: Any) -> dict[str, dict[str, Any]]:
    """The rows of a stage at toy size, of these cases alone if any are named."""
    rows: dict[str, dict[str, Any]] = {}

    def say(message: dict[str, Any]) -> None:
        json.dumps(message)
        if "row" in message:
            rows[message["row"]["key"]] = message["row"]

    every = {str(smoke._key(case)) for case in smoke.toys("meta")} if keys else set()
    done = frozenset(every - set(map(str, keys)))
    smoke.run(Bench(say, **{"seconds": 300, "done": done, "device": "cpu", "toy": True} | options))
    return rows


def test_a_rehearsal_launches_every_kernel_and_judges_every_family() -> None:
    with record_launches() as launches:
        rows = stage()
    assert {(one.kernel.fn.__module__, one.name) for one in launches} == entry_points()
    assert {row["family"] for row in rows.values()} == {
        "linear", "linear_backward", "matmul", "matmul_backward", "head", "cross_entropy", "mse", "mlp",
        "step", "epoch", "dropout",
    }  # fmt: skip
    for key, row in rows.items():
        assert "error" not in row, (key, row)
        assert row["repeatable"], key
        assert row["error_norm"] == row["worst"]["error"] <= row["worst"]["allowed"] == row["allowed"], key


def test_every_case_of_the_kernels_is_run_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that show most first."""
    meta = list(smoke.problems.cases("meta"))
    judged: list[Key] = []

    def noted(key: Key, case: Case, problem: str) -> dict[str, Any]:
        judged.append(key)
        return {}

    monkeypatch.setattr(smoke.problems, "cases", lambda device: iter(meta))
    monkeypatch.setattr(smoke, "judge", noted)
    stage(toy=False)
    every = [smoke._key(case) for case in meta]
    assert sorted(judged) == sorted(every)
    kinds, variants = ({key[::2] for key in every}, {key[:2] for key in every})
    assert {key[::2] for key in judged[: len(kinds)]} == kinds
    assert {key[:2] for key in judged[: len(kinds) + len(variants)]} == variants


@pytest.fixture
def sanitizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says how it was called, and runs the command as memcheck."""
    file = tmp_path / "compute-sanitizer"
    file.write_text('#!/bin/sh\necho "watching $*"\ntest $2 = memcheck || exit 3\nshift 2\nexec "$@"\n')
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def broken(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let the squared error's gradient be another."""
    backward = references.mse.backward
    monkeypatch.setattr(
        references.mse, "backward", lambda *args, **options: change(backward(*args, **options))
    )


@pytest.mark.deep
@pytest.mark.usefixtures("sanitizer")
def test_a_wrong_result_is_a_failed_row_and_is_watched_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoke, "PATIENCE", 120.0)
    broken(monkeypatch, lambda dx: dx * 1.02)
    rows = stage(MSE)
    assert list(rows) == [str(MSE), f"{MSE} alone"]
    row, alone = rows.values()
    assert row["error"].startswith("dX: error 2."), row
    assert row["worst"]["what"] == "dX"
    assert row["worst"]["error"] > 0.019 > row["worst"]["allowed"] > row["torch_error"]
    assert row["repeatable"]
    assert f"-m benchmarks.gpu.smoke {MSE} --seconds 121 --toy" in alone["said"]["memcheck"]
    assert '"repeatable": true' in alone["said"]["memcheck"]  # there it is right
    assert "exit code 0" in alone["said"]["memcheck"]
    assert "watching --tool racecheck" in alone["said"]["racecheck"]
    assert "exit code 3" in alone["said"]["racecheck"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (torch.empty_like, "dX: error inf, allowed"),
        (lambda dx: dx[1:], "dX: shape (39, 10), expected (40, 10)"),
        (lambda dx: dx + torch.rand_like(dx), "dX: not the same bits twice"),
        (lambda dx: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_what_else_is_wrong(
    change: Callable[[torch.Tensor], torch.Tensor], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not written is NaN; the cases after it are run, and that there is no sanitizer is said."""
    monkeypatch.setattr(smoke.shutil, "which", lambda *args, **options: None)
    broken(monkeypatch, change)
    mask = Key("dropout", "mask", "fp32")
    rows = stage(MSE, mask)
    assert said in rows[str(MSE)]["error"]
    assert "error" not in rows[str(mask)]
    assert set(rows[f"{MSE} alone"]["missing"]) == {"memcheck", "racecheck"}


@pytest.mark.usefixtures("sanitizer")
def test_what_breaks_the_context_is_watched_before_the_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "_leave_if_broken", lambda self: sys.exit(BROKEN))
    watched: list[tuple[Key, int]] = []
    monkeypatch.setattr(smoke, "watch", lambda bench, key, share=2: watched.append((key, share)))
    broken(monkeypatch, lambda dx: 1 / 0)
    with pytest.raises(SystemExit, match=str(BROKEN)):
        stage(MSE)
    assert watched == [(MSE, 6)]


@pytest.mark.parametrize(
    ("problem", "said"),
    [(ValueError("why"), "RuntimeError: does not compile: ValueError: why"), (BrokenProcessPool(), None)],
)
def test_a_kernel_that_does_not_compile(
    problem: Exception, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is its case's error, and not watched; but a compiler that crashed may have been at another case."""

    class Failing(Ahead):
        def submit(self, make: Callable[..., object], *arguments: Any) -> Future[None]:
            task: Future[None] = Future()
            task.set_exception(problem)
            return task

    monkeypatch.setattr(smoke, "Ahead", Failing)
    rows = stage(MSE)
    assert list(rows) == [str(MSE)]
    assert rows[str(MSE)].get("error") == said


def test_a_sanitizer_that_hangs_or_says_much() -> None:
    script = "print('begin' + 20000 * '.' + 'end', flush=True); import time; time.sleep(60)"
    said = smoke._said([sys.executable, "-c", script], 2)
    assert said.startswith("begin")
    assert said.endswith("end\nended after 2 s")
    assert len(said) < smoke.KEPT + 100


AHEAD = """
import os
from functools import partial
from pathlib import Path
import torch
from benchmarks import stub
from benchmarks.gpu import smoke
from benchmarks.gpu.ahead import Ahead
from benchmarks.gpu.worker import Bench
from fastmlp.kernels.offline import training_cases
from fastmlp.kernels.offline.case import NARROW, NUMERICS, Case
from fastmlp.kernels.offline.loss_cases import squared_error

def cases():
    bf16, made = NUMERICS["bf16"], partial(smoke.problems.linear, NUMERICS["bf16"], NARROW)
    yield Case("linear", "narrow tanh", "bf16", made("tanh", "cpu"))
    yield Case("matmul", "narrow gelu keep_z", "bf16", made("gelu", "cpu", keep_z=True, by_tma=True))
    loss = squared_error(bf16.storage, (4096, 10), "cpu", weight=True)
    yield Case("mse", "10 outputs weight", "bf16", loss)
    kind = training_cases.Kind(training_cases.BOOK)
    book = training_cases.problem(kind, torch.float32, "ieee", device="cpu", examples=600)
    yield Case("epoch", "book sgd", "fp32", book.epoch)

def compiled():
    return {path for path in Path(os.environ["TRITON_CACHE_DIR"]).rglob("*") if path.is_file()}

if __name__ == "__main__":
    with stub.gpu():
        every = list(cases())
        with Ahead(Bench(print, 600)) as ahead:
            for task in [ahead.submit(smoke.launches, smoke._key(case)) for case in every]:
                task.result()
        before = compiled()
        assert len([path for path in before if path.suffix == ".cubin"]) >= len(every) + 1
        for case in every:
            launches = stub.launches()
            case.run()
            assert stub.launches() > launches
            assert compiled() == before, smoke._key(case)
"""


@pytest.mark.deep
def test_launches_find_what_was_compiled_ahead(tmp_path: Path) -> None:
    """By other processes, for tensors without memory; what it takes is nothing else."""
    script = tmp_path / "ahead.py"
    script.write_text(AHEAD)
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    del environment["TRITON_INTERPRET"]
    done = subprocess.run(
        [sys.executable, script], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
