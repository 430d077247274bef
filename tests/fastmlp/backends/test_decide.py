"""Measuring the ways a layer's products can go, with a clock of our own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastmlp.backends import decide, triton_backend
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.kernels.offline.case import Run
from fastmlp.kernels.tiles import decisions
from fastmlp.kernels.tiles.decisions import Machine

HERE = Machine("a GPU", "sm_90", 132)
SHAPE = (24, 16, 40)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path))
    decisions.forget()
    yield tmp_path
    decisions.forget()


class Clock:
    """Milliseconds by way, and the turns in which they were asked."""

    def __init__(self, **ms: float) -> None:
        self.ms, self.turns = ms, []

    def __call__(self, run: Run) -> float:
        (way,) = decisions._forced or ("none",)
        self.turns.append(way)
        return self.ms[way] * (1 + len(self.turns) / 1e6)


def test_measured_kept_and_looked_up(device: str) -> None:
    clock = Clock(tma=3.0, pointer=2.0, library=1.0)
    todo = [("forward", "bf16", SHAPE), ("backward", "bf16", SHAPE)]
    told = list(decide.decide(todo, clock, HERE, device=device, rounds=4, command="python -m y"))
    assert all("library else pointer else tma" in line for line in told)
    assert clock.turns[:12] == [
        *("tma", "pointer", "library"), *("pointer", "library", "tma"),
        *("library", "tma", "pointer"), *("tma", "pointer", "library"),
    ]  # fmt: skip
    choice = decisions.choose(HERE, "forward", "bf16", *SHAPE)
    assert choice.order == ("library", "pointer", "tma")
    assert choice.row is not None
    assert (choice.row.command, choice.row.device) == ("python -m y", "a GPU")
    low, median, high = choice.row.seconds["library"]
    assert 1e-3 < low <= median <= high < 1.1e-3
    assert choice.row.versions["torch"] == torch.__version__


def test_a_way_that_cannot_run_is_left_out(device: str) -> None:
    clock = Clock(tma=1.0, pointer=2.0, library=3.0)
    said: list[str] = []
    row, skipped = decide.measure(
        "backward_prologue", "bf16", SHAPE, clock, HERE, device, rounds=1, say=said.append
    )
    assert said == ["tma", "pointer", "library", "pointer", "library"]  # before each is tried
    assert row is not None
    assert row.order == ("pointer", "library")
    assert "still to be undone" in skipped["tma"]
    row, skipped = decide.measure("forward", "autocast", SHAPE, clock, HERE, device, rounds=1)
    assert row is not None
    assert "computed in torch.bfloat16" in skipped["tma"]
    row, skipped = decide.measure("forward", "bf16", (24, 16, 41), clock, HERE, device, rounds=1)
    assert row is not None
    assert "16 bytes" in skipped["tma"]


@pytest.mark.parametrize("wrong", [0.0, float("nan")])
def test_a_wrong_way_is_left_out(wrong: float, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is miscompiled may well be fast, and the first to be tried; cuBLAS judges."""
    out = torch.full((24, 16), wrong, dtype=torch.bfloat16, device=device)
    monkeypatch.setattr(triton_backend, "linear_act_tma", lambda *args: (out, None))
    clock = Clock(tma=1.0, pointer=2.0, library=3.0)
    row, skipped = decide.measure("forward", "bf16", SHAPE, clock, HERE, device, rounds=1)
    assert row is not None
    assert row.order == ("pointer", "library")
    assert skipped == {"tma": "another result than library's"}
    monkeypatch.setattr(TorchBackend, "linear_act", lambda self, *args: (out * float("nan"), None))
    row, skipped = decide.measure("forward", "bf16", SHAPE, clock, HERE, device, rounds=1)
    assert row is None
    assert set(skipped) == {"tma", "pointer", "library"}


def test_nothing_is_kept_where_nothing_ran(
    cache_dir: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(decide, "problem", lambda *args: fail)
    (line,) = decide.decide([("forward", "bf16", SHAPE)], Clock(), HERE, device=device)
    assert line.count("skipped: RuntimeError: no such kernel") == 3
    assert not list(cache_dir.iterdir())


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for *arguments, said in (
        ["--shape", "1,2", "'1,2', expected M,N,K"],
        ["--op", "sideways", "'sideways'"],
        ["--dtype", "int8", "'int8'"],
    ):
        with pytest.raises(SystemExit) as stopped:
            decide.main(arguments)
        assert stopped.value.code == 2
        assert said in capsys.readouterr().err


@pytest.mark.deep
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure on")
def test_no_gpu_is_said() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fastmlp.backends.decide"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no GPU" in done.stderr
