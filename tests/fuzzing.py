"""What the fuzz tests share: how many examples, tensors in every layout with special values, the judge.

What torch gives, we give: an error where it has one, NaN and infinities in the same places, and elsewhere at
most twice its own error. On the torch backend the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.numerics import assert_as_good_as_torch

#: ``FASTMLP_FUZZ=deep`` looks for new examples, thousands of them; else the same few every time.
DEEP = os.environ.get("FASTMLP_FUZZ") == "deep"


def fuzz(examples: int) -> settings:
    """The settings of a test with so many examples."""
    return settings(
        max_examples=int(os.environ.get("FASTMLP_FUZZ_EXAMPLES", 2000)) if DEEP else examples,
        derandomize=not DEEP,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # cases are short as they are, and shrinking takes minutes
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )


#: Nothing, one, primes, and tiles with their neighbours.
SIZES = st.sampled_from([0, 1, 1, 2, 3, 5, 7, 13, 16, 17, 31, 33, 64, 65])
LAYOUTS = st.sampled_from(["contiguous", "contiguous", "transposed", "sliced", "offset", "expanded"])
SPECIALS = {
    "none": [],
    "nan": [float("nan")],
    "inf": [float("inf")],
    "-inf": [float("-inf")],
    "both": [float("inf"), float("-inf")],
    "zeros": [0.0, -0.0],
    "denormal": [1e-40, -3e-8],
    "large": [1e4, -1e4],
}
SEEDS = st.integers(0, 2**16)
#: What says that an input is wrong. Which of them is torch's choice, or ours with a better message.
ERRORS = (ValueError, TypeError, RuntimeError, IndexError)


def tensor(shape: Sequence[int], layout: str, dtype: torch.dtype, device: str, scale: float = 1.0) -> Tensor:
    """Standard normal times ``scale``."""
    *lead, last = shape if shape else (1,)
    if not shape:
        return (scale * torch.randn((), device=device)).to(dtype)

    def normal(*size: int) -> Tensor:
        return (scale * torch.randn(size, device=device)).to(dtype)

    if layout == "transposed":
        return normal(last, *lead).movedim(0, -1)
    if layout == "sliced":
        return normal(*(2 * n for n in lead), 3 * last)[
            (*[slice(None, None, 2)] * len(lead), slice(1, None, 3))
        ]
    if layout == "offset":
        return normal(torch.Size(shape).numel() + 1)[1:].view(*shape)
    if layout == "expanded":
        return normal(*[1] * len(lead), last).expand(*shape) if lead else normal(1).expand(last)
    return normal(*shape)


def sprinkle(values: Tensor, special: str, count: int = 2) -> Tensor:
    """``values`` with some of the special ones in random places (all that share memory)."""
    if values.numel():
        for value in SPECIALS[special] * count:
            place = tuple(int(torch.randint(n, ())) for n in values.shape)
            values[place] = value
    return values


Run = Callable[[Callable[[Tensor | None], Tensor | None]], list[Tensor | None]]


def judge(ours: Run, theirs: Run, equal: bool, what: str = "", roundings: int = 1) -> None:
    """Run both, and torch's in float64 too, on what they make of their inputs, and compare.

    Each is given a function to put its tensors through: in its own dtype, or wide.
    """
    try:
        wanted = theirs(lambda t: t)
    except ERRORS:
        try:
            ours(lambda t: t)
        except ERRORS:
            return
        raise AssertionError(f"{what}: torch refuses this, and we do not") from None
    found = ours(lambda t: t)
    exact = wanted if equal else theirs(wide)
    assert len(found) == len(wanted)
    for i, (a, b, c) in enumerate(zip(found, wanted, exact)):
        name = f"{what} result {i}"
        assert (a is None) == (b is None), name
        if a is None or b is None or c is None:
            continue
        assert a.shape == b.shape, f"{name}: {a.shape}, torch gives {b.shape}"
        assert a.dtype == b.dtype, f"{name}: {a.dtype}, torch gives {b.dtype}"
        # torch's bfloat16 products on a CPU (oneDNN) let a NaN leak into the row before it: where torch is at
        # odds with itself in float64, that is right too.
        right = _kinds(a) == _kinds(b)
        right |= (_kinds(a) == _kinds(c.to(a.dtype))) & (not equal)
        if not right.all():
            at = tuple((~right).nonzero()[0].tolist())
            raise AssertionError(f"{name}: {a[at]} at {at}, torch gives {b[at]}, in float64 {c[at]}")
        if equal:
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)), f"{name}: other bits"
            continue
        usual = a.isfinite() & b.isfinite() & c.isfinite()
        # Of float64 nothing is wider: torch's error against itself is 0.
        more = 8 if a.dtype == torch.float64 else 1
        assert_as_good_as_torch(a[usual], b[usual], c[usual], name, more * roundings)


def wide(value: Tensor | None) -> Tensor | None:
    """In float64, a leaf again."""
    if value is None or not value.is_floating_point():
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


def _kinds(t: Tensor) -> Tensor:
    """0 for a number, 1 for NaN, 2 and 3 for the infinities."""
    return t.isnan() * 1 + t.isposinf() * 2 + t.isneginf() * 3
