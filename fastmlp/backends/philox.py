"""Philox-4x32-10 in torch's own ops, number for number what `fastmlp.kernels.common.dropout` draws.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011). torch has no unsigned 32-bit
arithmetic, so words are int64; a product wraps around at 2⁶⁴, and the bits that are wanted are right.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 10
_WORD = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words for each counter, as int64 in [0, 2³²).

    Args:
        seed: (1,) int64, the key.
        counter: four words that broadcast, likewise int64 in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(_ROUNDS):
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((b >> 32) & _WORD) ^ c1 ^ k0, b & _WORD, ((a >> 32) & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def keep_mask(p: float, seed: Tensor, site: int, rows: int, features: int) -> Tensor:
    """Which of (rows, features) are kept with probability 1 - ``p``: see `fastmlp.kernels.common.dropout`."""
    row = torch.arange(rows, device=seed.device)[:, None]
    quads = torch.arange(-(-features // 4), device=seed.device)[None, :]
    words = philox(seed, (quads, row & _WORD, row >> 32, torch.full_like(row, site)))
    uniform = (torch.stack(words, -1) >> 8).float() * 2.0**-24
    threshold = torch.full((), p, device=seed.device, dtype=torch.float32)  # a Python number has more digits
    return (uniform >= threshold).flatten(1)[:, :features]
