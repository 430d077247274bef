"""LinearCrossEntropyLoss: torch's signature, state and results, on every torch."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastmlp
from fastmlp.modules.linear_cross_entropy import _LinearCrossEntropyLoss

TORCHS: Any = getattr(nn, "LinearCrossEntropyLoss", None)
needs_torchs = pytest.mark.skipif(TORCHS is None, reason="this torch has no LinearCrossEntropyLoss")


@needs_torchs
@pytest.mark.parametrize("module", [fastmlp.LinearCrossEntropyLoss, _LinearCrossEntropyLoss])
def test_signature_is_torchs(module: Any) -> None:
    """The class' own, and that of its base on an older torch."""
    theirs, found = (list(inspect.signature(m).parameters.values()) for m in (TORCHS, module))
    if module is fastmlp.LinearCrossEntropyLoss:
        assert found.pop().name == "workspace"
    assert [(p.name, p.default, p.kind) for p in found] == [(p.name, p.default, p.kind) for p in theirs]


@needs_torchs
@pytest.mark.parametrize("bias", [False, True])
def test_state_is_torchs(bias: bool) -> None:
    kwargs: dict[str, Any] = {"bias": bias, "out_features": (2,), "weight": torch.rand(5)}
    theirs = TORCHS(3, 5, **kwargs)
    for module in (fastmlp.LinearCrossEntropyLoss(3, 5, **kwargs), _LinearCrossEntropyLoss(3, 5, **kwargs)):
        module.load_state_dict(theirs.state_dict())
        assert list(module.state_dict()) == list(theirs.state_dict())
    assert isinstance(fastmlp.LinearCrossEntropyLoss(3, 5), TORCHS)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("out_features", [(), (2, 3)], ids=str)
def test_forward(reduction: str, out_features: tuple[int, ...]) -> None:
    """Gradients reach linear.weight and linear.bias; a copy by pickle is the same."""
    torch.manual_seed(0)
    loss = fastmlp.LinearCrossEntropyLoss(
        4, 300, out_features=out_features, bias=True, reduction=reduction, ignore_index=3, workspace=1 << 20
    )
    loss = pickle.loads(pickle.dumps(loss))
    assert loss.workspace == 1 << 20
    x, target = torch.randn(7, 4), torch.randint(300, (7, *out_features))
    logits = loss.linear(x).view(7, 300, *out_features)
    expected = F.cross_entropy(logits, target, reduction=reduction, ignore_index=3)
    for backend in ("triton", "auto"):
        with fastmlp.backends.use(backend):
            found = loss(x, target)
        torch.testing.assert_close(found, expected)
        parameters = (loss.linear.weight, loss.linear.bias)
        wanted = torch.autograd.grad(expected.sum(), parameters, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), parameters), wanted)


@pytest.mark.parametrize("module", [fastmlp.LinearCrossEntropyLoss, _LinearCrossEntropyLoss])
def test_bad_arguments(module: Any) -> None:
    with pytest.raises(RuntimeError, match="weight"):
        module(3, 5, weight=torch.ones(4))
    with pytest.raises(RuntimeError, match="label_smoothing"):
        module(3, 5, label_smoothing=2)


def test_options_of_an_older_torch() -> None:
    with pytest.raises(TypeError, match="options"):
        _LinearCrossEntropyLoss(3, 5, options=object())
    assert "num_classes=5" in repr(_LinearCrossEntropyLoss(3, 5))
