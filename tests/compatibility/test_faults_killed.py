"""SIGKILL at random moments, also within writes: what is resumed ends with the bits of an unbroken run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmlp.training import checkpoint
from tests.compatibility.lives import BATCH, ROWS, RUNS

KILLS = {"eager": 50, "fused": 20}
SEED = 20  # of the moments; a failure's report has them all


@pytest.mark.deep
@pytest.mark.feature(
    "Faults",
    "killed 50 times by SIGKILL, resumed to the bits of an unbroken run",
    backend="torch",
    dtype="float32",
    kernels=False,
)
def test_killed_and_resumed(device: str, tmp_path: Path) -> None:
    """Both kinds of run in one process, which imports torch once."""
    counts = [str(KILLS[kind]) for kind in RUNS]
    # One thread: a fork has no others. NVML: who asked CUDA itself cannot fork. No interpreter: it is slow.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.compatibility.lives", str(tmp_path), device, str(SEED), *counts],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    for kind, result in json.loads(done.stdout).items():
        check(kind, result, tmp_path / kind)


def check(kind: str, result: dict[str, Any], folder: Path) -> None:
    """Where the kills landed; then parameters, statistics, optimizer, generators and history."""
    deaths = result["deaths"]
    assert len(deaths) == KILLS[kind]
    assert all(death["signal"] == 9 for death in deaths), deaths  # none ended otherwise, or too soon
    phases = Counter(death["phase"] for death in deaths)
    assert phases["training"] >= (kind == "eager"), deaths  # of so few of the other kind perhaps none
    assert phases["writing"] >= KILLS[kind] // 5, deaths
    assert sum(death["leftovers"] for death in deaths) >= 1  # some writes were really begun
    done = [
        death["position"][0] * -(-ROWS // BATCH) + death["position"][1]
        for death in deaths
        if death["position"]
    ]
    assert done == sorted(done)  # no death costs what was saved before it
    assert len(set(done)) > KILLS[kind] // 4  # and on the way they got on
    assert result["finished"]
    assert result["files"] == ["run"]  # no .part is left
    whole, of_whole = checkpoint.read(folder / "whole" / "run")
    broken, of_broken = checkpoint.read(folder / "broken" / "run")
    assert whole.keys() == broken.keys()
    assert [name for name in whole if not torch.equal(whole[name], broken[name])] == []
    for name in ("metadata", "run", "factors", "state"):
        assert of_whole[name] == of_broken[name], name
    for one, other in zip(of_whole["epochs"], of_broken["epochs"], strict=True):
        for field in ("number", "train_loss", "train_accuracy"):
            assert one[field] == other[field]
