"""The inputs of torch's ModuleInfo database, and what its module tests check."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import fastmlp
from tests.compatibility.compare import same
from tests.compatibility.database import check, mixed, module_info

GROUP = "torch's own test inputs"
pytestmark = pytest.mark.usefixtures("ways_of_auto")
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
#: Of some hundred inputs of a module each dtype takes its share; where each kernel is interpreted so many.
SHARES, FEW = len(DTYPES), 8


class Case(NamedTuple):
    """A module of torch's database, and how ours and torch's are made of its constructor's input."""

    name: str
    ours: Callable[..., nn.Module]
    torchs: Callable[..., nn.Module]
    columns: bool = False  # each number of the input is a row of its own


def activation(kind: type[nn.Module]) -> Case:
    """After a linear layer that changes nothing."""

    def inside(sequential: type[nn.Sequential]) -> Callable[..., nn.Module]:
        def make(*args: Any, **kwargs: Any) -> nn.Module:
            layer = nn.Linear(1, 1, bias=False)
            nn.init.ones_(layer.weight)
            return sequential(layer, kind(*args, **kwargs))

        return make

    return Case(f"nn.{kind.__name__}", inside(fastmlp.Sequential), inside(nn.Sequential), True)


def sequential(*args: Any, **kwargs: Any) -> nn.Module:
    return fastmlp.Sequential(nn.Linear(*args, **kwargs))


def linear_act(*args: Any, **kwargs: Any) -> nn.Module:
    return fastmlp.LinearAct(*args, **kwargs, activation=None)


CASES = {
    "Linear as LinearAct": Case("nn.Linear", linear_act, nn.Linear),
    "Linear in a Sequential": Case(
        "nn.Linear", sequential, lambda *a, **k: nn.Sequential(nn.Linear(*a, **k))
    ),
    "CrossEntropyLoss": Case("nn.CrossEntropyLoss", fastmlp.CrossEntropyLoss, nn.CrossEntropyLoss),
    "MSELoss": Case("nn.MSELoss", fastmlp.MSELoss, nn.MSELoss),
    "LinearCrossEntropyLoss": Case(
        "nn.LinearCrossEntropyLoss",
        fastmlp.LinearCrossEntropyLoss,
        getattr(nn, "LinearCrossEntropyLoss", nn.Module),
    ),
    **{kind.__name__: activation(kind) for kind in ACTIVATIONS},
}
backends = pytest.mark.parametrize("backend", ["torch", "triton", "auto"], indirect=True)


def marked(text: str, names: Any = CASES, **of: str) -> Any:
    return pytest.mark.parametrize(
        "case",
        [pytest.param(CASES[n], id=n, marks=pytest.mark.feature(GROUP, text.format(n), **of)) for n in names],
    )


class Sample(NamedTuple):
    ours: nn.Module
    torchs: nn.Module
    inputs: tuple[Tensor, ...]
    what: str

    def state(self) -> dict[str, Tensor]:
        return {**dict(self.torchs.named_parameters()), **dict(self.torchs.named_buffers())}


def samples(
    case: Case, device: str, dtype: torch.dtype, training: bool = True, share: tuple[int, int] = (0, 1)
) -> list[Sample]:
    """Both modules with the same state, and what they are called with."""
    info = module_info(case.name)
    made = info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=True, training=training)
    found = []
    for sample in mixed(made)[share[0] :: share[1]]:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        ours, torchs = (make(*args, **kwargs).to(device, dtype) for make in (case.ours, case.torchs))
        assert repr(ours).split("(")[1:] == repr(torchs).split("(")[1:] or case.ours is linear_act
        ours.load_state_dict(torchs.state_dict())
        ours.train(training)
        torchs.train(training)
        inputs = (*sample.forward_input.args, *sample.forward_input.kwargs.values())
        inputs = tuple(x.unsqueeze(-1) for x in inputs) if case.columns else inputs
        inputs = tuple(x.detach().requires_grad_(x.requires_grad) for x in inputs)
        found.append(Sample(ours, torchs, inputs, f"{sample.desc} {torchs}"))
    return found


def called(module: nn.Module) -> Callable[..., Tensor]:
    """The module as a function of its tensors too, so that their gradients are seen."""
    return lambda state, *inputs: functional_call(module, state, inputs)


@pytest.mark.few(6)
@backends
@marked("ModuleInfo: {}")
def test_forward_and_gradients(case: Case, backend: str, dtype: torch.dtype, device: str) -> None:
    many = "Loss" in case.name
    share = (DTYPES.index(dtype), SHARES) if many else (0, 1)
    found = samples(case, device, dtype, True, share)
    if backend == "triton" and device == "cpu":
        found = found[:FEW]
    for s in found:
        check(called(s.ours), called(s.torchs), (s.state(), *s.inputs), {}, backend, s.what)


@pytest.mark.parametrize("name", ["nn.CrossEntropyLoss", "nn.LinearCrossEntropyLoss", "nn.Linear"])
@pytest.mark.feature(GROUP, "ModuleInfo: reference functions of the losses and Linear")
@pytest.mark.parametrize("dtype", ["float32", "float64"], indirect=True)
def test_reference(name: str, backend: str, dtype: torch.dtype, device: str) -> None:
    """torch's own, in plain Python."""
    info = module_info(name)
    made = info.module_inputs_func(info, device=device, dtype=dtype, requires_grad=False, training=True)
    case = next(c for c in CASES.values() if c.name == name)
    for sample in mixed(made)[:12]:
        module = case.ours(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        module.to(device, dtype)
        args = (*sample.forward_input.args, *sample.forward_input.kwargs.values())
        expected = sample.reference_fn(module, *args)
        torch.testing.assert_close(module(*args), expected.to(dtype), msg=lambda m: f"{sample.desc}: {m}")  # noqa: B023


@pytest.mark.few(6)
@backends
@marked("ModuleInfo: {}", dtype="float32")
def test_life(case: Case, backend: str, device: str) -> None:
    """Strided inputs, evaluation, no_grad, pickle, another dtype and back; and twice the same."""
    for training in (True, False):
        found = samples(case, device, torch.float32, training)
        for s in found[:3]:
            strided = tuple(x.detach().repeat_interleave(2, -1)[..., ::2] if x.dim() else x for x in s.inputs)
            strided = tuple(x.requires_grad_(y.requires_grad) for x, y in zip(strided, s.inputs))
            check(called(s.ours), called(s.torchs), (s.state(), *strided), {}, backend, f"strided, {s.what}")
            with torch.no_grad():
                check(called(s.ours), called(s.torchs), (s.state(), *s.inputs), {}, backend, s.what)
            before = s.ours(*s.inputs)
            again = pickle.loads(pickle.dumps(s.ours))
            assert same(again(*s.inputs), before), s.what
            assert again.training == training
            assert list(s.ours.state_dict()) == list(s.torchs.state_dict())
            wide = tuple(x.detach().double() if x.is_floating_point() else x for x in s.inputs)
            again.double()
            assert backend == "auto" or same(again(*wide), s.torchs.double()(*wide)), s.what
            assert same(again.float()(*s.inputs), before), s.what


@backends
@marked("ModuleInfo: errors", ["CrossEntropyLoss", "LinearCrossEntropyLoss"], dtype="float32")
def test_errors(case: Case, backend: str, device: str) -> None:
    info = module_info(case.name)
    if info.module_error_inputs_func is None:
        pytest.skip(f"torch {torch.__version__} has no errors of {case.name}")
    errors = info.module_error_inputs_func(
        info, device=device, dtype=torch.float32, requires_grad=False, training=True
    )
    for error in errors:
        made, called_with = error.module_error_input.constructor_input, error.module_error_input.forward_input
        if error.error_on.name == "CONSTRUCTION_ERROR":
            with pytest.raises(error.error_type):
                case.ours(*made.args, **made.kwargs)
            continue
        module = case.ours(*made.args, **made.kwargs)
        with pytest.raises(error.error_type):
            module(*called_with.args, **called_with.kwargs)
