"""Philox in torch's ops against the reference implementation's known answers (Random123, kat_vectors)."""

from __future__ import annotations

import pytest
import torch

from fastmlp.backends.philox import keep_mask, philox

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (-1, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (0x299F31D0A4093822, PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
def test_known_answers(key: int, counter: tuple[int, ...], expected: tuple[int, ...]) -> None:
    words = philox(torch.tensor([key]), tuple(torch.tensor([c]) for c in counter))  # type: ignore[arg-type]
    assert tuple(int(word) for word in words) == expected


def test_rows_pass_32_bits() -> None:
    """Rows and their upper halves are words of their own."""
    seed, zero = torch.tensor([5]), torch.zeros(1, dtype=torch.int64)
    low, high = (
        philox(seed, (zero, row & 0xFFFFFFFF, row >> 32, zero)) for row in (zero + 3, zero + 3 + 2**32)
    )
    assert not torch.equal(torch.stack(low), torch.stack(high))


def test_the_rate_is_p() -> None:
    kept = keep_mask(0.2, torch.tensor([9]), 0, 1000, 101).double()
    assert abs(kept.mean() - 0.8) < 5 * (0.16 / kept.numel()) ** 0.5
