"""A GPU that is not there: Triton compiles for sm_90 as if it were, and its launcher does nothing.

This allows measuring a call's work on the host: all of it is done, up to the driver. Tensors are on the CPU,
and results are whatever was in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fastmlp import backends
from fastmlp.kernels import launch

_TARGET = GPUTarget("cuda", 90, 32)
_H200 = {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32, "max_num_regs": 65536}


class _Utils:
    """Stands for the driver's library: "loads" a binary without looking at it."""

    def load_binary(
        self, name: str, kernel: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024  # module, function, registers, spills, threads

    def get_device_properties(self, device: int) -> dict[str, int]:
        return _H200

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: 0


class _Launcher:
    """Takes a real launcher's arguments and ignores them."""

    launches = 0

    def __init__(self, src: Any, metadata: Any) -> None:
        self.launch_cooperative_grid = metadata.launch_cooperative_grid
        self.launch_pdl = metadata.launch_pdl

    def __call__(self, *args: Any) -> None:
        _Launcher.launches += 1


class Driver:
    """What Triton's runtime asks of a driver."""

    launcher_cls = _Launcher

    def __init__(self, target: GPUTarget = _TARGET) -> None:
        self.utils, self._target = _Utils(), target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


def launches() -> int:
    """How many launches there were in this process, whoever's kernels they were."""
    return _Launcher.launches


@cache  # like the function it stands for
def _no_problem(gpu: int) -> None:
    """Triton can run."""


@contextmanager
def gpu(target: GPUTarget = _TARGET) -> Iterator[None]:
    """Inside the ``with`` block Triton kernels are chosen for CPU tensors, compiled for ``target``, not run.

    Raises:
        RuntimeError: Triton interprets kernels in this process.
    """
    if launch.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set: kernels are interpreted in this process, not compiled")
    before = driver._active  # `driver.active` would look for a real GPU
    driver.set_active(Driver(target))
    launch._arch_of_device.cache_clear()
    try:
        with mock.patch.object(backends, "_triton_problem", _no_problem), backends.use("triton"):
            yield
    finally:
        driver._active = before
        launch._arch_of_device.cache_clear()
