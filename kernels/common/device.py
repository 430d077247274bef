"""Device functions that the matrix kernels share."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from fastmlp.kernels.launch import INTERPRETED

# Triton's interpreter knows bf16 by its bits alone: arithmetic on it is wrong (triton-lang/triton#11584),
# a cast from float32 cuts the low bits off instead of rounding, and one from an integer gives other numbers.
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def cast(x, DTYPE: tl.constexpr):
    """x in DTYPE, rounded to the nearest, ties to even."""
    if _INTERPRETED and DTYPE == tl.bfloat16 and x.dtype.is_int():
        x = x.to(tl.float32)
    if _INTERPRETED and DTYPE == tl.bfloat16 and x.dtype == tl.float32:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, rounded, x)  # a NaN's bits are left alone
    return x.to(DTYPE)


@triton.jit
def store(pointer, value, mask=None):
    """Store ``value`` in the pointer's dtype, rounded to the nearest."""
    tl.store(pointer, cast(value, pointer.dtype.element_ty), mask=mask)


@triton.jit
def product(a, b):
    """a * b, float32, rounded whatever is done with it: for products that are summed.

    Lanes sum by exchange: each adds another lane's number to its own. If its own is an a * b that the
    compiler contracts with the addition, it adds an exact product to a rounded one, and the other lane the
    other way round: copies of one sum, any of which may be stored (triton-lang/triton#7264), would differ in
    the last bit.
    """
    return tl.fma(a, b, 0.0)


@triton.jit
def dot(a, b, acc, DTYPE: tl.constexpr, PRECISION: tl.constexpr):
    """``acc`` + a @ b: operands rounded to DTYPE, accumulated in float32.

    PRECISION ("ieee" or "tf32") is what float32 operands are multiplied in.
    """
    a = cast(a, DTYPE)
    b = cast(b, DTYPE)
    if _INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def tile_of(pid, num_m, num_n, GROUP_M: tl.constexpr):
    """The (row, column) tile of program ``pid``, in groups of GROUP_M tile rows.

    Programs that run side by side then share rows of A and columns of B in the L2 cache.
    """
    per_group = GROUP_M * num_n
    first_m = pid // per_group * GROUP_M
    rows_in_group = tl.minimum(num_m - first_m, GROUP_M)
    in_group = pid % per_group
    return first_m + in_group % rows_in_group, in_group // rows_in_group


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Under programmatic dependent launch (sm_90 on): wait for the kernel before, and let the next one start.

    The wait stands before every load, so that starting early saves the launch and is never a race: the
    next kernel in turn waits until this one has ended.
    """
    if PDL:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def load_scale(scale):
    """scale.numerator / scale.denominator; 1 if there is none."""
    if scale is not None:  # a mean over no rows at all is NaN, but its gradient is 0
        denominator = tl.load(scale.denominator).to(tl.float32)
        return tl.where(denominator == 0, 0.0, tl.load(scale.numerator).to(tl.float32) / denominator)
    else:
        return 1.0
