"""Random problems: sizes with every tail, and matrices laid out in every way."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from fastmlp.activations import TABLE, Act

#: What the kernels compute in.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

#: One, primes, tile sizes and their neighbours, and the tail of an epoch (60000 mod 256 = 96).
SIZES = (1, 2, 3, 5, 7, 13, 16, 17, 31, 32, 33, 61, 64, 65, 96, 97, 127, 128, 131)


def matrix(rng: random.Random, rows: int, cols: int, dtype: torch.dtype, device: str) -> Tensor:
    """Standard normal (rows, cols): contiguous, transposed, sliced with a step, or offset by an element."""
    layout = rng.choice(["contiguous", "contiguous", "transposed", "sliced", "offset"])
    if layout == "transposed":
        return torch.randn(cols, rows, device=device).to(dtype).t()
    if layout == "sliced":
        return torch.randn(2 * rows, 3 * cols, device=device).to(dtype)[::2, ::3]
    if layout == "offset":
        return torch.randn(rows * cols + 1, device=device).to(dtype)[1:].view(rows, cols)
    return torch.randn(rows, cols, device=device).to(dtype)


def vector(rng: random.Random, size: int, dtype: torch.dtype, device: str) -> Tensor:
    """Standard normal (size,): contiguous or with a stride of two."""
    step = rng.choice([1, 1, 2])
    return torch.randn(step * size, device=device).to(dtype)[::step]


def activation(rng: random.Random, name: str, features: int, dtype: torch.dtype, device: str) -> Act:
    """The named activation with random parameters."""
    slope = rng.choice([0.01, 0.3, -0.2, 0.0]) if name == "leaky_relu" else 0.0
    weight = vector(rng, rng.choice([1, features]), dtype, device) if name == "prelu" else None
    return Act(TABLE[name], slope, weight)
