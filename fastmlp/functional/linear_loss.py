"""Linear layer and softmax cross-entropy in one: the logits of many classes never exist whole."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import handle_torch_function

from fastmlp import backends, ops
from fastmlp.autograd.cross_entropy import reference_loss
from fastmlp.autograd.linear_cross_entropy import LinearCrossEntropy, LinearLoss
from fastmlp.autograd.node import records_grad
from fastmlp.backends.base import Backend, LossOptions
from fastmlp.backends.route import Last, Routes
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.functional import chain_loss
from fastmlp.functional.layer import Layer, Layers
from fastmlp.functional.loss_checks import REDUCTIONS, check_linear, check_loss, takes_constants
from fastmlp.functional.traced import any_stand_in

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions

_CPU = TorchBackend()
#: From so many logits on tiles are worth a Function in Python; ATen's chain is faster on fewer.
_CPU_ELEMENTS = 1 << 22
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
) -> Tensor:
    """The cross-entropy of input linear_weightᵀ + linear_bias, as torch 2.14's function of that name.

    Many classes are computed in tiles (docs/linear_cross_entropy.md): a tenth of the memory that eager
    takes, with every argument. Gradients of ``weight`` or ``target``, derivatives of derivatives,
    forward-mode AD and ``torch.func`` are left to torch's own ops, and on a CPU ``torch.compile``.

    Args:
        input: (N, K), or (K,).
        linear_weight: (C, K), or (C, d1, ..., K), which gives each row a loss for every d.
        target: class indices (N,) or (N, d1, ...); or probabilities (N, C) or (N, C, d1, ...). Without N
            for an ``input`` (K,).
        linear_bias: (C,) or (C, d1, ...).
        weight: of the classes, (C,).
        reduction: "none", "mean" or "sum".
        ignore_index: class indices that count for nothing; None for -100.
        label_smoothing: in [0, 1].
        options: torch's knobs for torch's own chunks: where these take the call, torch's op runs.
        workspace: bytes that this may take besides its results; None for a tenth of what eager takes
            (at least 32 MB). The tiles are the largest that fit, one row or one class at least. Of no
            effect where torch's own ops run.

    Returns:
        A scalar; for reduction "none" (N,) or (N, d1, ...). On a GPU a target that is not a class makes its
        row's loss NaN; ``FASTMLP_DEBUG=1`` raises IndexError at the price of a sync.

    Raises:
        RuntimeError, ValueError, IndexError: as torch's, naming the argument.
        TypeError: ``options`` given to a torch that knows none.
    """
    given, key = (input, linear_weight, target), None
    if options is None and not backends.off_gpu(input):
        what = reduction, ignore_index, label_smoothing, workspace
        way, key = _WAYS.find(what, (*given, linear_bias, weight), _LAST)
        if way is not None:
            bias = () if linear_bias is None else (linear_bias,)
            return way(target, weight, input, linear_weight, *bias)[0]
    keywords: dict[str, Any] = {
        "linear_bias": linear_bias,
        "weight": weight,
        "reduction": reduction,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "options": options,
    }
    if any_stand_in(given):
        return handle_torch_function(linear_cross_entropy, given, *given, **keywords, workspace=workspace)
    shape = check_linear(input, linear_weight, target, linear_bias, ignore_index, workspace)
    numbers = LossOptions(-100 if ignore_index is None else ignore_index, reduction, label_smoothing)
    problem = _Problem(*given, linear_bias, weight, numbers, workspace, shape, target.shape == shape)
    if options is not None and _is_torchs(problem):
        return F.linear_cross_entropy(*given, **keywords)
    backend = _backend(problem)
    return _by_torch(problem) if backend is None else _computed(problem, backend, key)


#: Of few classes, whose loss and last layer are one kernel: by what they go.
_WAYS: Routes[chain_loss.Kernels] = Routes()
_LAST: Last[chain_loss.Kernels] = Last()


class _Problem(NamedTuple):
    """A call: `linear_cross_entropy`'s arguments, and what follows of them."""

    input: Tensor
    linear_weight: Tensor
    target: Tensor
    linear_bias: Tensor | None
    weight: Tensor | None
    options: LossOptions
    workspace: int | None
    shape: tuple[int, ...]  # of the logits, (N, C, d1, ...) or (C,)
    soft: bool  # the target is probabilities, and no class indices

    def is_autocast(self) -> bool:
        """Whether autocast, which leaves float64 alone, casts the input."""
        return self.input.dtype != torch.float64 and backends.is_autocast(self.input)

    def batched(self) -> _Problem:
        """With an input (N, K)."""
        if self.input.dim() == 2:
            return self
        x, target = self.input.unsqueeze(0), self.target.unsqueeze(0)
        return self._replace(input=x, target=target, shape=(1, *self.shape))


def _is_torchs(problem: _Problem) -> bool:
    """Whether torch's own chunks take the call, rather than warn and fall back."""
    if not hasattr(F, "linear_cross_entropy"):
        raise TypeError(
            f"options: torch {torch.__version__} has no linear_cross_entropy of its own; expected None"
        )
    target, options = problem.target, problem.options
    soft = (
        problem.soft
        and options.reduction != "none"
        and target.dtype == problem.input.dtype
        and not (target.requires_grad and torch.is_grad_enabled())
    )
    return (
        options.reduction in REDUCTIONS
        and options.label_smoothing == 0
        and (target.dtype == torch.int64 or soft)
        and problem.linear_weight.dim() == 2
        and not torch.jit.is_tracing()
    )


def _by_torch(problem: _Problem) -> Tensor:
    """The loss by torch's own differentiable ops."""
    input, w, target, bias, weight, options, _, shape, _ = problem
    if w.dim() > 2:
        w, bias = w.reshape(-1, w.shape[-1]), None if bias is None else bias.reshape(-1)
    return reference_loss(F.linear(input, w, bias).reshape(shape), target, weight, options)


def _backend(problem: _Problem) -> Backend | backends.Traced | None:
    """Who computes it; None for torch's own ops, which take, or refuse, whatever is odd."""
    if forward_ad._current_level >= 0:  # a Function has no jvp
        return None
    x, traced = problem.input, torch.compiler.is_compiling()  # a trace is for every size
    if type(x) is Tensor and backends.off_gpu(x) and not traced and math.prod(problem.shape) < _CPU_ELEMENTS:
        return None
    if not (_takes_tensors(problem) and _takes_dtypes(problem)):
        return None
    backend = backends.choose(problem.input).backend
    if backend is None and backends.requested() == "auto" and _pays_on_cpu(problem):
        return _CPU
    return backend


def _takes_tensors(problem: _Problem) -> bool:
    """Whether we take the tensors, whatever their dtypes."""
    input, w, target, bias, weight, options, *_ = problem
    params = (input, w) if bias is None else (input, w, bias)
    constants = (target,) if weight is None else (target, weight)
    return (
        all(map(backends.readable, params))
        and takes_constants(target, weight, w.dim(), options)
        and all([t.device == input.device for t in (*params, *constants)])
        and input.numel() > 0
        and w.numel() > 0
        and input.is_floating_point()
        and problem.soft == target.is_floating_point()
        and (problem.soft or input.dim() == 2 or target.dim() == 0)  # torch takes (1,) for ()
        and (weight is None or weight.dim() == 1)
    )


def _takes_dtypes(problem: _Problem) -> bool:
    """Whether all dtypes are the input's, or what autocast makes one of them."""
    dtype, autocast, kinds = problem.input.dtype, problem.is_autocast(), backends.KERNEL_DTYPES
    params = (problem.linear_weight, problem.linear_bias)
    others = [t.dtype for t in params if t is not None and t.dtype != dtype]
    if others and not (autocast and all(other in kinds for other in [dtype, *others])):
        return False
    values = (problem.weight, problem.target if problem.soft else None)
    others = [t.dtype for t in values if t is not None and t.dtype != dtype]
    return not others or (autocast and torch.float64 not in others)


def _pays_on_cpu(problem: _Problem) -> bool:
    """Many logits on a CPU: half the time of ATen's, and a tenth of the memory."""
    input, target, shape = problem.input, problem.target, problem.shape
    if (
        not input.is_cpu
        or not backends.untouched(input)
        or torch.Size(shape).numel() < _CPU_ELEMENTS
        or backends.compute_dtype(input) not in _CPU_DTYPES
    ):
        return False
    if problem.soft:
        return True
    if target.dtype not in (torch.int64, torch.uint8):
        return False
    classes, ignored = shape[input.dim() - 1], target == problem.options.ignore_index
    return bool((ignored | (target >= 0) & (target < classes)).all())


def _computed(given: _Problem, backend: Backend | backends.Traced, key: Hashable | None) -> Tensor:
    """The loss by kernels, or by the tiles of `TorchBackend`."""
    problem = given.batched()
    x, linear_weight, target, bias, weight, options, workspace, shape, soft = problem
    check_loss(shape, x, target, None if weight is None else weight.to(x.dtype), options)
    if backend is not _CPU and _fits_head(problem, backend):
        return _by_head(problem, key if problem is given else None)
    dtype, (c, k) = backends.compute_dtype(x), (len(linear_weight), x.shape[1])
    loss_dtype = torch.float32 if dtype != x.dtype or problem.is_autocast() else x.dtype
    w, b = linear_weight.reshape(c, -1, k), None if bias is None else bias.reshape(c, -1)
    t = target.reshape(len(x), c, -1) if soft else target.reshape(len(x), -1).long()
    if isinstance(backend, backends.Traced):
        loss = ops.linear_cross_entropy(x, w, b, t, weight, options, dtype, loss_dtype, workspace)
    else:
        need_params = records_grad() and any(p is not None and p.requires_grad for p in (w, b))
        job = LinearLoss(backend, options, dtype, loss_dtype).tiled(x, w, t, need_params, workspace)
        loss = LinearCrossEntropy.apply(job, x, w, b, t, weight)
    if options.reduction != "none":
        return loss
    return loss.view((*given.input.shape[:-1], *linear_weight.shape[1:-1]))


def _fits_head(problem: _Problem, backend: Backend | backends.Traced) -> bool:
    """Few classes, whose loss and layer may be one kernel."""
    x, w, weight = problem.input, problem.linear_weight, problem.weight
    return (
        len(w) <= backend.head_classes
        and w.dim() == 2
        and problem.options.reduction != "none"
        and not problem.soft
        and (weight is None or weight.dtype == x.dtype)
    )


def _by_head(problem: _Problem, key: Hashable | None) -> Tensor:
    """The loss as that of a chain of one layer; kept if there is a ``key``."""
    x, w, target, bias, weight, options, *_ = problem
    layers = Layers([Layer(w, bias)])
    way, tensors = chain_loss.find(x, layers, target, weight, options, with_output=False)
    if way is None:
        return chain_loss.chain_cross_entropy(x, layers, target, weight, options)[0]
    return _WAYS.keep(key, way)(target, weight, *tensors)[0]
