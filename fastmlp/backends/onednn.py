"""A linear layer on a CPU by oneDNN, where that is faster than the library behind ``F.linear``.

The product comes through a private op of torch, which is left alone where a build lacks it. Times of
``F.linear`` in float32 (MKL) over oneDNN's on two Zen 4 cores, torch 2.14, batch x inputs x outputs: 0.7 at
1x784x256, 1.0 at 32x784x256, 1.07 at 256x784x256, 1.1 at 1024x1024x1024, 1.2 at 4096x784x256, 1.9 at
4096x256x10. In bfloat16 both are oneDNN's, and the op alone is 1.05 at 4096x784x256 and less than 1 at 256.

MKL is at home on Intel's processors. On two cores of a Xeon with AMX: 0.83 at 32x784x256, 0.96 at
256x784x256, 1.02 at 4096x784x256, 1.13 at 16384x784x256; and in a training step MKL writes into memory that
stays: of 784-256-10 at batch 256 a step was 1.38 times as fast as eager's by it, 1.24 times by oneDNN.
In bfloat16 the op alone is faster there: 1.15 at 1x784x256, 1.2 at 32x256x10 and 256x784x256, 1.08 at
1024x1024x1024, and 0.26 at 1x256x10, which F.linear leaves to a product of its own. The two do not mix well:
784-256-10 at batch 1024 took 0.28 ms by one for each layer, 0.25 ms by either for both.

Two things that oneDNN offers are not used. Weights packed once would gain another 2 to 4 %, but a write
through ``.data`` or a NumPy alias leaves no trace by which to pack them again. Its fused ReLU turns NaN
into 0; a ReLU in place costs 1 %.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastmlp.costs.devices import processor


def _find() -> Callable[..., Tensor] | None:
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


#: (x, weight, bias, "none", [], "") to x weightᵀ + bias in fresh memory; None where torch has no such op. It
#: reads a bias as if it were contiguous, past its end where it is not, and refuses a weight of odd strides.
PRODUCT = _find()
_INTEL = "intel" in processor().lower()
#: From this many multiplications on it is the faster one, in the dtypes that it takes on this processor.
LEAST_WORK = {torch.float32: 1 << (29 if _INTEL else 23)}
if PRODUCT is not None and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    LEAST_WORK[torch.bfloat16] = 1 << (16 if _INTEL else 27)
#: In which dtype it also is where the result of the other goes into memory that is there already: for the
#: forward's product, and for the input's gradient (in bfloat16 0.9 to 1.05 times ``mm``'s speed on the Xeon).
FORWARD_IN_STEPS = torch.bfloat16 if _INTEL else torch.float32
INPUT_GRAD_IN_STEPS = None if _INTEL else torch.float32
_PLAIN = (Tensor, torch.nn.Parameter)


def applies(x: object) -> bool:
    """Whether ops on ``x`` are nobody's but ATen's: no gradients, transforms, modes, autocast or traces."""
    return (
        not torch.is_grad_enabled()
        and isinstance(x, Tensor)
        and type(x) in _PLAIN
        and x.is_cpu
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear(x, weight, bias)``, errors included, for an ``x`` that `applies`."""
    least = LEAST_WORK.get(x.dtype)
    if (
        PRODUCT is not None
        and least is not None
        and x.dim() == 2
        and x.shape[0] * weight.numel() >= least
        and weight.shape[1:] == x.shape[1:]
        and _fits(weight, x)
        and (weight.is_contiguous() or weight.t().is_contiguous())
        and (bias is None or (bias.shape == weight.shape[:1] and _fits(bias, x) and bias.is_contiguous()))
        and x.layout is torch.strided
        and torch._C._get_mkldnn_enabled()
    ):
        return PRODUCT(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def _fits(tensor: Tensor, x: Tensor) -> bool:
    return (
        tensor.dtype == x.dtype
        and type(tensor) in _PLAIN
        and tensor.is_cpu
        and tensor.layout is torch.strided
    )
