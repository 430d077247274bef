"""Weights that are more than parameters: derived, shared, lazy, frozen, pruned, quantized."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import fastmlp
from tests.compatibility.compare import same_or_as_good
from tests.compatibility.twins import agree, plain, results, rows, twins

GROUP = "Modules"


class LoRA(nn.Module):
    """A frozen linear layer and a product of two thin ones beside it, as PEFT wraps it."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class LowRank(nn.Module):
    """The same as a parametrization."""

    def __init__(self, weight: Tensor, rank: int = 2) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(len(weight), rank))
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Int8Linear(nn.Linear):
    """The weight as int8 with a scale a row; straight through for the input's gradient."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        weight = self.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 127
        del self.weight
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def with_own_forward(layer: nn.Linear) -> nn.Module:
    layer.forward = lambda x: F.linear(x, layer.weight * 2, layer.bias)  # type: ignore[method-assign]
    return layer


def old(function: Callable[..., nn.Module], layer: nn.Module, *args: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(layer, *args)


def around(wrap: Callable[[nn.Linear], nn.Module]) -> Callable[[type[nn.Sequential]], nn.Module]:
    """A net whose first and last layers are wrapped, with a plain chain between them."""

    def make(kind: type[nn.Sequential]) -> nn.Module:
        first, last = wrap(nn.Linear(5, 7)), wrap(nn.Linear(6, 4))
        return kind(first, nn.ReLU(), nn.Linear(7, 6), nn.Tanh(), last)

    return make


def parametrized(layer: nn.Linear) -> nn.Module:
    parametrize.register_parametrization(layer, "bias", nn.Softplus())
    return parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))


def orthogonal(kind: type[nn.Sequential]) -> nn.Module:
    return kind(parametrizations.orthogonal(nn.Linear(5, 5)), nn.ReLU(), nn.Linear(5, 4))


def pruned(layer: nn.Linear) -> nn.Module:
    prune.l1_unstructured(layer, "weight", amount=0.4)
    return prune.random_unstructured(layer, "bias", amount=0.3)


def pruned_for_good(layer: nn.Linear) -> nn.Module:
    return prune.remove(prune.ln_structured(layer, "weight", amount=0.4, n=2, dim=0), "weight")


def shared(kind: type[nn.Sequential]) -> nn.Module:
    one, two, three = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5, bias=False)
    two.weight, two.bias = one.weight, one.bias
    three.weight = one.weight
    return kind(one, nn.ReLU(), two, nn.Tanh(), three, one)


def transposed(kind: type[nn.Sequential]) -> nn.Module:
    """An autoencoder whose decoder's weight is a view of the encoder's memory."""
    encoder, decoder = nn.Linear(5, 7), nn.Linear(7, 5)
    decoder.weight = nn.Parameter(encoder.weight.detach().t())
    return kind(encoder, nn.ReLU(), decoder)


def in_one_vector(kind: type[nn.Sequential]) -> nn.Module:
    """Parameters that lie behind each other at odd offsets."""
    net = plain(kind)
    vector = nn.utils.parameters_to_vector(net.parameters())
    nn.utils.vector_to_parameters(torch.cat([vector[:1], vector])[1:], net.parameters())
    return net


WRAPPED: dict[str, Callable[[type[nn.Sequential]], nn.Module]] = {
    "a subclass of nn.Linear": around(lambda layer: Doubled(layer.in_features, layer.out_features)),
    "a forward set on a layer": around(with_own_forward),
    "parametrizations": around(parametrized),
    "weight norm: parametrization": around(parametrizations.weight_norm),
    "weight norm: nn.utils": around(lambda layer: old(nn.utils.weight_norm, layer)),
    "spectral norm: parametrization": around(parametrizations.spectral_norm),
    "spectral norm: nn.utils": around(lambda layer: old(nn.utils.spectral_norm, layer)),
    "orthogonal parametrization": orthogonal,
    "LoRA around a layer": around(LoRA),
    "LoRA as a parametrization": around(
        lambda layer: parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))
    ),
    "pruned layers": around(pruned),
    "pruned layers after prune.remove": around(pruned_for_good),
    "layers with one parameter": shared,
    "a transposed weight": transposed,
    "parameters as views of one vector": in_one_vector,
}
#: What torch itself does in float32 and float64 alone.
WIDE = ("spectral norm: parametrization", "spectral norm: nn.utils", "orthogonal parametrization")


def steps(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Two steps of SGD: what is derived from a parameter follows it."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.125)
    found = results(net, x)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return [t.clone() for t in found] + [net(x)]


@pytest.mark.few(27)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=pytest.mark.feature(GROUP, name))
        for name in WRAPPED
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        if name not in WIDE or dtype.itemsize > 2
    ],
)
def test_wrapped_layers(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    agree(WRAPPED[name], backend, device, dtype, run=steps, roundings=10)


@pytest.mark.feature(GROUP, "lazy layers, before and after they are initialized")
def test_lazy(backend: str, dtype: torch.dtype, device: str) -> None:
    """The first forward makes the parameters; they load from, and into, what was made already."""
    found = []
    for kind, of in ((fastmlp.Sequential, dtype), (nn.Sequential, dtype), (nn.Sequential, torch.float64)):
        net = kind(nn.LazyLinear(7), nn.ReLU(), nn.LazyLinear(4)).to(device, dtype)
        assert isinstance(net[0].weight, nn.UninitializedParameter)
        torch.manual_seed(0)
        net(rows(device, dtype))
        assert type(net[0]) is nn.Linear
        late = kind(nn.LazyLinear(7), nn.ReLU(), nn.LazyLinear(4)).to(device, of)
        late.load_state_dict(net.state_dict())
        net.load_state_dict(late.state_dict())
        found.append(steps(late, rows(device, dtype).to(of).requires_grad_()))
    same_or_as_good(*found, backend, "lazy", 10)


class Language(nn.Module):
    """An embedding whose weight is the head's too."""

    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(11, 5), body
        body[-1].weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.embedding(x))


@pytest.mark.feature(GROUP, "a head tied to an embedding")
def test_tied_to_an_embedding(backend: str, dtype: torch.dtype, device: str) -> None:
    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        y = net(x)
        y.square().sum().backward()
        assert len(list(net.parameters())) == 4  # one of which is shared
        assert net.body[-1].weight is net.embedding.weight  # type: ignore[union-attr, index]
        return [y, *(p.grad for p in net.parameters())]  # type: ignore[misc]

    def make(kind: type[nn.Sequential]) -> nn.Module:
        return Language(kind(nn.Linear(5, 5), nn.GELU(), nn.Linear(5, 11)))

    agree(make, backend, device, dtype, run=run, x=torch.tensor([[0, 10, 3], [3, 3, 7]], device=device))


@pytest.mark.feature(GROUP, "LinearCrossEntropyLoss tied to an embedding")
@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this torch has none")
def test_loss_tied_to_an_embedding(backend: str, dtype: torch.dtype, device: str) -> None:
    found = []
    for kind, of in (
        (fastmlp.LinearCrossEntropyLoss, dtype),
        (nn.LinearCrossEntropyLoss, dtype),
        (nn.LinearCrossEntropyLoss, torch.float64),
    ):
        torch.manual_seed(0)
        embedding, loss = nn.Embedding(300, 5), kind(5, 300, bias=True)
        loss.linear.weight = embedding.weight
        both = nn.ModuleList([embedding, loss]).to(device, dtype).to(of)
        assert loss.linear.weight is embedding.weight
        x, y = (torch.arange(first, first + 40, device=device) for first in (0, 1))
        loss(embedding(x), y).backward()
        found.append([p.grad for p in both.parameters()])
    same_or_as_good(*found, "triton" if backend == "torch" else backend, "tied")  # torch has tiles of its own


@pytest.mark.feature(GROUP, "parametrized and weight-normed layers of ours", dtype="float32")
@pytest.mark.parametrize("wrap", ["parametrizations", "old", "pruned"])
def test_wrapped_layers_of_ours(wrap: str, backend: str, device: str) -> None:
    """A LinearAct, whose weight is derived, against an ``nn.Linear`` and its activation."""
    how: dict[str, Callable[[nn.Linear], nn.Module]] = {
        "parametrizations": parametrized,
        "old": lambda layer: old(nn.utils.spectral_norm, old(nn.utils.weight_norm, layer, "bias")),
        "pruned": pruned,
    }

    def make(kind: type[nn.Sequential]) -> nn.Module:
        if kind is fastmlp.Sequential:
            return kind(how[wrap](fastmlp.LinearAct(5, 4, activation="silu")))
        return kind(how[wrap](nn.Linear(5, 4)), nn.SiLU())

    agree(make, backend, device, run=steps, roundings=10)


@pytest.mark.feature(GROUP, "frozen layers, and ones that are thawed later")
def test_frozen(backend: str, dtype: torch.dtype, device: str) -> None:
    """No gradient where none is wanted, the right ones elsewhere, and none of an earlier choice remains."""

    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for frozen in ((0, 1), (2, 3), (1, 2), (0, 1, 2, 3), ()):
            for i, parameter in enumerate(net.parameters()):
                parameter.requires_grad_(i not in frozen)
            net.zero_grad()
            x.grad = None
            y = net(x)
            y.square().sum().backward()
            grads = [p.grad for p in net.parameters()]
            assert [g is None for g in grads] == [i in frozen for i in range(4)]
            found += [y, x.grad, *(g for g in grads if g is not None)]  # type: ignore[list-item]
        net.requires_grad_(False)
        assert not net(x.detach()).requires_grad
        return found

    agree(plain, backend, device, dtype, run=run)


@pytest.mark.feature(GROUP, "a forward set on torch's own class", dtype="float32")
@pytest.mark.parametrize("kind", [nn.Linear, nn.ReLU, nn.Dropout], ids=lambda k: k.__name__)
def test_patched_class(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch, backend: str, device: str
) -> None:
    """As some put LoRA under every layer of a model."""
    calls: list[str] = []
    torchs = kind.forward

    def forward(self: nn.Module, input: Tensor) -> Tensor:
        calls.append(type(self).__name__)
        return torchs(self, input) * 2

    def make(outer: type[nn.Sequential]) -> nn.Module:
        return outer(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(0.0), nn.Sequential(nn.Linear(7, 4)))

    with monkeypatch.context() as patched:
        patched.setattr(kind, "forward", forward)
        agree(make, backend, device, roundings=10)
    assert len(calls) >= (6 if kind is nn.Linear else 3)


@pytest.mark.feature(GROUP, "int8 weights in a layer of one's own", dtype="float32")
def test_int8_weights(backend: str, device: str) -> None:
    agree(around(lambda layer: Int8Linear(layer.in_features, layer.out_features)), backend, device)


@pytest.mark.feature(GROUP, "torch.ao.quantization.quantize_dynamic", dtype="float32")
@pytest.mark.filterwarnings("ignore")  # deprecated
@pytest.mark.parametrize("which", ["all", "the last"])
def test_quantize_dynamic(which: str, backend: str) -> None:
    """The children are swapped as torch's are, and those that are left run by the kernels. For CPUs alone."""
    ao = pytest.importorskip("torch.ao.quantization")
    if not hasattr(ao, "quantize_dynamic") or torch.backends.quantized.engine == "none":
        pytest.skip("this torch cannot quantize")
    ours, theirs, _ = twins(plain, "cpu")
    what: Any = {nn.Linear} if which == "all" else {"2": ao.default_dynamic_qconfig}
    nets = [ao.quantize_dynamic(net, what) for net in (ours, theirs)]
    assert type(nets[0]) is fastmlp.Sequential
    assert type(nets[0][2]) is type(nets[1][2]) is not nn.Linear
    x = rows("cpu")
    if which == "all" or backend == "torch":
        assert torch.equal(nets[0](x), nets[1](x))
    else:
        torch.testing.assert_close(nets[0](x), nets[1](x), rtol=0.02, atol=0.02)  # a step of the 8 bits


@pytest.mark.feature(GROUP, "vector_to_parameters and parameters_to_vector", dtype="float32")
def test_vectors(backend: str, device: str) -> None:
    def run(net: nn.Module, x: Tensor) -> list[Tensor]:
        vector = nn.utils.parameters_to_vector(net.parameters())
        nn.utils.vector_to_parameters(vector.detach() * 2, net.parameters())
        return [*results(net, x), vector]

    agree(plain, backend, device, run=run)
    net = copy.deepcopy(twins(plain, device)[0])
    assert len(nn.utils.parameters_to_vector(net.parameters())) == 5 * 7 + 7 + 7 * 4 + 4
