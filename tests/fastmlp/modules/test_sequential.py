"""fastmlp.Sequential is an nn.Sequential: everything but forward is torch's, and forward agrees."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastmlp
from fastmlp import backends
from fastmlp.kernels.launch import record_launches
from tests.numerics import assert_as_good_as_torch


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest):
    with backends.use(request.param):
        yield request.param


def pair(device: str, *children: nn.Module) -> tuple[nn.Sequential, fastmlp.Sequential]:
    """torch's and ours with equal parameters."""
    theirs = nn.Sequential(*children).to(device)
    return theirs, fastmlp.Sequential(*copy.deepcopy(theirs)).to(device)


def results(net: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of input and parameters."""
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    y = net(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])]


def agree(theirs: nn.Module, ours: nn.Module, x: Tensor) -> None:
    """Equal on torch's own ops; with the kernels as near to float64 as torch is."""
    torchs, mine = results(theirs, x), results(ours, x)
    if backends.requested() == "torch":
        assert all(torch.equal(a, b) for a, b in zip(torchs, mine))
        return
    exact = results(copy.deepcopy(theirs).double(), x.double())
    for i, (a, b, e) in enumerate(zip(torchs, mine, exact)):
        assert_as_good_as_torch(b, a, e, f"result {i}", roundings=4)


ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.2),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.SiLU(),
    nn.PReLU(),
    nn.PReLU(7),
    nn.Identity(),
    nn.ELU(),
    nn.Softplus(),
]


@pytest.mark.parametrize("act", ACTIVATIONS, ids=str)
def test_activations(act: nn.Module, backend: str, device: str) -> None:
    """In the table or not."""
    theirs, ours = pair(device, nn.Linear(5, 7), act, nn.Linear(7, 3))
    agree(theirs, ours, torch.randn(6, 5, device=device))


def test_structures(backend: str, device: str) -> None:
    """Flatten, norms, nested and odd orders."""
    nets = [
        (nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 3)),
        (nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 3), nn.Softmax(-1)),
        (nn.Linear(5, 7), nn.Sequential(nn.Tanh(), nn.Linear(7, 3)), nn.ReLU()),
        (nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.ReLU(), nn.Tanh()),
        (nn.Linear(5, 4, bias=False), nn.Linear(4, 3)),
        (nn.Linear(5, 4), nn.Identity(), nn.ReLU()),
    ]
    for children in nets:
        theirs, ours = pair(device, *children)
        shape = (6, 4, 5) if isinstance(children[0], nn.Flatten) else (6, 5)
        agree(theirs, ours, torch.randn(shape, device=device))


def test_leading_dimensions(backend: str, device: str) -> None:
    theirs, ours = pair(device, nn.Linear(5, 7), nn.PReLU(4), nn.Linear(7, 3))
    agree(theirs, ours, torch.randn(2, 4, 5, device=device))


def test_the_modules_are_torchs_own() -> None:
    net = fastmlp.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    assert isinstance(net, nn.Sequential)
    assert type(net[0]) is nn.Linear
    assert type(net[:2]) is fastmlp.Sequential
    assert len(net.append(nn.ReLU())) == 4
    assert repr(net) == repr(nn.Sequential(*net))
    named = fastmlp.Sequential(OrderedDict(hidden=nn.Linear(5, 4), act=nn.ReLU()))
    assert list(named.state_dict()) == ["hidden.weight", "hidden.bias"]


def test_apply_as_in_the_book() -> None:
    def init_weights(m: nn.Module) -> None:
        if type(m) == nn.Linear:  # noqa: E721
            nn.init.normal_(m.weight, std=0.01)

    net = fastmlp.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    net.apply(init_weights)
    assert 0.009 < net[1].weight.std() < 0.011


def test_checkpoints_load_both_ways() -> None:
    theirs, ours = pair("cpu", nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    buffer = io.BytesIO()
    torch.save(ours, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert type(again) is fastmlp.Sequential
    x = torch.randn(2, 5)
    assert torch.equal(again(x), ours(x))
    assert torch.equal(copy.deepcopy(ours)(x), ours(x))


def hook_all(module: nn.Module, tag: str, seen: list[str]) -> None:
    """Note every call of a forward, forward-pre and backward hook; the forward hook doubles the output."""
    module.register_forward_hook(lambda m, i, o: seen.append(tag) or o * 2)
    module.register_forward_pre_hook(lambda m, i: seen.append(tag + " pre"))
    module.register_full_backward_hook(lambda m, gi, go: seen.append(tag + " back"))


def test_hooks_fire(backend: str, device: str) -> None:
    """On each kind of child, forward and backward, and with their effect on values."""
    x = torch.randn(6, 5, device=device)
    for index in range(3):
        theirs, ours = pair(device, nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
        seen: list[str] = []
        for net, tag in ((theirs, "theirs"), (ours, "ours")):
            hook_all(net[index], tag, seen)
        agree(theirs, ours, x)
        for kind in ("", " pre", " back"):
            assert seen.count("ours" + kind) == 1
            assert "theirs" + kind in seen


def test_global_hooks_fire(backend: str, device: str) -> None:
    _, ours = pair(device, nn.Linear(5, 7), nn.ReLU())
    seen: list[type] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m)))
    try:
        ours(torch.randn(2, 5, device=device))
    finally:
        handle.remove()
    assert seen == [nn.Linear, nn.ReLU, fastmlp.Sequential]


def test_children_of_another_kind_run_as_themselves(backend: str, device: str) -> None:
    """Parametrized, weight-normed, subclassed, with a forward of their own."""

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    own = nn.Linear(5, 7)
    own.forward = lambda input: input[:, :1].expand(-1, 7)  # type: ignore[method-assign]
    x = torch.randn(6, 5, device=device)
    assert torch.equal(fastmlp.Sequential(own, nn.ReLU())(x), x[:, :1].expand(-1, 7).relu())
    for child in (
        Doubled(5, 7),
        parametrizations.weight_norm(nn.Linear(5, 7)),
        parametrizations.spectral_norm(nn.Linear(5, 7)).eval(),
    ):
        theirs, ours = pair(device, child, nn.ReLU(), nn.Linear(7, 3))
        ours.train(child.training)
        theirs.train(child.training)
        agree(theirs, ours, x)


def test_dropout(backend: str, device: str) -> None:
    """Identity in eval mode; in training torch's own, or the kernels', which draw other masks."""
    theirs, ours = pair(device, nn.Linear(5, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 3))
    x = torch.randn(6, 5, device=device)
    if backend == "torch":
        for a, b in zip(results(theirs, x), results(ours, x)):  # float64 would draw another mask
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)
    agree(theirs.eval(), ours.eval(), x)
    assert ours.train()(x).ne(ours(x)).any()


def test_dropout_does_not_break_the_chain(device: str) -> None:
    """In training it is part of a layer's kernels, in evaluation of none."""
    net = fastmlp.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 3)).to(device)
    x = torch.randn(6, 5, device=device)
    with backends.use("triton"):
        for mode in (True, False):
            with record_launches() as launches:
                net.train(mode)(x).sum().backward()
            if not mode:  # without a dropout the net runs whole
                assert launches[0].name == "mlp_forward_kernel"
                continue
            assert len(launches) == 4
            assert [one.options["DROPOUT"] for one in launches] == [mode, False, False, False]
            assert launches[2].options["PREVIOUS_ACT"] == "relu"
            assert launches[2].options["PREVIOUS_DROPOUT"] is mode


def test_three_steps_of_an_optimizer(backend: str, device: str) -> None:
    theirs, ours = pair(device, nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    x, y = torch.randn(20, 5, device=device), torch.randint(3, (20,), device=device)
    loss = nn.CrossEntropyLoss()
    for net in (theirs, ours):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
    for a, b in zip(theirs.parameters(), ours.parameters()):
        if backend == "torch":
            assert torch.equal(b, a)
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_children_changed_between_forwards(backend: str, device: str) -> None:
    """Nothing of an earlier plan is kept."""
    theirs, ours = pair(device, nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(6, 5, device=device)
    agree(theirs, ours, x)
    for net in (theirs, ours):
        net[1] = nn.Tanh()
    agree(theirs, ours, x)
    for net in (theirs, ours):
        torch.manual_seed(1)
        net.append(nn.Linear(3, 2, device=device)).insert(2, nn.Sigmoid())
        net[0].weight = nn.Parameter(net[0].weight.detach() * 2)
    agree(theirs, ours, x)


def test_frozen_and_shared_layers(backend: str, device: str) -> None:
    shared = nn.Linear(5, 5)
    theirs, ours = pair(device, shared, nn.ReLU(), shared, nn.Tanh(), shared)
    assert len(list(ours.parameters())) == 2
    agree(theirs, ours, torch.randn(6, 5, device=device))
    theirs, ours = pair(device, nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    x = torch.randn(6, 5, device=device)
    for net in (theirs, ours):
        net[0].requires_grad_(False)
        net(x).sum().backward()
    assert ours[0].weight.grad is None
    torch.testing.assert_close(ours[2].weight.grad, theirs[2].weight.grad, rtol=1e-5, atol=1e-6)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Add(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0] + pair[1]


def test_anything_may_pass_between_modules(backend: str, device: str) -> None:
    """As in an nn.Sequential: tuples inside, and as the input."""
    theirs, ours = pair(device, nn.Linear(5, 7), Twice(), Add(), nn.Linear(7, 3))
    agree(theirs, ours, torch.randn(6, 5, device=device))
    x = torch.randn(6, 5, device=device)
    theirs, ours = pair(device, Add(), nn.Linear(5, 3))
    torch.testing.assert_close(ours((x, x)), theirs((x, x)))
    loss, y = fastmlp.CrossEntropyLoss(), torch.randint(3, (6,), device=device)
    assert ours.cross_entropy((x, x), y, loss) is None  # type: ignore[arg-type]
    assert fastmlp.Sequential(nn.Identity())([1, 2]) == [1, 2]


def test_symbolic_trace_sees_the_children() -> None:
    theirs, ours = pair("cpu", nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    traced, x = torch.fx.symbolic_trace(ours), torch.randn(6, 5)
    assert torch.equal(traced(x), theirs(x))


class Halved(fastmlp.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) / 2


class Negated(fastmlp.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return -super().forward(input)


def test_fused_loss_equals_the_two_modules(device: str) -> None:
    net = fastmlp.Sequential(nn.Flatten(), nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 3)).to(device)
    x, y = torch.randn(6, 4, 5, device=device), torch.randint(3, (6,), device=device)
    loss = fastmlp.CrossEntropyLoss(label_smoothing=0.1)
    assert backends.requested() == "auto"
    with backends.use("triton"):
        fused = net.cross_entropy(x, y, loss)
        assert fused is not None
        torch.testing.assert_close(fused[0], loss(net(x), y), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(fused[1], net(x), rtol=1e-5, atol=1e-6)
        assert net.cross_entropy(x, y, Halved()) is None
        assert Negated(*net).cross_entropy(x, y, loss) is None
        net[3].register_forward_hook(lambda m, i, o: None)
        assert net.cross_entropy(x, y, loss) is None
    with backends.use("torch"):
        assert net.cross_entropy(x, y, loss) is None


def test_autocast(backend: str, device: str) -> None:
    theirs, ours = pair(device, nn.Linear(50, 70), nn.ReLU(), nn.Linear(70, 3))
    x = torch.randn(6, 50, device=device)
    with torch.autocast(device, torch.bfloat16):
        a, b = theirs(x), ours(x)
    assert a.dtype == b.dtype == torch.bfloat16
    torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
