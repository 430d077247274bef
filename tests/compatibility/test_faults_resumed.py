"""Runs that are interrupted and resumed: in-process for every engine, and once as a user meets it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fastmlp
from fastmlp import backends, cli
from fastmlp.training import Interrupted, checkpoint, fit, load, position

DTYPES = ("float32", "float16", "bfloat16")
ROWS, BATCH, EPOCHS = 20, 8, 3  # three steps an epoch, the last one smaller


class Run:
    """A run that starts the same each time, and everything that it leaves."""

    def __init__(self, kind: str, dtype: str, device: str) -> None:
        torch.manual_seed(0)
        self.dtype, self.device = getattr(torch, dtype), device
        self.engine = "fused" if kind == "cpu" else kind
        layers: list[nn.Module] = [nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 3)]
        if kind == "eager":  # everything that has a state
            layers[1:2] = [nn.BatchNorm1d(9), nn.GELU(), nn.Dropout(0.4)]
        self.net = fastmlp.Sequential(*layers).to(device)
        parameters = self.net.parameters()
        if kind in ("eager", "persistent", "graph"):
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=0.01)
        else:
            self.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.2)

    def fit(self, path: Path, **options: Any) -> None:
        """The run, from where its checkpoint is."""
        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(ROWS, 6, generator=generator), torch.randint(3, (ROWS,), generator=generator)
        fit(
            self.net, (x, y), epochs=EPOCHS, batch_size=BATCH, optimizer=self.optimizer, schedule="cosine",
            device=self.device, dtype=self.dtype, engine=self.engine, checkpoint=path, **options,
        )  # fmt: skip


def assert_same_end(path: Path, other: Path) -> None:
    """Parameters, statistics, optimizer, scaler, generators and losses, to the bit."""
    (tensors, content), (others, of_other) = checkpoint.read(path), checkpoint.read(other)
    assert content["state"] == of_other["state"]
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    losses, of_other_losses = (
        [(epoch["number"], epoch["train_loss"], epoch["train_accuracy"]) for epoch in c["epochs"]]
        for c in (content, of_other)
    )
    assert losses == of_other_losses


def interrupts_after(call: int) -> Callable[[int], None]:
    calls = iter(range(1, 100))

    def on_batch(_: int) -> None:
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)

    return on_batch


def resumes(kind: str, dtype: str, device: str, path: Path) -> None:
    """A run that is interrupted again and again ends as one that is not."""
    unbroken = path.with_name("unbroken")
    Run(kind, dtype, device).fit(unbroken)
    assert len(checkpoint.read(unbroken)[1]["epochs"]) == EPOCHS
    whole = kind in ("persistent", "graph")
    positions = []
    for call in (1, 1) if whole else (2, 3, 1):
        run = Run(kind, dtype, device)
        if positions:
            torch.manual_seed(8)  # what the random numbers were before counts for nothing
        with pytest.raises(Interrupted, match=rf"interrupted after .*; saved to {re.escape(str(path))}"):
            run.fit(path, resume=path.exists(), on_batch=interrupts_after(call))
        positions.append(position(path)[:2])
    assert positions == ([(1, 0), (2, 0)] if whole else [(0, 2), (1, 2), (1, 3)])
    run = Run(kind, dtype, device)
    torch.manual_seed(8)
    run.fit(path, resume=True)
    assert_same_end(path, unbroken)
    state = load(path, device)[0]
    assert all(torch.equal(state[name], tensor) for name, tensor in run.net.state_dict().items())


@pytest.mark.few(1)
@pytest.mark.feature("Faults", "interrupted and resumed: the bits of an unbroken run, step by step")
@pytest.mark.parametrize("dtype", DTYPES)
def test_resumed_step_by_step(backend: str, dtype: str, device: str, tmp_path: Path) -> None:
    """Autograd with dropout, running statistics, AdamW and a gradient scaler; the kernels' own steps."""
    resumes("eager", dtype, device, tmp_path / "eager")
    if backend == "triton":
        resumes("fused", dtype, device, tmp_path / "fused")


@pytest.mark.few(1)
@pytest.mark.feature("Faults", "interrupted and resumed: the same, epochs as a whole", backend="triton")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ["persistent", "graph"])
def test_resumed_epoch_by_epoch(engine: str, dtype: str, device: str, tmp_path: Path) -> None:
    if device == "cpu" and (engine, dtype) != ("persistent", "float32"):
        pytest.skip("graphs need a GPU, and the interpreter takes its time")
    with backends.use("triton"):
        resumes(engine, dtype, device, tmp_path / "run")


@pytest.mark.feature("Faults", "interrupted and resumed: the same, the CPU's engine", backend="torch")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumed_on_a_cpu(dtype: str, tmp_path: Path) -> None:
    with backends.use("auto"):
        resumes("cpu", dtype, "cpu", tmp_path / "run")


@pytest.mark.feature(
    "Faults", "SIGTERM as Ctrl-C; a second Ctrl-C leaves at once", backend="torch", dtype="float32"
)
def test_signals(device: str, tmp_path: Path) -> None:
    """Afterwards the handlers are the old ones."""

    def terminate(_: int) -> None:
        signal.raise_signal(signal.SIGTERM)

    def twice(_: int) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match="after epoch 1, step 1 of 3; saved") as stopped:
        Run("eager", "float32", device).fit(tmp_path / "run", on_batch=terminate)
    assert stopped.value.signal == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt) as left:
        Run("eager", "float32", device).fit(tmp_path / "other", on_batch=twice)
    assert left.type is KeyboardInterrupt
    assert not (tmp_path / "other").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.deep
@pytest.mark.feature(
    "Faults",
    "Ctrl-C in fastmlp train: saved, exit 130; --resume ends with the same file",
    backend="torch",
    dtype="float32",
)
def test_command_line(tmp_path: Path) -> None:
    """A real process, interrupted within an epoch, and one that nobody interrupts."""
    arguments = [
        "train", "--dataset", "synthetic", "--subset", "1600", "--device", "cpu", "--hidden", "16,16",
        "--epochs", "30", "--batch-size", "32", "--activation", "gelu", "--schedule", "linear", "--out",
    ]  # fmt: skip
    broken, whole = (tmp_path / name / "net.safetensors" for name in ("broken", "whole"))
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, *arguments, str(broken)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch   2"):
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=120)
    kept = broken.with_name("net.ckpt.safetensors")
    assert process.returncode == 130, said
    assert re.fullmatch(
        f"error: interrupted after .*; saved to {kept}; the same command with --resume .*\n", said
    )
    assert 2 <= position(kept).epoch < 30
    resumed = CliRunner().invoke(cli.app, [*arguments, str(broken), "--resume"])
    assert resumed.exit_code == 0, resumed.output
    assert f"going on after {position(kept)}" not in resumed.output  # it went on from there, to the end
    assert "going on after " in resumed.output
    assert CliRunner().invoke(cli.app, [*arguments, str(whole)]).exit_code == 0
    assert broken.read_bytes() == whole.read_bytes()


_SCRIPT = """
import time
from fastmlp import cli
from fastmlp.cli import trainer

def slow_fit(*arguments, on_batch, **options):  # so that it is interrupted before it is done
    return fit(*arguments, on_batch=lambda count: (on_batch(count), time.sleep(0.005)), **options)

fit, trainer.fit = trainer.fit, slow_fit
cli.app()
"""
