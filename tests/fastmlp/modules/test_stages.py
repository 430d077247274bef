"""Which children are fused."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastmlp
from fastmlp.functional.layer import Layers
from fastmlp.modules.stages import stages_of


def names(*children: nn.Module) -> list[str]:
    """Each stage: the activations of a chain with their dropouts, or the module's type."""
    stages = stages_of(children, (nn.Sequential, fastmlp.Sequential))
    return [
        "+".join(f"{layer.act.name} {layer.dropout or ''}".strip() for layer in stage)
        if isinstance(stage, Layers)
        else type(stage).__name__
        for stage in stages
    ]


def test_runs_of_linear_and_activation_become_chains() -> None:
    assert names(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)) == ["Flatten", "relu+none"]
    assert names(nn.Linear(4, 3), nn.Linear(3, 2), nn.GELU("tanh")) == ["none+gelu_tanh"]
    assert names(nn.ReLU(), nn.Linear(4, 3), nn.Tanh(), nn.Tanh()) == ["ReLU", "tanh", "Tanh"]
    assert names(nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU()) == ["none", "LayerNorm", "ReLU"]
    assert names() == []


def test_identities_do_not_break_a_chain() -> None:
    layers = nn.Linear(4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Identity(), nn.Linear(3, 2)
    assert names(*layers) == ["relu 0.5+none"]
    layers[2].eval()
    assert names(*layers) == ["relu+none"]
    assert names(nn.Linear(4, 3), nn.Dropout(0.0), nn.ReLU()) == ["relu"]


def test_a_dropout_belongs_to_the_layer_before() -> None:
    """After the activation or without one; an activation after it, a second one and one of 1 do not."""
    assert names(nn.Linear(4, 3), nn.Dropout(0.2, inplace=True), nn.Linear(3, 2)) == ["none 0.2+none"]
    assert names(nn.Linear(4, 3), nn.Dropout(0.2), nn.GELU()) == ["none 0.2", "GELU"]
    assert names(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.2), nn.Dropout(0.1)) == ["tanh 0.2", "Dropout"]
    assert names(nn.Linear(4, 3), nn.Dropout(1.0), nn.Linear(3, 2)) == ["none", "Dropout", "none"]
    assert names(nn.Dropout(0.2), nn.Linear(4, 3), nn.AlphaDropout(0.2)) == [
        "Dropout",
        "none",
        "AlphaDropout",
    ]
    hooked = nn.Dropout(0.2)
    hooked.register_forward_hook(lambda *_: None)
    assert names(nn.Linear(4, 3), hooked) == ["none", "Dropout"]
    assert names(*fastmlp.MLP(4, [3, 2], dropout=0.3)) == ["relu 0.3+none 0.3"]


def test_nested_sequentials_are_opened() -> None:
    inner = nn.Sequential(nn.Tanh(), fastmlp.Sequential(nn.Linear(3, 2)))
    assert names(nn.Linear(4, 3), inner) == ["tanh+none"]
    inner.register_forward_hook(lambda m, i, o: None)
    assert names(nn.Linear(4, 3), inner) == ["none", "Sequential"]
    assert names(fastmlp.MLP(4, [3])) == ["MLP"]


def test_what_is_not_untouched_runs_as_itself() -> None:
    class Odd(nn.Linear):
        pass

    hooked = nn.Linear(4, 3)
    hooked.register_full_backward_hook(lambda m, gi, go: None)
    replaced = nn.ReLU()
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    assert names(hooked, nn.ReLU()) == ["Linear", "ReLU"]
    assert names(Odd(4, 3)) == ["Odd"]
    assert names(nn.Linear(4, 3), replaced) == ["none", "ReLU"]
    assert names(parametrizations.weight_norm(nn.Linear(4, 3))) == ["ParametrizedLinear"]
    assert names(nn.Linear(4, 3), nn.PReLU(3)) == ["prelu"]
    assert names(nn.Linear(4, 3), nn.PReLU(5)) == ["none", "PReLU"]


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_a_hook_counts_from_its_registration_to_its_removal(register: str) -> None:
    """On each kind of child, the ones that are left out included."""
    layers = nn.Linear(4, 3), nn.Identity(), nn.ReLU(), nn.Linear(3, 2)
    expected = [
        ["Linear", "ReLU", "none"],
        ["none", "Identity", "ReLU", "none"],
        ["none", "ReLU", "none"],
        ["relu", "Linear"],
    ]
    for layer, stages in zip(layers, expected):
        handle = getattr(layer, register)(lambda *_: None)
        assert names(*layers) == stages
        handle.remove()
        assert names(*layers) == ["relu+none"]


def test_weight_and_spectral_norm_of_either_kind_run_as_themselves() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old kind is deprecated
        olds = nn.utils.weight_norm(nn.Linear(4, 3)), nn.utils.spectral_norm(nn.Linear(4, 3))
    for old in olds:
        assert names(old, nn.ReLU()) == ["Linear", "ReLU"]
    assert names(parametrizations.spectral_norm(nn.Linear(4, 3))) == ["ParametrizedLinear"]
    assert names(nn.LazyLinear(3), nn.ReLU()) == ["LazyLinear", "ReLU"]


def test_parameters_that_are_none_run_as_themselves() -> None:
    """A weight or bias that is an attribute, a buffer or of a tensor type of its own."""

    class Quantized(torch.Tensor):
        pass

    odd = nn.Linear(4, 3)
    odd.weight = nn.Parameter(torch.randn(3, 4).as_subclass(Quantized))
    attribute, buffer = nn.Linear(4, 3), nn.Linear(4, 3)
    del attribute.bias, buffer.weight
    attribute.bias = torch.ones(3)
    buffer.register_buffer("weight", torch.ones(3, 4))
    slopes = nn.PReLU(3)
    slopes.weight = nn.Parameter(torch.randn(3).as_subclass(Quantized))
    for layer in (odd, attribute, buffer):
        assert names(layer, nn.ReLU()) == ["Linear", "ReLU"]
    assert names(nn.Linear(4, 3), slopes) == ["none", "PReLU"]
    assert names(nn.Linear(4, 3, bias=False), nn.ReLU()) == ["relu"]


def test_a_compiled_child_runs_as_itself() -> None:
    layer = nn.Linear(4, 3)
    layer.compile(backend="eager")
    assert names(layer, nn.ReLU()) == ["Linear", "ReLU"]
