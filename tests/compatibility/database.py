"""The inputs that torch tests its own ops and modules with, and how one goes through two functions."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from tests.compatibility.compare import same_or_as_good

#: Larger inputs prove nothing more of these ops, and take their time.
MOST_ELEMENTS = 1 << 14
#: The same where each kernel is interpreted, at some milliseconds a launch whatever it computes.
MOST_INTERPRETED = 100
MOST_KINDS = 6
#: What float64 is to a dtype.
_WIDE = {False: torch.float64, True: torch.complex128}


@cache
def _databases() -> tuple[dict[tuple[str, str], Any], dict[str, Any]]:
    """Imported here, since that takes seconds and most workers never ask."""
    pytest.importorskip("expecttest")  # which torch.testing._internal imports
    # It would freeze the flags of torch.backends for the whole process, and other tests set them.
    with mock.patch.object(torch.backends, "disable_global_flags"):
        from torch.testing._internal.common_methods_invocations import op_db
        from torch.testing._internal.common_modules import module_db

    return {(op.name, op.variant_test_name): op for op in op_db}, {m.name: m for m in module_db}


def op_info(name: str, variant: str = "") -> Any:
    """torch's entry for an op; the test skips where this torch has none."""
    found = _databases()[0].get((name, variant))
    return found if found is not None else pytest.skip(f"torch {torch.__version__} has no {name} {variant}")


def module_info(name: str) -> Any:
    """torch's entry for a module."""
    found = _databases()[1].get(name)
    return found if found is not None else pytest.skip(f"torch {torch.__version__} has no {name}")


def mixed(samples: list[Any]) -> list[Any]:
    """In another order, the same always: torch's are of nested loops, of which a stride may miss some."""
    return random.Random(0).sample(samples, len(samples))


@cache
def op_samples(name: str, variant: str, dtype: torch.dtype, device: str) -> list[Any]:
    """Of torch's samples and the further ones of its reference tests one a kind, of bounded size.

    Of what is no floating dtype the samples alone. Kept, for the large ones take their time to make.
    """
    info = op_info(name, variant)
    kind = torch.device(device).type
    if dtype not in info.supported_dtypes(kind):
        pytest.skip(f"torch {torch.__version__} has no {name} in {dtype}")
    grad = dtype in info.supported_backward_dtypes(kind)
    samples = info.sample_inputs(device, dtype, requires_grad=grad)
    if info.reference_inputs_func is not None and dtype.is_floating_point:
        samples = chain(samples, info.reference_inputs(device, dtype, requires_grad=grad))
    small = (s for s in samples if s.input.numel() <= MOST_ELEMENTS)
    return list({f"{describe(s)} {s.input.stride()}": s for s in small}.values())


def few(samples: list[Any]) -> list[Any]:
    """Of small samples not many, but all with extreme values."""
    small = [s for s in samples if s.input.numel() <= MOST_INTERPRETED]
    extreme = [not bool((s.input.abs() < 1e4).all()) for s in small]
    others = [s for s, odd in zip(small, extreme) if not odd]
    return [s for s, odd in zip(small, extreme) if odd] + mixed(others)[:MOST_KINDS]


def fresh(tree: Any, exactly: bool = False) -> Any:
    """The same arguments as leaves of their own, in float64 if asked."""

    def leaf(t: Tensor) -> Tensor:
        wide = exactly and (t.is_floating_point() or t.is_complex())
        copy = t.detach().to(_WIDE[t.is_complex()]) if wide else t.detach()
        return copy.requires_grad_(t.requires_grad)

    return tree_map_only(Tensor, leaf, tree)


def outcome(
    function: Callable[..., Any], args: Any, kwargs: Any, upstream: torch.dtype
) -> list[Tensor | None] | type[Exception]:
    """The result and the gradient of every tensor that wants one; or the error's type.

    The upstream gradient is no constant, and of numbers that ``upstream`` holds.
    """
    leaves = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor) and t.requires_grad]
    try:
        value = function(*args, **kwargs)
    except Exception as error:
        return type(error)
    if not value.requires_grad:
        return [value]
    grad = torch.linspace(0.5, 1.5, value.numel(), device=value.device).reshape(value.shape)
    grads = torch.autograd.grad(value, leaves, grad.to(upstream).to(value.dtype), allow_unused=True)
    return [value.detach(), *grads]


def check(
    ours: Callable[..., Any],
    torchs: Callable[..., Any],
    args: Any,
    kwargs: Any,
    backend: str,
    what: str,
    roundings: int = 2,
) -> None:
    """Ours gives torch's result and gradients, or raises an error of the type of torch's."""
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    dtype = next((t.dtype for t in tensors if t.is_floating_point() or t.is_complex()), torch.float32)
    expected = outcome(torchs, *fresh((args, kwargs)), dtype)
    found = outcome(ours, *fresh((args, kwargs)), dtype)
    if isinstance(expected, type) or isinstance(found, type):
        errors = [run if isinstance(run, type) else "a result" for run in (found, expected)]
        assert found is expected, f"{what}: {errors[0]}, torch gives {errors[1]}"
        return
    assert [g is None for g in found] == [g is None for g in expected], f"{what}: which gradients there are"
    exact = expected  # in float64, where it is rounded as ours is
    roundings *= 2 if dtype == torch.float64 else 1
    if backend != "torch" and dtype in (torch.float16, torch.bfloat16, torch.float32):
        plain = {k: v for k, v in kwargs.items() if k != "options"}  # of chunks, whose sums may be float32
        exact = outcome(torchs, *fresh((args, plain), exactly=True), dtype)  # type: ignore[assignment]
    some = [[t for t in run if t is not None] for run in (found, expected, exact)]
    same_or_as_good(*some, backend, what, roundings)


def describe(sample: Any) -> str:
    """A sample's shapes and numbers, to find it by."""

    def short(t: Tensor) -> str:
        return f"{t.dtype}{tuple(t.shape)}".removeprefix("torch.")

    return f"{tree_map_only(Tensor, short, (sample.input, *sample.args, sample.kwargs))}"
