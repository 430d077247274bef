"""CUDA graphs of a module: the checks, with a stand-in for torch's part; and that a step waits for no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastmlp
from fastmlp import backends
from fastmlp.kernels import launch

OURS = sys.modules["fastmlp.modules.graphed"]  # whose name in the package is the function
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class StandIn:
    """torch.cuda.make_graphed_callables as far as it can be without a GPU: it runs what it is given."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def __call__(self, module: Any, sample: tuple[Tensor, ...], **options: Any) -> Any:
        self.options = options
        for _ in range(options["num_warmup_iters"]):
            module(*sample)
        if not isinstance(module, nn.Module):
            return module
        forward, mode = module.forward, module.training
        # The graph's output is told from the module's own by its sign.
        module.forward = lambda *inputs: -forward(*inputs) if module.training == mode else forward(*inputs)
        return module


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: fork([]))
    monkeypatch.setattr(OURS, "_device_of", lambda module, sample: sample[0].device)
    return made


def net() -> fastmlp.Sequential:
    return fastmlp.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))


def test_a_module_is_its_graph_in_the_mode_it_was_in(stand_in: StandIn) -> None:
    module, x = net(), torch.randn(4, 6)
    before, state = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    assert fastmlp.graphed(module, x, num_warmup_iters=11, allow_unused_input=True) is module
    assert stand_in.options == {"num_warmup_iters": 11, "allow_unused_input": True}
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn for the warm-up
    module.eval()
    other = torch.randn(7, 6)
    own = module(other)  # of any shape: no graph
    del module.forward
    assert torch.equal(module(other), own)
    module = fastmlp.graphed(module, x)  # in eval
    assert torch.equal(module(x), -type(module).forward(module, x))


def test_a_function_is_one_too(stand_in: StandIn) -> None:
    made = fastmlp.graphed(lambda x, y: x * y, torch.ones(3, requires_grad=True), torch.ones(3))
    assert torch.equal(made(torch.full((3,), 2.0), torch.full((3,), 3.0)), torch.full((3,), 6.0))
    with pytest.raises(ValueError, match=r"input 1: expected \(3,\) torch.float32 on cpu, as the sample"):
        made(torch.ones(3), torch.ones(1))  # which a copy would spread


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.ones(1, 6),), r"input 0: expected \(4, 6\) .* got \(1, 6\)"),
        ((torch.ones(4, 6).double(),), "got .* torch.float64"),
        ((torch.ones(4, 6, device="meta"),), "on meta"),
        ((torch.ones(4, 6, requires_grad=True),), "requires a gradient, which the sample did not"),
        ((), "inputs: expected 1, as the sample, got 0"),
    ],
)
def test_a_call_is_as_the_sample(inputs: tuple[Tensor, ...], message: str, stand_in: StandIn) -> None:
    made = fastmlp.graphed(net(), torch.ones(4, 6))
    with pytest.raises(ValueError, match=message):
        made(*inputs)
    with torch.no_grad():
        made(torch.ones(4, 6, requires_grad=True))  # which asks for none here


def hooked(register: str) -> nn.Module:
    module = net()
    getattr(module, register)(lambda *given: None)
    return module


def buffered() -> nn.Module:
    module = net()
    module.register_buffer("extra", torch.ones(1, requires_grad=True))
    return module


@pytest.mark.parametrize(
    ("make", "sample", "error", "message"),
    [
        (lambda: 3, (torch.ones(1),), TypeError, "module: expected an nn.Module or a function, got int"),
        (net, (), ValueError, "sample: expected the inputs of a call, got none"),
        (net, ([1.0],), TypeError, "sample: expected tensors alone, got list for input 0"),
        *(
            (lambda register=register: hooked(register), (torch.ones(4, 6),), ValueError, "without hooks")
            for register in (
                "register_forward_hook",
                "register_forward_pre_hook",
                "register_full_backward_hook",
                "register_full_backward_pre_hook",
            )
        ),
        (buffered, (torch.ones(4, 6),), ValueError, "buffer extra requires a gradient"),
    ],
)
def test_what_is_no_module_and_no_sample(
    make: Callable[[], Any], sample: tuple[Any, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fastmlp.graphed(make(), *sample)


def test_a_graph_of_a_graph(stand_in: StandIn) -> None:
    made = fastmlp.graphed(net(), torch.ones(4, 6))
    with pytest.raises(ValueError, match="it has a graph"):
        fastmlp.graphed(made, torch.ones(8, 6))


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_where_there_is_no_gpu() -> None:
    with pytest.raises(RuntimeError, match="expected a GPU"):
        fastmlp.graphed(net(), torch.ones(4, 6))


def test_where_it_is_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="sample: input 0: expected on a GPU, got cpu"):
        fastmlp.graphed(net(), torch.ones(4, 6))
    monkeypatch.setenv("FASTMLP_DEBUG", "1")
    with pytest.raises(RuntimeError, match="FASTMLP_DEBUG=1 looks at values"):
        fastmlp.graphed(net(), torch.ones(4, 6))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(RuntimeError, match="expected an NVIDIA GPU"):
        fastmlp.graphed(net(), torch.ones(4, 6))


class Nothing(TorchDispatchMode):
    """Refuses what a capture refuses: a look at a value, and what comes from the host."""

    REFUSED = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "lift_fresh", "masked_select")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in self.REFUSED, f"{func} waits for the GPU, or copies to it"
        made_from_nothing = not any(isinstance(a, Tensor) for a in torch.utils._pytree.tree_leaves(args))
        device = made_from_nothing and "device" in {a.name for a in func._schema.arguments}
        assert not device or kwargs.get("device") is not None, f"{func} makes a tensor on the host"
        return func(*args, **kwargs)


STEPS: dict[str, Callable[[], tuple[nn.Module, nn.Module, Tensor]]] = {
    "classes": lambda: (
        fastmlp.MLP(24, [16, 10], dropout=0.5),
        fastmlp.CrossEntropyLoss(torch.rand(10), label_smoothing=0.1, z_loss=1e-4),
        torch.randint(10, (8,)),
    ),
    "numbers": lambda: (
        fastmlp.Sequential(nn.Linear(24, 16), nn.PReLU(), nn.Linear(16, 4), nn.GELU()),
        fastmlp.MSELoss(),
        torch.randn(8, 4),
    ),
    "narrow": lambda: (
        fastmlp.Sequential(*(m for _ in range(4) for m in (nn.Linear(24, 24), nn.Tanh()))),
        fastmlp.CrossEntropyLoss(),
        torch.randint(24, (8,)),
    ),
    "linear cross-entropy": lambda: (
        fastmlp.Sequential(nn.Linear(24, 16), nn.LeakyReLU()),
        fastmlp.LinearCrossEntropyLoss(16, 50),
        torch.randint(50, (8,)),
    ),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_step_asks_the_gpu_nothing(name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our kernels, none of which runs: the host's work about them is what a capture would see."""
    monkeypatch.setattr(launch, "_dry", True)
    module, loss, target = STEPS[name]()
    x = torch.randn(8, 24, requires_grad=True)
    with backends.use("triton"), launch.record_launches() as launches, Nothing():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(module(x), target)
        value.backward()
    assert len(launches) >= 3


@gpu
@pytest.mark.parametrize("name", sorted(STEPS))
def test_the_numbers_of_the_module(name: str) -> None:
    module, loss, target = STEPS[name]()

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss = module, loss

        def forward(self, x: Tensor, target: Tensor) -> Tensor:
            return self.loss(self.net(x), target)

    step = Step().cuda().eval()
    target = target.cuda()
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        for p in step.parameters():
            p.grad = None
        for _ in range(2):  # gradients add up
            value = step(torch.randn(8, 24, device="cuda"), target)
            value.backward()
        found.append([value.detach().clone(), *(p.grad for p in step.parameters())])
        if "forward" not in vars(step):
            fastmlp.graphed(step, torch.randn(8, 24, device="cuda"), target)
    assert all(torch.equal(a, b) for a, b in zip(*found))
