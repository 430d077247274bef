"""`torchrun -m fastmlp train` itself, and processes that nobody looks after when one of them fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastmlp import cli
from fastmlp.training import load

GROUP = "More than one process"
_ROOT = Path(__file__).resolve().parents[2]
_DEVICE = "cuda" if torch.cuda.device_count() > 1 else "cpu"
_TRAIN = ["train", "--dataset", "synthetic", "--epochs", "1", "--hidden", "8", "--device", _DEVICE]


def environment(**more: object) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    own = {"PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return os.environ | own | {name: str(value) for name, value in more.items()}


@pytest.mark.deep
@pytest.mark.feature(
    GROUP,
    "torchrun -m fastmlp train: as in one process, logged and saved once",
    backend="torch",
    dtype="float32",
    kernels=False,
)
def test_torchrun(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    options = [
        *_TRAIN,
        "--engine",
        "eager",
        "--batch-size",
        "7000",
        "--lr",
        "0.5",
        "--out",
    ]  # 60000: a tail of 4000
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    launcher += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "fastmlp"]
    done = subprocess.run(
        [*launcher, *options, str(tmp_path / "two" / "net")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout
    assert lines[0].endswith("2 processes, no checkpoints")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "net",
        "net.history.json",
        "net.toml",
    ]
    alone = CliRunner().invoke(cli.app, [*options, str(tmp_path / "one")])
    assert lines[1].split()[:-2] == alone.output.splitlines()[1].split()[:-2]
    for name, tensor in load(tmp_path / "two" / "net")[0].items():
        torch.testing.assert_close(tensor, load(tmp_path / "one")[0][name], rtol=1e-4, atol=1e-6)


_FAILING = """
import os, sys
import torch
from fastmlp import cli
from fastmlp.training import data_parallel

def step(*args, **kwargs):
    raise torch.OutOfMemoryError("out of memory, on purpose")

if os.environ["RANK"] == "1":
    data_parallel.SharedExecutor.step = step
cli.app(sys.argv[1:])
"""


@pytest.mark.deep
@pytest.mark.feature(
    GROUP,
    "torchrun -m fastmlp train: where one process fails, all do",
    backend="torch",
    dtype="float32",
    kernels=False,
)
def test_one_process_fails(tmp_path: Path) -> None:
    """Without torchrun, which would end the other process: that one has to notice by itself."""
    (tmp_path / "failing.py").write_text(_FAILING)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                str(tmp_path / "failing.py"),
                *_TRAIN,
                "--subset",
                "600",
                "--out",
                str(tmp_path / "net"),
            ],
            env=environment(RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        (_, first), (_, second) = (process.communicate(timeout=120) for process in processes)
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [1, 1], (first, second)
    assert "error: process 1: out of memory" in second
    assert "error: another process is gone" in first
    assert "Traceback" not in first + second
    assert not (tmp_path / "net").exists()
