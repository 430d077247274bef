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


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Both runs, unbroken and killed, in one process that imports torch once."""
    folder = tmp_path_factory.mktemp("lives")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = [str(KILLS[kind]) for kind in RUNS]
    # One thread: a fork has no others. The interpreter is not needed, and its launches cost.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-m", "tests.compatibility.lives", str(folder), device, str(SEED), *counts],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.feature(
    "Faults", "killed 50 times by SIGKILL, resumed to the bits of an unbroken run", kernels=False
)
@pytest.mark.parametrize("kind", RUNS)
def test_killed_and_resumed(kind: str, report: tuple[Path, dict[str, Any]]) -> None:
    """Parameters, statistics, optimizer, generators and history."""
    folder, result = report[0] / kind, report[1][kind]
    deaths = result["deaths"]
    assert len(deaths) == KILLS[kind]
    assert all(death["signal"] == 9 for death in deaths), deaths  # none ended otherwise, or too soon
    phases = Counter(death["phase"] for death in deaths)
    assert phases["training"] >= 1, deaths
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
