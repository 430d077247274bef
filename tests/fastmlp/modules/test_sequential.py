"""fastmlp.Sequential's forward agrees with torch's. The rest: tests/compatibility/test_modules_*.py."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

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
    for more in (net[:2], net + net, net + nn.Sequential(nn.ReLU()), 2 * net, net * 2, net[:]):
        assert type(more) is fastmlp.Sequential
        assert more[0] is net[0]
    assert repr(net * 2) == repr(nn.Sequential(*net) * 2) == repr(net + net)
    with pytest.raises(ValueError, match="Non-positive"):
        net * 0
    with pytest.raises(ValueError, match="Sequential"):
        net + nn.ReLU()  # type: ignore[operator]
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
            first, second, last, _ = (one.named for one in launches)
            assert first["dropout"] is not None
            assert second["dropout"] is last["after"] is None
            assert last["before"].act.name == "relu"
            assert last["before"].drop is not None


@pytest.mark.parametrize("grad", [True, False])
def test_on_a_cpu_what_changes_nothing_is_not_called(grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropout that is off: most of a small MLP's. Its hooks are called all the same."""
    called: list[float] = []

    def dropout(input: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
        called.append(p)
        return input

    monkeypatch.setattr(nn.functional, "dropout", dropout)
    net = fastmlp.Sequential(nn.Linear(5, 7), nn.Dropout(0.0), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 3))
    x = torch.randn(6, 5)
    expected = net[4](net[0](x).relu())
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(net.eval()(x), expected)
        assert called == []
        net.train()(x)
        assert called == [0.5]
        net[1].register_forward_hook(lambda *_: None)
        net.eval()(x)
    assert called == [0.5, 0.0]


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


@pytest.mark.parametrize("nested", [False, True])
def test_the_same_children_in_another_order(nested: bool, device: str) -> None:
    """What a call found to run holds no more, though nothing else has changed."""
    body = fastmlp.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).to(device)
    net, x = fastmlp.Sequential(body) if nested else body, torch.randn(3, 4, device=device)
    with backends.use("triton"):
        before = net(x)
        body._modules["1"] = body._modules.pop("1")
        after = net(x)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, nn.Sequential(*body)(x), rtol=1e-4, atol=1e-5)


def test_a_net_that_has_been_called_is_compiled(device: str) -> None:
    net, x = fastmlp.MLP(4, [5, 3]).to(device), torch.randn(3, 4, device=device)
    with backends.use("triton"):
        eager = net(x)
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), eager)
