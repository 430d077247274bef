"""The least that a piece of work needs: operations, bytes, launches. Counted, never timed.

A launch reads each operand from memory once and writes each result once; what one launch hands to
the next goes through memory. Sums and pointwise functions are not counted beside the products.
What a network takes by each of its plans is counted in `fastmlp.costs.plans`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_FLOAT32 = 4
_LABEL = 8  # int64


@dataclass(frozen=True)
class Work:
    """The least that a piece of work takes."""

    operations: int  # of the matrix products: a multiplication and an addition are two
    bytes: int  # read and written
    launches: int
    footprint: int  # bytes that live at the same time
    cached: int = 0  # bytes through the cache, what several programs read counted for each; 0: not counted

    def __add__(self, other: Work) -> Work:
        """One and then the other, in the same memory."""
        return Work(
            self.operations + other.operations,
            self.bytes + other.bytes,
            self.launches + other.launches,
            max(self.footprint, other.footprint),
            self.cached + other.cached,
        )

    def times(self, count: float) -> Work:
        """The same work, done ``count`` times over the same memory."""
        return Work(
            round(self.operations * count),
            round(self.bytes * count),
            round(self.launches * count),
            self.footprint,
            round(self.cached * count),
        )


NOTHING = Work(0, 0, 0, 0)


def size(tensor: Tensor) -> int:
    """Bytes in memory: what is repeated with a stride of 0 is there once."""
    elements = math.prod(n if stride or not n else 1 for n, stride in zip(tensor.shape, tensor.stride()))
    return elements * tensor.element_size()


def linear(m: int, k: int, n: int, dtype: torch.dtype, backward: bool = False) -> Work:
    """Y = f(X Wᵀ + b) for X (M, K) and W (N, K)."""
    e = dtype.itemsize
    operands = m * k + n * k + n
    product, moved = 2 * m * k * n, e * (operands + m * n)  # X, W and b in; Y out
    if not backward:
        return Work(product, moved, 1, moved)
    # dX = dZ W and dW = dZᵀ X: two more products. In: dY, Y (for f'), X, W. Out: dX, dW, db.
    # One launch, as dX and dW do not depend on each other.
    back = e * (2 * m * n + m * k + n * k + operands)
    return Work(3 * product, moved + back, 2, 2 * moved)


def gathered_linear(m: int, k: int, n: int, dtype: torch.dtype, input_dtype: torch.dtype) -> Work:
    """Y = f(X Wᵀ + b) with its dW and db; X (M, K) are rows of a data set, gathered by their index."""
    e, source = dtype.itemsize, m * k * input_dtype.itemsize + m * _LABEL
    params, outputs = e * (n * k + n), e * m * n
    # Forward: X, W and b in, Y out. Backward: X, dY and Y in, dW and db out.
    return Work(2 * 2 * m * k * n, 2 * source + 2 * params + 3 * outputs, 2, source + 2 * (params + outputs))


def cross_entropy(rows: int, classes: int, dtype: torch.dtype) -> Work:
    """Loss and gradient of logits (N, C).

    The loss leaves before the upstream gradient is known, so the logits are read twice; the
    gradient is written once.
    """
    logits = rows * classes * dtype.itemsize
    return Work(0, 3 * logits + 2 * rows * _LABEL, 2, 2 * logits)


def linear_cross_entropy(rows: int, features: int, classes: int, dtype: torch.dtype) -> Work:
    """Loss and gradients of a classifier head whose logits never reach memory.

    Three products: the logits, dX and dW. Whoever does not keep the logits multiplies once more.
    """
    operands = (rows * features + classes * features) * dtype.itemsize
    # Forward reads X and W; backward reads them again and writes dX and dW.
    return Work(3 * 2 * rows * features * classes, 4 * operands, 2, 2 * operands)


def inference(widths: Sequence[int], batch: int, dtype: torch.dtype) -> Work:
    """The forward pass: one launch a layer, which reads its input and weights and writes its output."""
    layers = (linear(batch, k, n, dtype) for k, n in itertools.pairwise(widths))
    return sum(layers, NOTHING)


def training_step(
    widths: Sequence[int],
    batch: int,
    dtype: torch.dtype,
    input_dtype: torch.dtype | None = None,
    regression: bool = False,
) -> Work:
    """Forward, loss, backward and SGD. Parameters are float32, activations in ``dtype``.

    A target is a label, with ``regression`` a float32 for each output.
    """
    e, pairs = dtype.itemsize, list(itertools.pairwise(widths))
    products = [2 * batch * k * n for k, n in pairs]
    # Each layer: forward, dW, dX; the first one's dX is never needed.
    operations = 3 * sum(products) - products[0]
    source = batch * widths[0] * (input_dtype or dtype).itemsize
    hidden = batch * sum(widths[1:-1]) * e
    weights = sum(k * n + n for k, n in pairs) * _FLOAT32
    first = (widths[0] * widths[1] + widths[1]) * _FLOAT32
    moved = (
        2 * source  # read by the first layer's forward and by its dW
        + batch * (_FLOAT32 * widths[-1] if regression else _LABEL)
        # An activation is written, read by the next layer, by that layer's dW and for f'.
        + 4 * hidden
        # dZ is written, read for dW and for the dX below it (nothing is below the first).
        + 3 * hidden - batch * widths[1] * e
        # dlogits stay in the head, but for dW: written, read.
        + 2 * batch * widths[-1] * e
        # A weight is read by the forward, by dX (not the first's) and by the update, which writes it.
        + 4 * weights - first
    )  # fmt: skip
    # Forwards of the hidden layers; the head (logits, loss, dZ); dX of the hidden layers above the
    # first; one launch of all dW with the update.
    launches = 2 * len(pairs) - 1
    return Work(operations, moved, launches, source + 2 * hidden + 2 * weights)


def epoch(
    widths: Sequence[int], batch: int, examples: int, dtype: torch.dtype, input_dtype: torch.dtype
) -> Work:
    """One pass over ``examples``: full steps and, where they do not divide, a short one."""
    full, tail = divmod(examples, batch)
    step = training_step(widths, batch, dtype, input_dtype).times(full)
    short = training_step(widths, tail, dtype, input_dtype) if tail else NOTHING
    return replace(step + short, footprint=step.footprint + examples * widths[0] * input_dtype.itemsize)
