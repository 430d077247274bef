"""Which backend runs is decided here and nowhere else, from the tensors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from fastmlp.backends.base import Backend
from fastmlp.compiling import constant

#: What ``FASTMLP_BACKEND`` may be.
CHOICES = ("auto", "torch", "triton")
#: What the kernels compute with. float64 goes to torch's own ops.
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MINIMUM_TRITON = (3, 5)
_MINIMUM_CAPABILITY = 8  # Ampere's: bfloat16 and TF32 products, asynchronous copies, and what Triton supports


class Traced:
    """Stands for the kernels under ``torch.compile``, which traces what is called: `fastmlp.ops`."""

    name = "triton"
    head_classes = 0  # chain and loss are ops of their own


TRACED = Traced()


class Choice(NamedTuple):
    """The backend for some tensors, and why; None stands for ATen's ops with ATen's autograd."""

    backend: Backend | Traced | None
    reason: str


_PLAIN = (Tensor, torch.nn.Parameter)
_TRANSFORMED = Choice(None, "the kernels read plain tensors, none that stand for something else")
_OVERRIDDEN = Choice(None, "a mode decides what torch's ops do, and would not see the kernels")
_EXPORTING = Choice(None, "an exported program is made of torch's own ops, which run without fastmlp")
_COMPILED = Choice(TRACED, "Triton kernels")
_ASKED_FOR_TORCH = Choice(None, "torch's own ops are asked for")
_NOT_ON_A_GPU = Choice(None, "off the GPU torch's own ops are the fastest")


def _checked(name: str, where: str) -> str:
    if name not in CHOICES:
        raise ValueError(f"{where}: expected one of {', '.join(CHOICES)}, got {name!r}")
    return name


class _Asked:
    """A `use` block; one of two that ask for the same is not the other."""

    def __init__(self, name: str) -> None:
        self.name = name


#: Who asks, the last one first to be heard. The environment is read once: looking into it at every forward
#: would cost as much as all the rest here.
_asked = [_Asked(_checked(os.environ.get("FASTMLP_BACKEND", "auto"), "FASTMLP_BACKEND"))]


def off_gpu(input: object) -> bool:
    """Whether a call with ``input`` is for torch's own ops at once: nobody asks, and it is on no GPU."""
    return _asked[-1].name == "auto" and not (isinstance(input, Tensor) and input.is_cuda)


def requested() -> str:
    """``auto``, ``torch`` or ``triton``: what the `use` block, else ``FASTMLP_BACKEND``, asks for."""
    return _asked[-1].name


@contextmanager
def use(name: str) -> Iterator[None]:
    """Force the backend inside the ``with`` block, as ``FASTMLP_BACKEND=name`` does for a process.

    In every thread: where blocks of several overlap, the one that was entered last counts.
    """
    block = _Asked(_checked(name, "name"))
    _asked.append(block)
    try:
        yield
    finally:
        _asked.remove(block)


def readable(tensor: Tensor) -> bool:
    """Whether a kernel that reads at the tensor's address finds its elements there.

    Not those of a type of its own, which decides itself what an op on it does; nor of the meta device or
    sparse; nor of a lazily negated view, which the imaginary part of a conjugate is.
    """
    return (
        type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and (torch.compiler.is_compiling() or not tensor.is_neg())  # a trace's ops get it resolved
    )


_TRACES = [getattr(torch._C._TorchDispatchModeKey, name) for name in ("FAKE", "PROXY", "FUNCTIONAL")]


def overridden() -> bool:
    """Whether a mode decides what torch's ops do, or makes a graph of them, and so has to see each.

    A ``TorchFunctionMode``, but those of devices (``torch.set_default_device``), which ops do not mind; or a
    trace of ATen's ops: ``make_fx``, fake tensors.
    """
    if torch._C._len_torch_function_stack() and any(
        type(mode) is not DeviceContext for mode in _get_current_function_mode_stack()
    ):
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and any(
        torch._C._get_dispatch_mode(key) is not None for key in _TRACES
    )


def untouched(*tensors: Tensor | None) -> bool:
    """Whether nobody but ATen and its autograd sees what is done with the tensors: any way will do."""
    return (
        not torch.compiler.is_compiling()
        and all(t is None or type(t) in _PLAIN for t in tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.jit.is_tracing()
        and not overridden()
    )


def is_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device."""
    return autocasts(tensor.device.type)


def autocasts(kind: str) -> bool:
    """Whether autocast is on for a kind of device. torch raises where it knows none."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that matrix products run in: autocast's where that is on, else the tensor's.

    Autocast leaves float64, integers and complex numbers alone.
    """
    if tensor.dtype not in KERNEL_DTYPES or not is_autocast(tensor):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def choose(tensor: Tensor) -> Choice:
    """The backend for work on ``tensor``. On a CPU this is a part of a microsecond.

    Raises:
        RuntimeError: Triton is asked for and cannot run.
    """
    asked = _asked[-1].name
    if asked == "auto" and not tensor.is_cuda:
        return _NOT_ON_A_GPU
    if asked == "torch":
        return _ASKED_FOR_TORCH
    compiling = torch.compiler.is_compiling()
    if compiling and torch.compiler.is_exporting():
        return _EXPORTING
    if not readable(tensor) or torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
        return _TRANSFORMED
    if not compiling and overridden():
        return _OVERRIDDEN
    if forward_ad._current_level >= 0:  # within it any tensor may have a tangent
        return _TRANSFORMED
    dtype = compute_dtype(tensor)
    if dtype not in KERNEL_DTYPES:
        return Choice(None, f"the kernels do not compute in {dtype}")
    problem = triton_problem(tensor.get_device() if tensor.is_cuda else -1)
    if problem is None:
        return _COMPILED if compiling else Choice(_triton_backend(), "Triton kernels")
    if asked == "triton":
        raise RuntimeError(f"FASTMLP_BACKEND=triton: {problem}")
    return Choice(None, problem)


def kernels(tensor: Tensor) -> Backend:
    """The kernels, for `fastmlp.ops`, whatever is asked for.

    Raises:
        RuntimeError: they cannot run on ``tensor``.
    """
    problem = triton_problem(tensor.get_device() if tensor.is_cuda else -1)
    if problem is not None:
        raise RuntimeError(f"fastmlp's kernels: {problem}")
    return _triton_backend()


@constant
def triton_problem(gpu: int) -> str | None:
    """Why Triton cannot run on tensors of the GPU of that index, -1 for a CPU, or None if it can."""
    return _triton_problem(gpu)


def triton_missing() -> str | None:
    """Why the Triton here does not do, if it does not or is not there."""
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported ({error})"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < _MINIMUM_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, _MINIMUM_TRITON))}"
    return None


@cache
def _triton_problem(gpu: int) -> str | None:
    missing = triton_missing()
    if missing is not None:
        return missing
    from fastmlp.kernels import launch

    if launch.INTERPRETED:
        return None
    if gpu < 0:
        return "the tensors are not on a GPU, and TRITON_INTERPRET=1 is not set"
    if torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(gpu)
        if major < _MINIMUM_CAPABILITY:
            return f"compute capability {major}.{minor} is below {_MINIMUM_CAPABILITY}.0"
    return None


@cache
def _triton_backend() -> Backend:
    from fastmlp.backends.triton_backend import TritonBackend

    return TritonBackend()
