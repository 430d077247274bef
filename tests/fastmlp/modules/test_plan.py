"""Which children are fused."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrizations

import fastmlp
from fastmlp.modules.plan import plan


def names(*children: nn.Module) -> list[str]:
    """Each stage: the activations of a chain, or the module's type."""
    stages = plan(children, (nn.Sequential, fastmlp.Sequential))
    return [
        "+".join(layer.act.name for layer in stage) if isinstance(stage, list) else type(stage).__name__
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
    assert names(*layers) == ["relu", "Dropout", "none"]
    layers[2].eval()
    assert names(*layers) == ["relu+none"]
    assert names(nn.Linear(4, 3), nn.Dropout(0.0), nn.ReLU()) == ["relu"]


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
