"""What a module is besides its forward: copies, files, devices, containers, state."""

from __future__ import annotations

import copy
import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fastmlp
from fastmlp import backends
from tests.compatibility.twins import agree, plain, results, rows, twins

GROUP = "Modules"
TARGET = (0, 3, 1, 2, 3, 0)
#: One of each module of ours, and what it is called with.
MODULES: dict[str, tuple[Callable[..., nn.Module], bool]] = {
    "Sequential": (lambda **like: fastmlp.Sequential(nn.Linear(5, 7, **like), nn.PReLU(7, **like)), False),
    "MLP": (lambda **like: fastmlp.MLP(5, [7, 4], dropout=0.1, flatten=True, **like).eval(), False),
    "LinearAct": (lambda **like: fastmlp.LinearAct(5, 4, activation=nn.PReLU(4), **like), False),
    "Dequantize": (lambda **like: fastmlp.Dequantize(0.5, 0.25, **like), False),
    "CrossEntropyLoss": (lambda **like: fastmlp.CrossEntropyLoss(torch.rand(5, **like), z_loss=0.1), True),
    "LinearCrossEntropyLoss": (lambda **like: fastmlp.LinearCrossEntropyLoss(5, 9, bias=True, **like), True),
}
each = pytest.mark.parametrize("name", list(MODULES))


def called(name: str, module: nn.Module, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The module's output for an input of five features, which for CrossEntropyLoss are logits."""
    x = rows(device, dtype)
    return module(x, torch.tensor(TARGET, device=device)) if MODULES[name][1] else module(x)


def saved(module: Any) -> Any:
    """Through a file of ``torch.save`` and back, with nothing in it but tensors."""
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.feature(GROUP, "deepcopy, pickle, torch.save of a module", dtype="float32")
@each
def test_copies(name: str, backend: str, device: str) -> None:
    """A copy is of the same type and gives the same bits; what becomes of it is not the original's."""
    module = MODULES[name][0](device=device)
    expected = called(name, module, device)
    before = copy.deepcopy(module.state_dict())
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert type(twin) is type(module)
        assert repr(twin) == repr(module)
        assert torch.equal(called(name, twin, device), expected)
        with torch.no_grad():
            for tensor in twin.state_dict().values():
                tensor.add_(1)
    assert all(torch.equal(t, before[key]) for key, t in module.state_dict().items())


@pytest.mark.feature(GROUP, "state_dict through torch.load(weights_only=True), and assign=True")
@each
def test_state_dict_files(name: str, device: str) -> None:
    module, other = (MODULES[name][0](device=device) for _ in range(2))
    state = saved(module.state_dict())
    for assign in (False, True):
        other.load_state_dict(state, strict=True, assign=assign)
        assert torch.equal(called(name, other, device), called(name, module, device))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**state, "more": torch.ones(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


@pytest.mark.feature(GROUP, "state_dict both ways: nn.Sequential")
def test_state_dict_of_sequential(backend: str, dtype: torch.dtype, device: str) -> None:
    """The same keys in the same order, with names and nesting; and the metadata."""

    def make(kind: type[nn.Sequential]) -> nn.Module:
        inner = OrderedDict(lin=nn.Linear(7, 6), norm=nn.BatchNorm1d(6), act=nn.PReLU())
        return kind(OrderedDict(first=nn.Linear(5, 7), inner=kind(inner), last=nn.Linear(6, 4)))

    ours, theirs, _ = twins(make, device, dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata  # type: ignore[attr-defined]
    x = rows(device, dtype)
    for source, target in ((theirs, ours), (ours, theirs)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.mul_(1.25)
        target.load_state_dict(saved(source.state_dict()), strict=True)
        assert all(
            torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values())
        )
    agree(make, backend, device, dtype, run=lambda net, t: [net.eval()(t)])
    assert ours.eval()(x).shape == theirs.eval()(x).shape


@pytest.mark.feature(GROUP, "meta device, to_empty, skip_init and the device context", dtype="float32")
@each
def test_meta(name: str, backend: str, device: str) -> None:
    """Nothing is computed on meta, but shapes; what is loaded afterwards is all there."""
    make, _ = MODULES[name]
    real = make(device=device)
    expected = called(name, real, device)
    with torch.device("meta"):
        abstract = make()
    made = [make(device="meta"), abstract]
    if name in ("MLP", "LinearAct", "LinearCrossEntropyLoss"):
        kind = type(real)
        arguments = {"MLP": (5, [7, 4]), "LinearAct": (5, 4), "LinearCrossEntropyLoss": (5, 9)}[name]
        more: dict[str, Any] = {"LinearAct": {"activation": nn.PReLU(4)}, "MLP": {}}.get(name, {"bias": True})
        skipped = nn.utils.skip_init(kind, *arguments, **more, device=device)  # type: ignore[arg-type]
        skipped.load_state_dict(real.state_dict(), strict=True)
        assert torch.equal(called(name, skipped.eval(), device), expected)
    for module in made:
        assert repr(module)
        assert all(t.is_meta for t in module.state_dict().values())
        shape = called(name, module, "meta")
        assert shape.is_meta
        assert shape.shape == expected.shape
        filled = copy.deepcopy(module).to_empty(device=device)
        filled.load_state_dict(real.state_dict(), strict=True)
        module.load_state_dict(real.state_dict(), strict=True, assign=True)
        for again in (filled, module):
            assert torch.equal(called(name, again, device), expected)
    with torch.device(device):
        assert all(t.device.type == device for t in make().state_dict().values())


@pytest.mark.feature(GROUP, "to(dtype), half, bfloat16, double, float", dtype="float32")
@each
def test_dtypes(name: str, backend: str, device: str) -> None:
    """Everything follows; the result is of the new dtype, and back in float32 it is what it was."""
    module = MODULES[name][0](device=device).bfloat16().float()  # whose numbers 16 bits can hold
    expected = called(name, module, device)
    for convert, of in (
        (nn.Module.bfloat16, torch.bfloat16),
        (nn.Module.double, torch.float64),
        (lambda m: m.to(torch.bfloat16), torch.bfloat16),
        (lambda m: m.type(torch.float64), torch.float64),
        (nn.Module.half, torch.float16),
        (nn.Module.float, torch.float32),
    ):
        module = convert(module)
        assert all(t.dtype == of for t in module.state_dict().values())
        result = called(name, module, device, of)
        assert result.dtype == of
        torch.testing.assert_close(result.float(), expected, rtol=0.05, atol=0.05)
    assert torch.equal(called(name, module, device), expected)


@pytest.mark.feature(GROUP, "to another device and back", dtype="float32")
@each
def test_devices(name: str, backend: str, device: str) -> None:
    """Also where parameters are swapped rather than filled."""
    module = MODULES[name][0](device=device)
    expected = called(name, copy.deepcopy(module), device)
    for swap in (True, False):
        torch.__future__.set_swap_module_params_on_conversion(swap)
        try:
            assert module.double().to("cpu").to(device).float() is module
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
    assert torch.equal(called(name, module, device), expected)


def _one_step(net: nn.Module, done: Any, backend: str) -> None:
    with backends.use(backend):
        net(rows("cpu")).square().sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.sub_(parameter.grad, alpha=0.25)  # type: ignore[arg-type]
    done.set()


@pytest.mark.deep
@pytest.mark.feature(GROUP, "share_memory: another process trains, this one sees it", dtype="float32")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_share_memory(backend: str) -> None:
    """As in Hogwild. Memory of CPUs alone is shared so."""
    context = torch.multiprocessing.get_context(
        "spawn"
    )  # a fork cannot use autograd once a thread of it runs
    found = []
    for net in twins(plain, "cpu"):
        of = next(net.parameters()).dtype
        if isinstance(net, fastmlp.Sequential):
            net.share_memory()
            assert all(p.is_shared() for p in net.parameters())
            done = context.Event()
            use = "torch" if torch.cuda.is_available() else backend
            worker = context.Process(target=_one_step, args=(net, done, use))
            worker.start()
            worker.join(120)
            assert worker.exitcode == 0
            assert done.is_set()
        else:
            net(rows("cpu").to(of)).square().sum().backward()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.sub_(parameter.grad, alpha=0.25)  # type: ignore[arg-type]
        found.append([net(rows("cpu").to(of)).detach(), *(p.detach() for p in net.parameters())])
    for ours, theirs in zip(found[0], found[1]):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.feature(
    GROUP, "containers: indexing, slicing, append, insert, extend, del, +, *", dtype="float32"
)
def test_containers(backend: str, device: str) -> None:
    """Each change counts from the next forward on, as in torch's."""

    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        assert isinstance(net, nn.Sequential)
        like: dict[str, Any] = {"device": device, "dtype": x.dtype}
        found = results(net, x)
        torch.manual_seed(2)
        changes: list[Callable[[], object]] = [
            lambda: net.append(nn.Linear(4, 6).to(**like)),
            lambda: net.insert(1, nn.LayerNorm(7).to(**like)),
            lambda: net.extend([nn.Tanh(), nn.Linear(6, 3).to(**like)]),
            lambda: net.__setitem__(2, nn.SiLU()),
            lambda: net.__delitem__(1),
            lambda: net.__setitem__(-1, nn.Sequential(nn.Linear(6, 6).to(**like), nn.GELU())),
            lambda: net.pop(4),
            lambda: setattr(net[0], "weight", nn.Parameter(net[0].weight.detach() * 2)),
        ]
        for change in changes:
            change()
            found.append(net(x))
        assert len(net) == 5
        assert [type(child).__name__ for child in net[:2]] == ["Linear", "SiLU"]
        assert net[-2] is net[3]
        found += [net[:2](x), net[1:3](net[0](x)), (net[:1] + net[1:])(x), (net[2:3] * 1)(net[:2](x))]
        return [t.detach() for t in found]

    agree(plain, backend, device, run=run, roundings=10)
    net = twins(plain, device)[0]
    assert type(net[:2]) is fastmlp.Sequential  # type: ignore[index]
    net.append(nn.ReLU())  # type: ignore[operator]
    assert repr(net) == repr(nn.Sequential(*net))  # type: ignore[misc]


@pytest.mark.feature(GROUP, "order of children, named_modules, parameters and apply")
def test_order(device: str) -> None:
    def make(kind: type[nn.Sequential]) -> nn.Module:
        shared = nn.Linear(5, 5)
        return kind(OrderedDict(a=shared, b=kind(nn.PReLU(), shared), c=nn.BatchNorm1d(5), d=nn.Linear(5, 3)))

    seen = []
    for net in twins(make, device)[:2]:
        order: list[str] = []
        net.register_buffer("kept", torch.ones(1, device=device))
        net.register_buffer("lost", torch.ones(1, device=device), persistent=False)
        net.apply(lambda m: order.append(type(m).__name__))  # noqa: B023
        seen.append(
            [
                order,
                [name for name, _ in net.named_children()],
                [name for name, _ in net.named_modules(remove_duplicate=False)],
                [name for name, _ in net.named_parameters(remove_duplicate=False)],
                [name for name, _ in net.named_buffers()],
                list(net.state_dict()),
                str(net),
            ]
        )
    assert seen[0] == seen[1]


class Residual(fastmlp.Sequential):
    """A forward of one's own around the fused one."""

    def forward(self, input: Tensor) -> Tensor:
        return input + 2 * super().forward(input)


class ResidualOfTorch(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return input + 2 * super().forward(input)


class Scaled(fastmlp.MLP):
    """A parameter of one's own, and a forward around the fused one."""

    def __init__(self) -> None:
        super().__init__(5, [7, 5])
        self.register_parameter("gain", nn.Parameter(torch.full((5,), 1.5)))

    def forward(self, input: Tensor) -> Tensor:
        return self.gain * super().forward(input)


class ScaledOfTorch(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(0.0), nn.Linear(7, 5), nn.Dropout(0.0))
        self.register_parameter("gain", nn.Parameter(torch.full((5,), 1.5)))

    def forward(self, input: Tensor) -> Tensor:
        return self.gain * super().forward(input)


@pytest.mark.feature(GROUP, "subclasses with a forward of their own")
def test_subclasses(backend: str, dtype: torch.dtype, device: str) -> None:
    """Also inside of another Sequential, copied and pickled; no fused loss leaves their forward out."""

    def residual(kind: type[nn.Sequential]) -> nn.Module:
        inner = Residual if kind is fastmlp.Sequential else ResidualOfTorch
        block = inner(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
        return pickle.loads(pickle.dumps(copy.deepcopy(kind(block, nn.ReLU(), nn.Linear(5, 4)))))

    def scaled(kind: type[nn.Sequential]) -> nn.Module:
        return Scaled() if kind is fastmlp.Sequential else ScaledOfTorch()

    agree(residual, backend, device, dtype, roundings=10)
    agree(scaled, backend, device, dtype, roundings=10)
    loss, target = fastmlp.CrossEntropyLoss(), torch.tensor(TARGET, device=device)
    for net in (Scaled(), Residual(nn.Linear(5, 5))):
        assert net.to(device).cross_entropy(rows(device), target, loss) is None


@pytest.mark.feature(GROUP, "torch.func.functional_call with swapped parameters")
def test_functional_call(backend: str, dtype: torch.dtype, device: str) -> None:
    """The swapped ones count and get the gradients; the module's own stay, and have none."""

    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        torch.manual_seed(4)
        swapped = {n: (p.detach() * 2).requires_grad_() for n, p in net.named_parameters()}
        few = {"2.bias": swapped["2.bias"]}
        y, z = functional_call(net, swapped, (x,)), functional_call(net, few, (x,))
        grads = torch.autograd.grad(y.sum() + z.square().sum(), [x, *swapped.values()])
        assert all(p.grad is None for p in net.parameters())
        return [y, z, *grads, net(x)]

    agree(plain, backend, device, dtype, run=run)


@pytest.mark.feature(GROUP, "zero_grad, clip_grad_norm_, clip_grad_value_", dtype="float32")
def test_gradients(backend: str, device: str) -> None:
    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        results(net, x)
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        clipped = [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]
        results(net, x)  # adds to what is there
        nn.utils.clip_grad_value_(net.parameters(), 0.3)
        more = [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]
        net.zero_grad(set_to_none=False)
        zeros = [p.grad.clone() for p in net.parameters()]  # type: ignore[union-attr]
        assert not any(t.any() for t in zeros)
        again = results(net, x)
        net.zero_grad()
        assert all(p.grad is None for p in net.parameters())
        return [torch.stack([norm] * 16), *clipped, *more, *again]

    agree(plain, backend, device, run=run, roundings=10)


@pytest.mark.feature(GROUP, "train and eval with dropout")
def test_dropout(backend: str, dtype: torch.dtype, device: str) -> None:
    """The identity in evaluation; in training torch's own masks, or the kernels', which are as dense."""

    def make(kind: type[nn.Sequential]) -> nn.Module:
        return kind(nn.Linear(5, 64), nn.Sigmoid(), nn.Dropout(0.25), nn.Linear(64, 4), nn.Dropout(0.0))

    def evaluated(net: nn.Module, x: Tensor) -> list[Tensor]:
        return results(net.eval(), x)

    agree(make, backend, device, dtype, run=evaluated)
    if backend == "torch" or dtype == torch.float64:
        agree(make, "torch", device, dtype)
    net = twins(make, device, dtype)[0]
    x = rows(device, dtype)
    assert net(x).ne(net(x)).any()
    part = net.train()[:3](x.expand(6, 5))  # type: ignore[index]
    assert 0.15 < part.eq(0).double().mean() < 0.35
    kept = part.ne(0)
    expected = F.linear(x, net[0].weight, net[0].bias).sigmoid() / 0.75  # type: ignore[index, arg-type]
    torch.testing.assert_close(part[kept], expected[kept], rtol=2e-2, atol=1e-2)
    net[2].eval()  # type: ignore[index, union-attr]
    assert torch.equal(net(x), net(x))
