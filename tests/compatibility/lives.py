"""Training runs killed again and again: ``python -m tests.compatibility.lives DIR DEVICE SEED KILLS...``.

Importing torch takes seconds, so every life is a fork of this process, which has imported it and run nothing
of it (a GPU and OpenMP's threads live through no fork). Two thirds are killed from outside, some steps and up
to a few milliseconds after they begin; one third kills itself at some place within the write of a checkpoint.
What a dead process was doing stands in memory that it shared. The report is JSON on stdout.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch  # noqa: F401 - imported once, not in every life
import torch
import torch._dynamo  # which torch.optim imports when it makes its first step
from torch import nn

import fastmlp
from fastmlp import files as atomic

#: A life does at most so many steps beyond those after which it is to die: no run ends before its kills do.
SLACK = 3
EPOCHS, ROWS, BATCH = 36, 96, 8
STARTING, TRAINING, WRITING, DONE = range(4)
PLACES = ("the first byte", "the middle", "fsync", "the rename", "the directory's fsync")


def eager(device: str) -> dict[str, Any]:
    """Everything that has a state: dropout, running statistics, Adam, a schedule."""
    net = fastmlp.Sequential(
        nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.3), nn.Linear(24, 4)
    ).to(device)
    return {"net": net, "optimizer": torch.optim.AdamW(net.parameters(), lr=0.01), "schedule": "cosine"}


def fused(device: str) -> dict[str, Any]:
    """The engine's own steps, with momentum."""
    net = fastmlp.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 4)).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, dampening=0.1)
    return {"net": net, "optimizer": optimizer, "schedule": "one-cycle", "engine": "fused"}


RUNS: dict[str, Callable[[str], dict[str, Any]]] = {"eager": eager, "fused": fused}


def train(kind: str, path: Path, device: str, on_batch: Callable[[int], None] | None = None) -> None:
    """The run, from where its checkpoint is to its end."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # there is no checkpoint to go on from the first time
    torch.manual_seed(1)
    x, y = torch.randn(ROWS, 12), torch.randint(4, (ROWS,))
    options = RUNS[kind](device)
    net = options.pop("net")
    fastmlp.fit(
        net, (x.to(device), y.to(device)), epochs=EPOCHS, batch_size=BATCH, seed=3, checkpoint=path,
        resume=True, every_steps=2, on_batch=on_batch, **options,
    )  # fmt: skip


def live(kind: str, path: Path, device: str, plan: dict[str, Any], shared: memoryview) -> None:
    """One life in a forked process: it notes what it does, and dies by its own hand where that is planned."""
    write, writes = atomic.write, 0

    def die_at(place: str) -> None:
        if plan.get("place") == place and writes == plan["write"]:
            os.kill(os.getpid(), signal.SIGKILL)

    def in_pieces(parts: Any) -> Iterator[bytes]:
        data = b"".join(parts)
        die_at("the first byte")
        for start in range(0, len(data), 1024):
            if start >= len(data) // 2:
                die_at("the middle")
            yield data[start : start + 1024]

    def noted(target: Any, name: str, places: list[str]) -> None:
        original = getattr(target, name)

        def call(*args: Any) -> Any:
            die_at(places[0])
            places.append(places.pop(0))  # the file's fsync, then the directory's
            return original(*args)

        setattr(target, name, call)

    def write_noted(target: Path, parts: Any) -> None:
        nonlocal writes
        writes += 1
        shared[0] = WRITING
        write(target, in_pieces(parts))
        shared[0] = TRAINING

    def on_batch(_: int) -> None:
        shared[0] = TRAINING
        shared[1] += 1
        while "steps" in plan and shared[1] > plan["steps"] + SLACK:
            time.sleep(1)

    atomic.write = write_noted  # type: ignore[assignment]
    noted(os, "fsync", ["fsync", "the directory's fsync"])
    noted(os, "replace", ["the rename"])
    train(kind, path, device, on_batch)
    shared[0] = DONE


def forked(work: Callable[[], None]) -> int:
    """The process id of a fork that does ``work``."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def killed(kind: str, path: Path, device: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Let one life begin and end, and tell how it went."""
    shared = memoryview(mmap.mmap(-1, 16)).cast("q")
    child = forked(lambda: live(kind, path, device, plan, shared))
    deadline = time.monotonic() + 120
    if "steps" in plan:
        while shared[1] < plan["steps"] and time.monotonic() < deadline:
            time.sleep(1e-4)
        time.sleep(plan["delay"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return {
        "plan": plan,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "phase": ["starting", "training", "writing", "done"][shared[0]],
        "steps": shared[1],
        "leftovers": len(list(path.parent.glob("*.part"))),
        "position": tuple(fastmlp.training.position(path))[:2] if path.exists() else None,
    }


def plan_of(rng: random.Random, first: bool) -> dict[str, Any]:
    if not first and rng.random() < 1 / 3:
        return {"write": rng.randint(1, 2), "place": rng.choice(PLACES)}
    return {"steps": rng.randint(0, 4), "delay": rng.uniform(0, 4e-3)}


def main(folder: Path, device: str, seed: int, kills: list[int]) -> None:
    """Each of `RUNS` unbroken and killed so many times; then a last life to the end."""
    gc.collect()
    gc.freeze()  # what a collection does not touch a fork need not copy
    report: dict[str, Any] = {}
    for kind, count in zip(RUNS, kills):
        rng = random.Random(f"{seed} {kind}")
        whole, broken = folder / kind / "whole" / "run", folder / kind / "broken" / "run"
        _, status = os.waitpid(forked(lambda: train(kind, whole, device)), 0)  # noqa: B023 - runs at once
        assert status == 0, "the unbroken run failed"
        deaths = [killed(kind, broken, device, plan_of(rng, i == 0)) for i in range(count)]
        _, status = os.waitpid(forked(lambda: train(kind, broken, device)), 0)  # noqa: B023
        report[kind] = {"deaths": deaths, "finished": status == 0, "files": os.listdir(broken.parent)}
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), [int(n) for n in sys.argv[4:]])
