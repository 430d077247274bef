"""SGD, Adam and AdamW as device functions: what `torch.optim` does to one element, in its order.

The numbers of a step (learning rate, decay, bias corrections) stand in a row of `HYPERS` floats on the
device, computed on the host in float64 as torch does. A schedule changes the row, never a kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

#: Numbers of a parameter group in a step: see `apply`.
HYPERS = tl.constexpr(8)

#: What `apply` can do: without a buffer, with torch's momentum, with Nesterov's, and Adam(W).
RULES = ("sgd", "momentum", "nesterov", "adam")


class State(NamedTuple):
    """Elements of a parameter and what the optimizer keeps of them; for what it does not keep, the value."""

    value: Any
    first: Any  # momentum, or Adam's first moment
    second: Any  # Adam's second moment


@triton.jit
def apply(state, g, hyper_ptr, RULE: tl.constexpr):
    """The state after a step with gradient ``g``; all float32.

    The row at ``hyper_ptr``:
    SGD: lr, weight decay, momentum, 1 - dampening (1 in a buffer's first step).
    Adam(W): lr / (1 - β1ᵗ), weight decay if coupled (Adam), 1 - lr * weight decay if decoupled (AdamW),
    1 - β1, β2, 1 - β2, ε, √(1 - β2ᵗ).
    """
    w = state.value
    first = state.first
    second = state.second
    g = g + tl.load(hyper_ptr + 1) * w
    if RULE == "adam":
        w = w * tl.load(hyper_ptr + 2)
        first = first + tl.load(hyper_ptr + 3) * (g - first)
        second = second * tl.load(hyper_ptr + 4) + tl.load(hyper_ptr + 5) * g * g
        root = tl.div_rn(tl.sqrt_rn(second), tl.load(hyper_ptr + 7))
        denominator = root + tl.load(hyper_ptr + 6)
        w = w - tl.load(hyper_ptr) * tl.div_rn(first, denominator)
    else:
        if RULE != "sgd":
            momentum = tl.load(hyper_ptr + 2)
            first = momentum * first + tl.load(hyper_ptr + 3) * g
            g = g + momentum * first if RULE == "nesterov" else first
        w = w - tl.load(hyper_ptr) * g
    return State(w, first, second)
