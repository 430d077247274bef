"""Which backend runs is decided here and nowhere else, from the tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastmlp.backends.base import Backend

#: What ``FASTMLP_BACKEND`` may be.
CHOICES = ("auto", "torch", "triton")
#: What the kernels compute with. float64 goes to torch's own ops.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MINIMUM_TRITON = (3, 5)

_forced: str | None = None


class Choice(NamedTuple):
    """The backend for some tensors, and why; None stands for ATen's ops with ATen's autograd."""

    backend: Backend | None
    reason: str


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force the backend inside the ``with`` block, as ``FASTMLP_BACKEND=name`` does for a process."""
    global _forced
    before, _forced = _forced, _checked(name, "name")
    try:
        yield
    finally:
        _forced = before


def requested() -> str:
    """``auto``, ``torch`` or ``triton``: what the `use` block or ``FASTMLP_BACKEND`` asks for."""
    return _forced or _checked(os.environ.get("FASTMLP_BACKEND", "auto"), "FASTMLP_BACKEND")


def _checked(name: str, where: str) -> str:
    if name not in CHOICES:
        raise ValueError(f"{where}: expected one of {', '.join(CHOICES)}, got {name!r}")
    return name


def choose(tensor: Tensor, dtype: torch.dtype | None = None) -> Choice:
    """The backend for work on ``tensor``, computed in ``dtype`` (by default the tensor's).

    Raises:
        RuntimeError: Triton is asked for and cannot run.
    """
    if torch.compiler.is_compiling():
        return Choice(None, "under torch.compile Inductor fuses torch's own ops")
    request = requested()
    if request == "torch":
        return Choice(None, "FASTMLP_BACKEND=torch")
    if request == "auto" and not tensor.is_cuda:
        return Choice(None, f"on a {tensor.device.type} torch's own ops are the fastest")
    dtype = dtype or tensor.dtype
    if dtype not in KERNEL_DTYPES:
        return Choice(None, f"the kernels do not compute in {dtype}")
    problem = triton_problem(tensor.is_cuda)
    if problem is None:
        return Choice(_triton_backend(), "Triton kernels")
    if request == "triton":
        raise RuntimeError(f"FASTMLP_BACKEND=triton: {problem}")
    return Choice(None, problem)


@cache
def triton_problem(on_gpu: bool) -> str | None:
    """Why Triton cannot run on such tensors, or None if it can."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _MINIMUM_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, _MINIMUM_TRITON))}"
    from fastmlp.kernels import launch

    if not on_gpu and not launch.INTERPRETED:
        return "the tensors are not on a GPU, and TRITON_INTERPRET=1 is not set"
    return None


@cache
def _triton_backend() -> Backend:
    from fastmlp.backends.triton_backend import TritonBackend

    return TritonBackend()
