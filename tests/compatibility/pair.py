"""Two processes that stay: importing torch takes seconds, a case a part of one."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

_PATIENCE = 60  # seconds: for a case, and for a process that waits for the other one


class Pair:
    """Runs functions in two processes of one group, over the loopback interface."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._started = folder, 0
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[list[Any], bool]:
        """What ``function(rank, device, ...)`` returns in each, and whether kernels were launched in both.

        Raises:
            AssertionError: it raised, or did not end; the next call starts a new pair.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args, kwargs))
        answers: dict[int, Any] = {}
        patience: float = _PATIENCE
        while len(answers) < 2:
            waiting = [pipe for i, pipe in enumerate(self._pipes) if i not in answers]
            ready = wait(waiting, patience)
            if not ready:
                break
            for pipe in ready:
                answers[self._pipes.index(pipe)] = answer = pipe.recv()  # type: ignore[arg-type, union-attr]
                if isinstance(answer, str):
                    patience = 0.5  # the other one may be waiting for what never comes
        errors = [
            f"rank {i}: {answers.get(i, 'no answer')}"
            for i in range(2)
            if isinstance(answers.get(i, ""), str)
        ]
        if errors:
            self.stop()
            raise AssertionError("\n".join(errors))
        return [answers[i][0] for i in range(2)], all(launched for _, launched in answers.values())

    def stop(self) -> None:
        """End both."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        context = mp.get_context("spawn")
        self._started += 1
        store = self._folder / f"store{self._started}"
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, str(store)), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)


def _serve(pipe: Connection, rank: int, store: str) -> None:
    import torch.distributed as dist

    from fastmlp.kernels import launch

    torch.set_num_threads(1)
    several = torch.cuda.device_count() > 1
    if several:
        torch.cuda.set_device(rank)
    device = f"cuda:{rank if several else 0}" if torch.cuda.is_available() else "cpu"
    dist.init_process_group(
        "nccl" if several else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=_PATIENCE),
    )
    while True:
        function, args, kwargs = pipe.recv()
        torch.manual_seed(0)
        try:
            with launch.record_launches() as launches:
                value = function(rank, device, *args, **kwargs)
            pipe.send((value, bool(launches)))
        except BaseException:
            pipe.send(traceback.format_exc())
