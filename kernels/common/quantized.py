"""Quantized inputs of a first layer: X = scale * Q + shift, Q of uint8 or int8.

Scale and shift are numbers or tensors on the device, with one element or one per feature. Integers up to 256
are exact in every dtype that the products run in, so a single scale goes into the epilogue of an exact
product; with a shift, or a scale per feature, X is formed as its tile is loaded, in float32 and
rounded once. The gradient needs no X: dW = scale * dZᵀ Q + shift * (row sums of dZ), from
the exact integers in either case.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.language import core  # in Triton 3.6 the only place of `to_tensor`

from fastmlp.kernels.common.arguments import Source, load_vector, matrix, vector

#: A number, or a tensor of one or of K numbers.
Number = float | Tensor


@triton.jit
def scalar(number):
    """One number, given as such or as a tensor of one element."""
    number = core.to_tensor(number)
    if number.dtype.is_ptr():
        return tl.load(number).to(tl.float32)
    else:
        return number


@triton.jit
def numbers(vector, features, num_features):
    """A number for each feature: a plain one, or a tensor's (with stride 0, its one element)."""
    number = core.to_tensor(vector.ptr)
    if number.dtype.is_ptr():
        return load_vector(vector, features, num_features)
    else:
        return tl.zeros_like(features).to(tl.float32) + number


@triton.jit
def dequantize(q, source, features, num_features):
    """A tile (rows, features) of X, float32."""
    scales = numbers(source.scale, features, num_features)
    shifts = numbers(source.shift, features, num_features)
    return q.to(tl.float32) * scales[None, :] + shifts[None, :]


@triton.jit
def dequantize_gradient(acc, sums, source, features, num_features):
    """dZᵀ X from ``acc`` = dZᵀ Q and the ``sums`` of dZ over the same examples; and these sums."""
    if source.shift is not None:
        scales = numbers(source.scale, features, num_features)
        shifts = numbers(source.shift, features, num_features)
        sums += 0.0  # Triton 3.8's compiler trips over a loop's row sums that are read more than once
        acc = acc * scales[None, :] + sums[:, None] * shifts[None, :]
    elif source.scale is not None:
        acc = acc * scalar(source.scale.ptr)
    return acc, sums


def source(
    x: Tensor, index: Tensor | None = None, scale: Number = 1.0, shift: Number | None = None
) -> Source:
    """X = scale * x[index] + shift as a kernel's argument: what changes nothing is None."""
    if isinstance(scale, Tensor):
        idle, many = False, scale.numel() > 1
    else:
        idle, many = scale == 1 and shift is None, False
    shift = 0.0 if many and shift is None else shift
    return Source(matrix(x), index, None if idle else vector(scale), vector(shift))
