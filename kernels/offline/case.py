"""What a case is, and what all families' cases are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Numerics(NamedTuple):
    """What parameters are kept in, what a matrix product computes in, and how it treats float32."""

    storage: torch.dtype
    compute: torch.dtype
    precision: str


NUMERICS = {
    "bf16": Numerics(torch.bfloat16, torch.bfloat16, "ieee"),
    "fp16": Numerics(torch.float16, torch.float16, "ieee"),
    "tf32": Numerics(torch.float32, torch.float32, "tf32"),
    "fp32": Numerics(torch.float32, torch.float32, "ieee"),
    "autocast": Numerics(torch.float32, torch.bfloat16, "ieee"),
}

Run = Callable[[], Any]
Shape = tuple[int, int, int]  # M, N, K: rows, output features, input features

NARROW: Shape = (256, 256, 784)
WIDE: Shape = (4096, 4096, 4096)
RAGGED: Shape = (256, 10, 250)  # a classifier's last layer: nothing a multiple of 16
SINGLE: Shape = (60000, 1, 1)  # Triton makes an argument that is 1 a constant, and not all works with those
LONG: Shape = (60000, 64, 256)  # few tiles of dW over a long batch: several programs share each
#: A dtype of every precision that products have.
PRECISIONS = ("bf16", "tf32", "fp32")
# By the registers that f' takes. For the heavy ones it needs f's input, so their forward keeps that.
LIGHT = ("relu", "leaky_relu", "sigmoid", "tanh")
HEAVY = ("prelu", "gelu", "gelu_tanh", "silu")


@dataclass(frozen=True)
class Case:
    """One call of a launcher, and how to name it in a report."""

    family: str
    variant: str
    dtype: str
    run: Run
    wide: bool = True  # if it is bound by memory: addresses and rows allow 16 bytes per thread


def normal(device: str, dtype: torch.dtype, *sizes: int, std: float = 1.0) -> Tensor:
    """Random numbers."""
    return torch.empty(sizes, dtype=dtype, device=device).normal_(std=std)
