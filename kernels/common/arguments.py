"""What belongs together is one argument of a kernel, and of a device function.

Triton takes named tuples, nested ones too, and passes them on. What is absent is None, which the compiler
knows: ``if bias is not None`` is decided there. A stride of 1 becomes a constant in a tuple as it does
outside, but ``do_not_specialize`` does not reach into a tuple: what must not compile a kernel anew (M, the
number of splits, a dropout's site) stays outside. No member may be called ``values`` or ``type``, which are
attributes of Triton's own tuple. A kernel may make such a tuple too, but one that holds a name (an
`Activation`) only as an argument of a call: an assignment turns the members into numbers on the device.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, overload

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common import older_triton

if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
    older_triton.mend()

#: The Triton name of each dtype that the kernels compute in.
TL_DTYPE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class Matrix(NamedTuple):
    """(M, N) in any strides."""

    ptr: Any
    row: Any  # the stride from one row to the next
    col: Any


class Vector(NamedTuple):
    """Numbers a stride apart; one number for all has stride 0, and may be a plain number."""

    ptr: Any
    stride: Any


class Multiple(NamedTuple):
    """A size or a stride, and a power of two up to 16 that divides it, for the compiler to know.

    Triton by itself tells multiples of 16 from all other numbers, but 16 bytes are 4 or 8 elements.
    """

    number: Any
    factor: Any


class Source(NamedTuple):
    """A layer's input X = f(scale * matrix[index] + shift): rows of a matrix, made as they are loaded.

    With a shift there is a scale too, and either may have a number for each feature; a scale alone is one
    number (see `common.quantized`). ``act`` is for the weights' gradients, where of the layer before only Z
    was kept.
    """

    matrix: Matrix
    index: Any = None  # (M,): which rows of the matrix are X; None for all
    scale: Vector | None = None
    shift: Vector | None = None
    act: Any = None  # f, an `Activation`; None for the identity


class Activation(NamedTuple):
    """f, by its name in `fastmlp.activations`, with its negative slope: one number, or PReLU's weight."""

    name: Any
    slope: Any
    weight: Vector | None = None


class Drop(NamedTuple):
    """A dropout; the layer's number (``site``) is passed beside it."""

    seed: Any  # (1,) int64
    p: Any
    keep: Any  # 1 / (1 - p)


class Undo(NamedTuple):
    """What a gradient has to go back through: a dropout, and f' computed from ``saved``."""

    act: Activation
    saved: Matrix | None
    drop: Drop | None


class Scale(NamedTuple):
    """numerator / denominator, both scalars on the device."""

    numerator: Any
    denominator: Any


class Blocks(NamedTuple):
    """A tile of a matrix product, all of it known to the compiler."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    GROUP_M: int
    EVEN_K: bool  # BLOCK_K divides what is summed over: no mask along it
    PRECISION: str  # "ieee" or "tf32": what float32 operands are multiplied in


@overload
def matrix(tensor: Tensor) -> Matrix: ...
@overload
def matrix(tensor: Tensor | None) -> Matrix | None: ...
def matrix(tensor: Tensor | None) -> Matrix | None:
    """A matrix as a kernel's argument."""
    return None if tensor is None else Matrix(tensor, *tensor.stride())


def vector(numbers: Tensor | float | None) -> Vector | None:
    """A tensor of one or of many numbers, or one number, as a kernel's argument."""
    if numbers is None:
        return None
    if not isinstance(numbers, Tensor):
        return Vector(float(numbers), 0)
    return Vector(numbers, numbers.stride(0) if numbers.numel() > 1 else 0)


_FACTORS = {factor: tl.constexpr(factor) for factor in (1, 2, 4, 8, 16)}


def multiple(number: int) -> Multiple:
    """A size or a stride as a kernel's argument."""
    return Multiple(number, _FACTORS[math.gcd(number, 16)])


def activation(name: str, slope: float = 0.0, weight: Tensor | None = None) -> Activation:
    """An activation as a kernel's argument."""
    return Activation(tl.constexpr(name), slope, vector(weight))


def in_which(named: dict[str, Any]) -> tuple[str, str] | None:
    """What a launch multiplies matrices in, if it does, by its `launch.Launch.named` arguments.

    The dtype by its Triton name, and the PRECISION of float32.
    """
    tile = named.get("TILE")
    precision = named.get("PRECISION") if tile is None else tile.PRECISION
    if precision is None:
        return None
    dtype = named["DTYPE"] if "DTYPE" in named else TL_DTYPE[named["y"].ptr.dtype]
    return str(dtype), precision


@triton.jit
def at(matrix, rows, cols):
    """Addresses of a tile; 64-bit, since rows * stride passes 2³¹ in large matrices."""
    return matrix.ptr + rows[:, None].to(tl.int64) * matrix.row + cols[None, :].to(tl.int64) * matrix.col


@triton.jit
def aligned(multiple):
    """The number of a `Multiple`, in a form that tells the compiler what divides it."""
    return multiple.number // multiple.factor * multiple.factor


@triton.jit
def transposed(matrix):
    """The same elements with rows and columns exchanged."""
    return Matrix(matrix.ptr, matrix.col, matrix.row)


@triton.jit
def load_vector(vector, i, count):
    """The numbers ``i``, float32; 0 from ``count`` on."""
    return tl.load(vector.ptr + i * vector.stride, mask=i < count, other=0.0).to(tl.float32)


@triton.jit
def slopes_of(act, features, num_features):
    """An activation's negative slope for each feature: PReLU's learned ones, or one number."""
    if act.weight is None:
        return tl.zeros_like(features).to(tl.float32) + act.slope
    else:
        return load_vector(act.weight, features, num_features)


@triton.jit
def rows_of(source, rows, ok):
    """The rows of the data set that ``rows`` of the batch are."""
    if source.index is None:
        return rows
    else:
        return tl.load(source.index + rows, mask=ok, other=0).to(tl.int64)
