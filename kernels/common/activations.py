"""Activations and their derivatives as device functions: float32 in, float32 out.

``ACT`` is the kernel id of a row of ``fastmlp.activations``. An activation is two branches
here: one in `activate`, one in `derivative`, which is given ``saved``: the activation's
output where f' follows from it, else its input.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmlp.kernels.common.device import cast, product


@triton.jit
def tanh(x):
    # Cephes' tanhf: a polynomial near 0, where 1 - 2/(e^2x + 1) would cancel; e^2x = inf is exact.
    x2 = x * x
    p = -5.70498872745e-3
    p = p * x2 + 2.06390887954e-2
    p = p * x2 - 5.37397155531e-2
    p = p * x2 + 1.33314422036e-1
    p = p * x2 - 3.33332819422e-1
    near = x + x * x2 * p
    magnitude = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * magnitude) + 1.0)
    far = tl.where(x < 0, -far, far)
    return tl.where(magnitude < 0.625, near, far)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activate(z, slope, ACT: tl.constexpr):
    """f(z). ``slope`` is the negative slope of the leaky activations, else unused."""
    if ACT == "relu":
        return tl.where(z <= 0, 0.0, z)  # this way round a NaN stays a NaN
    elif ACT == "leaky_relu" or ACT == "prelu":
        return tl.where(z > 0, z, z * slope)
    elif ACT == "sigmoid":
        return sigmoid(z)
    elif ACT == "tanh":
        return tanh(z)
    elif ACT == "gelu":
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        return 0.5 * z * (1.0 + tanh(0.7978845608028654 * (z + 0.044715 * z * z * z)))
    elif ACT == "silu":
        return z * sigmoid(z)
    else:
        tl.static_assert(ACT == "none", "unknown activation")
        return z


@triton.jit
def derivative(saved, slope, ACT: tl.constexpr):
    """f', from f's output (relu, leaky_relu, sigmoid, tanh) or f's input (the others)."""
    if ACT == "relu":
        return tl.where(saved <= 0, 0.0, 1.0)
    elif ACT == "leaky_relu" or ACT == "prelu":
        return tl.where(saved > 0, 1.0, slope)
    elif ACT == "sigmoid":
        return saved * (1.0 - saved)
    elif ACT == "tanh":
        return 1.0 - saved * saved
    elif ACT == "gelu":
        cdf = 0.5 * (1.0 + tl.erf(saved * 0.7071067811865476))
        return cdf + saved * 0.3989422804014327 * tl.exp(-0.5 * saved * saved)
    elif ACT == "gelu_tanh":
        inner = 0.7978845608028654 * (saved + 0.044715 * saved * saved * saved)
        t = tanh(inner)
        slope_of_inner = 0.7978845608028654 * (1.0 + 0.134145 * saved * saved)
        return 0.5 * (1.0 + t) + 0.5 * saved * (1.0 - t * t) * slope_of_inner
    elif ACT == "silu":
        s = sigmoid(saved)
        return s * (1.0 + saved * (1.0 - s))
    else:
        tl.static_assert(ACT == "none", "unknown activation")
        return saved * 0.0 + 1.0


@triton.jit
def undo(grad, saved, slope, ACT: tl.constexpr):
    """grad * f'; where ReLU's f' is 0 so is the result, whatever ``grad`` is: torch selects, too."""
    if ACT == "none":
        return grad
    elif ACT == "relu":
        return tl.where(saved <= 0, 0.0, grad)
    else:
        return product(grad, derivative(saved, slope, ACT))


@triton.jit
def mask_gradient(grad, saved, slopes, DTYPE: tl.constexpr, ACT: tl.constexpr):
    """dZ = dY * f'(saved), rounded to DTYPE as a stored dZ would be; float32."""
    if ACT == "none":
        return grad.to(tl.float32)
    else:
        return cast(undo(grad.to(tl.float32), saved.to(tl.float32), slopes, ACT), DTYPE).to(tl.float32)
