"""The processes that torchrun starts: who this one is, and what they do together. All of it is torch's."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
#: How long a process waits for the others before it fails.
TIMEOUT = timedelta(minutes=10)
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def size() -> int:
    """How many processes were started together."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _LAUNCHED) else 1


def rank() -> int:
    """Which of them this is."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if size() > 1 else 0


def start(device: torch.device) -> None:
    """Meet the others, if there are any: by NCCL for a GPU, which becomes the current one, else by gloo."""
    if size() == 1:
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", timeout=TIMEOUT, device_id=device if on_gpu else None
    )


def stop() -> None:
    """Part from the others, if there are any, and end this process: the last thing that it does.

    Not after a failure: it would wait for them, while torchrun ends them.
    """
    if size() > 1:
        dist.barrier()  # all that was sent has arrived
        leave(0)


def leave(code: int) -> NoReturn:
    """End this process at once: gloo's threads may abort one that ends in the interpreter's own way."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def wrap(net: nn.Module, device: torch.device) -> nn.Module:
    """``net``, its gradients averaged over the processes if there are several."""
    if size() == 1:
        return net
    return DistributedDataParallel(net, device_ids=[device] if device.type == "cuda" else None)


def first(function: Callable[..., T], *args: object) -> T:
    """Call ``function`` in the first process; every process returns or raises what that does."""
    if size() == 1:
        return function(*args)
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if rank() == 0:
        try:
            outcome = [(function(*args), None)]
        except Exception as error:  # whatever it is, the others are to raise it too
            outcome = [(None, error)]
    dist.broadcast_object_list(outcome, src=0)
    value, raised = outcome[0]
    if raised is not None:
        raise raised
    return value  # type: ignore[return-value]


def is_gone(error: BaseException) -> bool:
    """Whether ``error`` says that another process no longer answers."""
    if size() == 1:
        return False
    return isinstance(error, (dist.DistBackendError, dist.DistNetworkError)) or "gloo" in str(error)
