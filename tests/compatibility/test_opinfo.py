"""The samples of torch's OpInfo database: results, gradients, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastmlp
from fastmlp import functional
from tests.compatibility.database import check, describe, few, op_info, op_samples

GROUP = "torch's own test inputs"
pytestmark = pytest.mark.usefixtures("ways_of_auto")
#: The activations of the table: torch's name, its op's, its module's.
ACTIVATIONS = {
    "relu": ("nn.functional.relu", nn.ReLU),
    "leaky_relu": ("nn.functional.leaky_relu", nn.LeakyReLU),
    "prelu": ("nn.functional.prelu", nn.PReLU),
    "sigmoid": ("sigmoid", nn.Sigmoid),
    "tanh": ("tanh", nn.Tanh),
    "gelu": ("nn.functional.gelu", nn.GELU),
    "silu": ("nn.functional.silu", nn.SiLU),
}


class Case:
    """An op of torch's database, and the two functions that its samples go through."""

    def __init__(self, name: str, variant: str, ours: Callable[..., Tensor], torchs: Callable[..., Tensor]):
        self.name, self.variant, self.ours, self.torchs = name, variant, ours, torchs


def features(x: Tensor, args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """An input and a weight whose product is x: each number a row of its own, for 0 * inf is NaN.

    But where a PReLU has a slope a feature, these are x's.
    """
    slopes = args[0] if args else kwargs.get("weight")
    if x.dim() == 2 and isinstance(slopes, Tensor) and slopes.numel() > 1:
        return x, torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return x.unsqueeze(-1), x.new_ones(1, 1)


def module_of(kind: type[nn.Module], args: Any, kwargs: Any) -> nn.Module:
    """The activation of a sample's other arguments; a PReLU's slopes are the very tensor, of any shape."""
    if kind is not nn.PReLU:
        return kind(*args, **kwargs)
    module = nn.PReLU()
    del module.weight
    module.weight = args[0] if args else kwargs["weight"]
    return module


def activation(name: str, variant: str = "") -> Case:
    """After a linear layer that changes nothing."""
    op, kind = ACTIVATIONS[name]
    function = getattr(F, name)

    def ours(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return functional.linear_act(*features(x, args, kwargs), None, module_of(kind, args, kwargs))

    def torchs(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return function(F.linear(*features(x, args, kwargs)), *args, **kwargs)

    return Case(op, variant, ours, torchs)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear_act(input, weight, bias, activation=None)


def _fused_loss() -> list[Case]:
    torchs = getattr(F, "linear_cross_entropy", None)
    name, ours = "nn.functional.linear_cross_entropy", functional.linear_cross_entropy
    return [Case(name, variant, ours, torchs) for variant in ("", "chunked", "chunked_none")]


FLOATING = {
    "linear": Case("nn.functional.linear", "", linear, F.linear),
    "cross_entropy": Case("nn.functional.cross_entropy", "", functional.cross_entropy, F.cross_entropy),
    "mse_loss": Case("nn.functional.mse_loss", "", functional.mse_loss, F.mse_loss),
    **{f"linear_cross_entropy {case.variant}".strip(): case for case in _fused_loss()},
    **{name: activation(name) for name in ACTIVATIONS},
}
OTHERS = {
    "linear": FLOATING["linear"],
    "relu": FLOATING["relu"],
    "sigmoid": FLOATING["sigmoid"],
    "tanh": FLOATING["tanh"],
    "silu": activation("silu", "complex"),
}


def marked(cases: dict[str, Case], text: str, **of: str) -> list[Any]:
    return [
        pytest.param(case, id=name, marks=pytest.mark.feature(GROUP, text.format(name), **of))
        for name, case in cases.items()
    ]


backends = pytest.mark.parametrize("backend", ["torch", "triton", "auto"], indirect=True)


@pytest.mark.few(13)
@backends
@pytest.mark.parametrize("case", marked(FLOATING, "OpInfo: {}"))
def test_floating(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    samples = op_samples(case.name, case.variant, dtype, device)
    for s in few(samples) if backend == "triton" and device == "cpu" else samples:
        check(case.ours, case.torchs, (s.input, *s.args), s.kwargs, backend, describe(s))
        if backend == "auto" and "cross_entropy" not in case.name:
            with torch.no_grad():
                check(case.ours, case.torchs, (s.input, *s.args), s.kwargs, backend, describe(s))


@pytest.mark.few(2)
@pytest.mark.parametrize("case", marked(OTHERS, "OpInfo: integers and complex numbers"))
def test_other_dtypes(case: Case, backend: str, device: str) -> None:
    """What is no floating dtype goes to torch's own op, which takes or refuses it."""
    kinds = op_info(case.name, case.variant).supported_dtypes(torch.device(device).type)
    others = sorted((k for k in kinds if not k.is_floating_point), key=str)
    assert others
    for kind in others:
        for s in op_samples(case.name, case.variant, kind, device):
            check(case.ours, case.torchs, (s.input, *s.args), s.kwargs, "torch", describe(s))


def with_errors() -> dict[str, Case]:
    names = ["linear_cross_entropy", "linear_cross_entropy chunked", "linear_cross_entropy chunked_none"]
    return {name: FLOATING[name] for name in [*names, "prelu", "gelu"]}


@backends
@pytest.mark.parametrize("case", marked(with_errors(), "OpInfo: errors", dtype="float32"))
def test_errors(case: Case, backend: str, device: str) -> None:
    """An activation stands in a Sequential, where a mistake is torch's own error."""
    kind = {op: module for op, module in ACTIVATIONS.values()}.get(case.name)
    errors = list(op_info(case.name, case.variant).error_inputs(device))
    assert errors

    def sequential(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = x.reshape(1, 1) if x.dim() == 0 else x
        layer = nn.Linear(x.shape[-1], x.shape[-1], device=device)
        return fastmlp.Sequential(layer, module_of(kind, args, kwargs))(x)

    for error in errors:
        s = error.sample_input
        if s.input.dim() == 0 and kind is nn.PReLU:
            continue  # no linear layer gives a scalar
        with pytest.raises(error.error_type):
            (sequential if kind else case.ours)(s.input, *s.args, **s.kwargs)
