"""Whether two sides did the same: both raised, or what they gave agrees by the rule of tests/numerics.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.numerics import error

#: What says that something cannot be done. Another type, of ours alone, is a fault in the code.
ERRORS = (ValueError, TypeError, RuntimeError, IndexError)
_ROUNDINGS = 16  # some layers, forward and backward and once more


class Outcome(NamedTuple):
    """What came of a run: facts and tensors by name, or an error."""

    found: dict[str, Any]
    error: Exception | None

    @property
    def said(self) -> str:
        return "nothing" if self.error is None else f"{type(self.error).__name__}: {str(self.error)[:300]}"


def outcome(run: Callable[[], dict[str, Any]]) -> Outcome:
    """Run it."""
    try:
        return Outcome(run(), None)
    except Exception as error:
        return Outcome({}, error)


def same(ours: Outcome, torchs: Outcome) -> bool:
    """Whether they gave the very same: then nobody needs float64."""
    if ours.error is not None or torchs.error is not None or list(ours.found) != list(torchs.found):
        return False
    pairs = zip(ours.found.values(), torchs.found.values())
    return all(_identical(a, b) if isinstance(b, Tensor) else a == b for a, b in pairs)


def _identical(a: Any, b: Tensor) -> bool:
    return type(a) is type(b) and _kind(a) == _kind(b) and (b.is_meta or torch.equal(a, b))


def _kind(t: Tensor) -> tuple[Any, ...]:
    return tuple(t.shape), t.dtype, t.device.type


def compare(ours: Outcome, torchs: Outcome, exact: Outcome, dtype: torch.dtype, what: str) -> None:
    """Raise an AssertionError where they differ by more than roundings of ``dtype``."""
    if torchs.error is not None:
        assert ours.error is not None, f"{what}: torch raises {torchs.said}, and we do not"
        same = type(ours.error) is type(torchs.error)
        assert same or isinstance(ours.error, ERRORS), f"{what}: {ours.said}; torch: {torchs.said}"
        return
    if ours.error is not None:
        raise AssertionError(f"{what}: we raise {ours.said}, and torch does not") from ours.error
    alone = set(ours.found) ^ set(torchs.found)
    whose = "ours" if alone & set(ours.found) else "torch's"
    assert not alone, f"{what}: {', '.join(sorted(alone))}: {whose} alone"
    numbers = [t for t in torchs.found.values() if isinstance(t, Tensor) and t.is_floating_point()]
    scale = max((_largest(t) for t in numbers), default=0.0)
    for name, b in torchs.found.items():
        a = ours.found[name]
        if isinstance(b, Tensor):
            c = exact.found.get(name) if exact.error is None else None
            _same(a, b, c if isinstance(c, Tensor) else b, f"{what}: {name}", dtype, scale)
        else:
            assert a == b, f"{what}: {name} is {a}, torch's {b}"


def _largest(t: Tensor) -> float:
    t = t.detach().as_subclass(Tensor)
    return t.abs().nan_to_num(0.0, 0.0).max().item() if t.numel() else 0.0


def _same(a: Any, b: Tensor, c: Tensor, name: str, dtype: torch.dtype, scale: float) -> None:
    assert isinstance(a, Tensor), f"{name}: {a!r}, torch gives a tensor"
    assert type(a) is type(b), f"{name}: {type(a).__name__}, torch gives {type(b).__name__}"
    assert _kind(a) == _kind(b), f"{name}: {_kind(a)}, torch gives {_kind(b)}"
    if b.is_meta:
        return
    if not b.is_floating_point():
        assert torch.equal(a, b), f"{name}: {a}, torch gives {b}"
        return
    a, b, c = (t.detach().as_subclass(Tensor).double() for t in (a, b, c))
    finite = [t.nan_to_num(7e300) for t in (a, b, c)]
    odd = (~a.isfinite() | ~b.isfinite()) & (finite[0] != finite[1]) & (finite[0] != finite[2])
    assert not odd.any(), f"{name}: {a[odd][:3].tolist()}, torch gives {b[odd][:3].tolist()}"
    usual = a.isfinite() & b.isfinite() & c.isfinite()
    a, b, c = a[usual], b[usual], c[usual]
    if not a.numel():
        return
    step = _ROUNDINGS * torch.finfo(dtype).eps
    mine = error(a, c)
    # Of sums that cancel no digit is right: they are measured by the largest number around.
    if mine <= 2 * error(b, c) + step or (a - c).abs().max().item() <= step * scale:
        return
    at = int((a - c).abs().argmax())
    raise AssertionError(
        f"{name}: error {mine:.3e}, e.g. {a[at]:.6g}, torch gives {b[at]:.6g}, exact {c[at]:.6g}"
    )
