"""A module's forward and its backward, each as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastmlp.backends.route import debugging
from fastmlp.modules.snapshot import hooked

C = TypeVar("C", bound=Callable[..., Any])


def graphed(module: C, *sample: Tensor, num_warmup_iters: int = 3, allow_unused_input: bool = False) -> C:
    """``module``, with its forward and its backward each in one CUDA graph: the host launches no kernel.

    A call copies its inputs to where ``sample`` lies, replays the graph, and returns memory that the next
    call writes over. It takes only the shapes, dtypes and device of ``sample``, and is differentiated
    once. In-place writes to parameters, such as an optimizer's, are seen. Other parameters, another
    ``.data``, modes such as autocast, and hooks of children are not: they stay as they were here. Dropout
    draws anew in each call. Within ``torch.no_grad()`` there is no backward. It is
    `torch.cuda.make_graphed_callables` with checks, and without traces: warming up leaves buffers and random
    generators as they were.

    A module is changed in place and returned. Its ``forward`` is the graph while it is in the mode that it is
    in now, train or eval, and what it was before in the other; ``del module.forward`` takes the graph out. Of
    a function only the inputs have gradients: to have a net and its loss in one graph, make them one module.

    Args:
        module: an ``nn.Module``, or a function of tensors.
        sample: the inputs of a call, tensors on the GPU, which require a gradient as those of the calls do.
        num_warmup_iters: runs before the capture; a DistributedDataParallel wants 11.
        allow_unused_input: whether there may be an input or a parameter that has no gradient.

    Raises:
        TypeError: ``module`` is neither, or an input is not a tensor.
        ValueError: no ``sample``, or one that is not where the module is, on a GPU; a module with hooks, with
            a buffer that requires a gradient, or with a graph; in a call, an input that is not as the sample.
        RuntimeError: no NVIDIA GPU; ``FASTMLP_DEBUG=1``; autocast that keeps what it casts.
    """
    _check_module(module)
    _check_sample(sample)
    if not torch.cuda.is_available():
        raise RuntimeError("graphed: expected a GPU, and torch.cuda.is_available() is False")
    if torch.version.hip is not None:
        raise RuntimeError("graphed: expected an NVIDIA GPU, and this torch is for ROCm")
    if debugging():
        raise RuntimeError("graphed: FASTMLP_DEBUG=1 looks at values, for which a graph cannot wait")
    device = _device_of(module, sample)
    with torch.cuda.device(device), torch.random.fork_rng([device.index]), _buffers_kept(module):
        made: Any = torch.cuda.make_graphed_callables(
            module, sample, num_warmup_iters=num_warmup_iters, allow_unused_input=allow_unused_input
        )
    if not isinstance(made, nn.Module):
        return _as_sample(made, sample, lambda: True)  # type: ignore[return-value]
    mode = made.training
    made.forward = _as_sample(made.forward, sample, lambda: made.training == mode)  # type: ignore[method-assign]
    return made  # type: ignore[return-value]


def _as_sample(
    call: Callable[..., Any], sample: Sequence[Tensor], replays: Callable[[], bool]
) -> Callable[..., Any]:
    """``call``, which refuses inputs that are not as ``sample`` where it ``replays``: torch's copies any."""
    known = [(t.shape, t.dtype, t.device, t.requires_grad) for t in sample]

    def checked(*inputs: Any, **options: Any) -> Any:
        if replays():
            if options or len(inputs) != len(known):
                names = "".join(f", {name}=" for name in options)
                raise ValueError(f"inputs: expected {len(known)}, as the sample, got {len(inputs)}{names}")
            for i, (given, (shape, dtype, device, grad)) in enumerate(zip(inputs, known)):
                if given.shape != shape or given.dtype != dtype or given.device != device:
                    raise ValueError(
                        f"input {i}: expected {tuple(shape)} {dtype} on {device}, as the sample, "
                        f"got {tuple(given.shape)} {given.dtype} on {given.device}"
                    )
                if given.requires_grad and not grad and torch.is_grad_enabled():
                    raise ValueError(f"input {i}: requires a gradient, which the sample did not")
        return call(*inputs, **options)

    checked._is_graph = True  # type: ignore[attr-defined]
    return checked


def _check_module(module: object) -> None:
    if not callable(module):
        raise TypeError(f"module: expected an nn.Module or a function, got {type(module).__name__}")
    if not isinstance(module, nn.Module):
        return
    if getattr(vars(module).get("forward"), "_is_graph", False):
        raise ValueError("module: it has a graph; `del module.forward` takes it out")
    if hooked(module):
        raise ValueError("module: expected one without hooks; those that come later are called")
    for name, buffer in module.named_buffers():
        if buffer.requires_grad:
            raise ValueError(f"module: buffer {name} requires a gradient, which only parameters may")


def _check_sample(sample: Sequence[object]) -> None:
    if not sample:
        raise ValueError("sample: expected the inputs of a call, got none")
    for i, given in enumerate(sample):
        if not isinstance(given, Tensor):
            raise TypeError(f"sample: expected tensors alone, got {type(given).__name__} for input {i}")


def _device_of(module: object, sample: Sequence[Tensor]) -> torch.device:
    """The GPU that everything is on."""
    tensors = [(f"sample: input {i}", t) for i, t in enumerate(sample)]
    if isinstance(module, nn.Module):
        tensors += [(f"module: {name}", t) for name, t in module.named_parameters()]
        tensors += [(f"module: {name}", t) for name, t in module.named_buffers()]
    device = sample[0].device
    for name, tensor in tensors:
        if not tensor.is_cuda or tensor.device != device:
            wanted = "a GPU" if device.type != "cuda" else f"{device} as the first input"
            raise ValueError(f"{name}: expected on {wanted}, got {tensor.device}")
    return device


@contextmanager
def _buffers_kept(module: object) -> Iterator[None]:
    """Running statistics are nobody's but the caller's batches'."""
    buffers = [*module.buffers()] if isinstance(module, nn.Module) else []
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before):
                buffer.copy_(value)
