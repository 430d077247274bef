"""Counts by hand, and against what runs: torch's ops and our launches, their tensors, what they keep."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmlp import backends, functional
from fastmlp.activations import NAMES, from_module, module_of
from fastmlp.costs import floors, plans
from fastmlp.costs.devices import DEVICES
from fastmlp.costs.plans import Dense
from fastmlp.functional.linear import Layer, chain
from fastmlp.kernels.launch import Launch, record_launches
from fastmlp.kernels.linear.backward import split_batch
from fastmlp.kernels.tiles import configs

_BF16, _FP32 = torch.bfloat16, torch.float32
_SMS = 132
TEXTBOOK, NARROW = (784, 256, 10), (64,) * 9


def of(
    plan: str, widths: tuple[int, ...], batch: int, dtype: torch.dtype = _FP32, **options: bool
) -> plans.Plan:
    return plans.count(plan, plans.chain(widths), batch, dtype, _SMS, **options)


def names(launches: tuple[plans.Launch, ...]) -> list[str]:
    return [launch.name for launch in launches]


def test_the_textbooks_step_by_torchs_ops() -> None:
    """Of the 14 launches of docs/kernels.md the net's nine; five are the loss'."""
    plan = of("eager", TEXTBOOK, 256)
    assert names(plan.forward) == ["addmm", "relu", "addmm"]
    assert names(plan.backward) == ["mm", "mm", "sum", "relu_backward", "mm", "sum"]
    # Forward and dW of both layers, dX of the second alone.
    assert plan.work.operations == 2 * 256 * (2 * 784 * 256 + 3 * 256 * 10)
    x, h, y, w1, w2 = 256 * 784, 256 * 256, 256 * 10, 256 * 784, 10 * 256
    forward = (x + w1 + 256 + h) + 2 * h + (h + w2 + 10 + y)
    backward = (y + w2 + h) + (y + h + w2) + (y + 10) + 3 * h + (h + x + w1) + (h + 256)
    assert plan.work.bytes == 4 * (forward + backward)
    assert plan.kept == 4 * h


def test_the_textbooks_step_by_our_layers() -> None:
    """The 7 launches of docs/kernels.md are these four, two of the loss and torch's fill."""
    plan = of("layers", TEXTBOOK, 256)
    assert names(plan.launches) == ["linear_act"] * 2 + ["linear_backward"] * 2
    assert len(plan.launches) + floors.cross_entropy(256, 10, _FP32).launches + 1 == 7
    x, h, y, w1, w2 = 256 * 784, 256 * 256, 256 * 10, 256 * 784, 10 * 256
    forward = (x + w1 + 256 + h) + (h + w2 + 10 + y)
    # The hidden activation is read for dW2 and for f' in one launch: once.
    backward = (y + h + w2 + h + w2 + 10) + (h + x + w1 + 256)
    assert plan.work.bytes == 4 * (forward + backward)


@pytest.mark.parametrize(("batch", "launches"), [(256, 3), (1 << 16, 4)])
def test_eight_narrow_layers_whole(batch: int, launches: int) -> None:
    """One launch forward, at most three backward: the third sums what a long batch was split into."""
    plan = of("whole", NARROW, batch, _BF16)
    assert len(plan.forward) == 1
    assert len(plan.launches) == launches
    weights, row, saved = 8 * 64 * 64, 64, 7 * 64
    assert plan.forward[0].bytes == 2 * (8 * 64 + weights + batch * (2 * row + saved))
    assert plan.backward[0].bytes == 2 * (7 * 64 * 64 + batch * (row + 2 * saved))
    assert plan.forward[0].operations == 2 * batch * weights
    assert plan.backward[0].operations == 2 * batch * 7 * 64 * 64
    assert plan.backward[1].operations == 2 * batch * weights
    assert plan.forward[0].programs == batch // 64
    # Every program reads every weight, all but the first through the cache alone.
    again = (batch // 64 - 1) * 2 * (weights + 8 * 64)
    assert plan.forward[0].cached == plan.forward[0].bytes + again
    assert plan.kept == 2 * batch * saved
    assert len(of("eager", NARROW, batch, _BF16).launches) == 15 + 7 * 4 + 2


def test_recompute_trades_operations_for_memory() -> None:
    whole, again = (of(plan, NARROW, 1 << 16, _BF16) for plan in ("whole", "recompute"))
    assert again.kept == 0
    assert again.forward[0].bytes == of("whole", NARROW, 1 << 16, _BF16, training=False).forward[0].bytes
    assert again.work.operations == whole.work.operations + 2 * (1 << 16) * 7 * 64 * 64
    # One pass over the saved matrices less, one over the input and its weights more, and the biases.
    less = 2 * (1 << 16) * 7 * 64
    more = 2 * ((1 << 16) * 64 + 64 * 64 + 7 * 64)
    assert again.work.bytes == whole.work.bytes - less + more


def test_inference_writes_only_the_output() -> None:
    plan = of("whole", NARROW, 1024, _BF16, training=False)
    assert plan.backward == ()
    assert plan.work.bytes == 2 * (8 * (64 * 64 + 64) + 2 * 1024 * 64)
    assert plan.kept == 0


# --- what runs


def draw(seed: int, act: str) -> tuple[nn.Sequential, Tensor, list[Dense], bool]:
    """A random net with one activation throughout, its input, and its layers as counted."""
    rng = random.Random(seed)
    widths = [rng.randint(1, 90) for _ in range(rng.randint(2, 5))]
    layers: list[nn.Module] = []
    for k, n in itertools.pairwise(widths):
        layers.append(nn.Linear(k, n, bias=rng.random() < 0.7))
        if act != "none" and (len(layers) < 2 * len(widths) - 3 or rng.random() < 0.5):
            layers.append(module(act, n if rng.random() < 0.5 else 1))
    x = torch.randn(rng.randint(1, 200), widths[0], requires_grad=rng.random() < 0.5)
    return nn.Sequential(*layers), x, [dense(layer) for layer in fused(layers)], x.requires_grad


def module(act: str, slopes: int) -> nn.Module:
    return nn.PReLU(slopes) if act == "prelu" else module_of(act)


def fused(layers: list[nn.Module]) -> list[Layer]:
    found: list[Layer] = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            found.append(Layer(layer.weight, layer.bias))
        else:
            act = from_module(layer)
            assert act is not None
            found[-1] = found[-1]._replace(act=act)
    return found


def dense(layer: Layer) -> Dense:
    slopes = 0 if layer.act.weight is None else layer.act.weight.numel()
    n, k = layer.weight.shape
    return Dense(k, n, layer.bias is not None, layer.act.name, not layer.act.saves_output, slopes)


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes by address: a tensor that comes twice counts once."""
    return {t.data_ptr(): t.numel() * t.element_size() for t in tensors}


class Ops(TorchDispatchMode):
    """What each op of torch's reads and writes; views are no ops."""

    FREE = ("t", "view", "detach", "expand", "_unsafe_view", "empty")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in self.FREE:
            results = out if isinstance(out, tuple) else (out,)
            tensors = [t for t in (*args, *results) if isinstance(t, Tensor)]
            self.found.append((func.overloadpacket.__name__, sum(storages(tensors).values())))
        return out


class Kept:
    """Bytes that the forward's autograd keeps, beside input, output and parameters."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def bytes(self, *others: Tensor) -> int:
        found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors}
        for other in others:
            found.pop(other.untyped_storage().data_ptr(), None)
        return sum(found.values())


@pytest.mark.parametrize("act", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_eager_is_what_torch_does(seed: int, act: str) -> None:
    """Every op with its bytes, in order; and what autograd keeps."""
    net, x, layers, input_grad = draw(seed, act)
    plan = plans.count("eager", layers, len(x), _FP32, _SMS, input_grad=input_grad)
    kept = Kept()
    with Ops() as forward, torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda t: t):
        y = net(x)
    grad = torch.randn_like(y)
    with Ops() as backward:
        y.backward(grad)
    for counted, ops in ((plan.forward, forward), (plan.backward, backward)):
        # The order of dX and dW of a layer is autograd's own.
        assert sorted(one.bytes for one in counted) == sorted(moved for _, moved in ops.found)
    assert plan.kept == kept.bytes(x, y, *net.parameters())


def moved(launch: Launch) -> int:
    """Bytes of the tensors that a launch takes, but for weights that only tell whose gradient it is."""
    idle = "w" if launch.name == "linear_backward_kernel" and launch.named["dx"] is None else ""
    taken = [a for name, a in zip(launch.kernel.arg_names, launch.args) if name != idle]
    return sum(storages([t for t in flat(taken) if t.numel()]).values())


@pytest.mark.parametrize("act", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_layers_are_what_our_kernels_take(seed: int, act: str, device: str) -> None:
    """Every launch with the bytes of its tensors, in order; and what autograd keeps."""
    net, x, layers, input_grad = draw(seed, act)
    net, x = net.to(device), x.detach().to(device).requires_grad_(input_grad)
    plan = plans.count("layers", layers, len(x), _FP32, _SMS, input_grad=input_grad)
    kept = Kept()
    with backends.use("triton"), record_launches() as launches:
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda t: t):
            y = chain(x, fused(list(net)), "layers")
        y.backward(torch.randn_like(y))
    counted = [launch for launch in plan.launches if launch.name != "sum"]  # of a PReLU's one slope: torch's
    assert [f"{one.name}_kernel" for one in counted] == [one.name for one in launches]
    assert [one.bytes for one in counted] == [moved(one) for one in launches]
    assert plan.kept == kept.bytes(x, y, *net.parameters())


@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("plan", ["whole", "recompute"])
def test_whole_is_what_our_kernels_take(plan: str, act: str, input_grad: bool, device: str) -> None:
    """Every launch with the bytes of the tensors that it reads or writes."""
    widths = (20, 33, 33, 7)
    weights, biases = (
        [torch.randn(*shape, device=device).requires_grad_() for shape in shapes]
        for shapes in ([(n, k) for k, n in itertools.pairwise(widths)], [(n,) for n in widths[1:]])
    )
    x = torch.randn(100, 20, device=device).requires_grad_(input_grad)
    with backends.use("triton"), record_launches() as launches:
        y = functional.mlp(x, weights, biases, act, plan=plan)  # type: ignore[call-arg]
        y.backward(torch.randn_like(y))
    counted = plans.count(
        plan, plans.chain(widths, act, keeps_z=act == "gelu"), 100, _FP32, _SMS, input_grad=input_grad
    )
    # The chain of gradients takes the layers as they are, of which it does not read every tensor.
    idle = biases[-1:] if plan == "recompute" else [*biases, *([] if input_grad else weights[:1])]
    assert [f"{one.name}_kernel" for one in counted.launches] == [one.name for one in launches]
    for one, launch in zip(counted.launches, launches):
        found = storages([t for t in flat(launch.args) if t.numel()])
        for tensor in idle if launch.name == "mlp_backward_kernel" else []:
            del found[tensor.data_ptr()]
        assert one.bytes == sum(found.values()), one.name


def flat(arguments: Iterable[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, (tuple, list)):
            yield from flat(argument)


def test_a_long_batch_is_split_as_the_kernels_split_it(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    for _ in range(200):
        rows, tiles, sms = rng.randint(1, 1 << 20), rng.randint(1, 300), rng.choice([108, 132, 304])
        assert plans.splits(rows, tiles, sms) == split_batch(rows, tiles, 64, sms)[0]
    monkeypatch.setattr(plans, "tile", lambda k, n: (64, 64))  # the interpreter's
    if device == "cuda":
        pytest.skip("on a GPU its multiprocessors count")
    x, w = torch.randn(1100, 20), torch.randn(30, 20, requires_grad=True)
    with backends.use("triton"), record_launches() as launches:
        chain(x, [Layer(w, None)]).sum().backward()
    plan = plans.count("layers", [Dense(20, 30, bias=False)], 1100, _FP32, _SMS)
    assert [f"{one.name}_kernel" for one in plan.launches] == [one.name for one in launches]
    workspace = 2 * 672 * 4  # 30 * 20 + 2 * 30, rounded up
    assert plan.launches[-1].bytes == workspace + 30 * 20 * 4


@pytest.mark.parametrize("shape", [(64, 64), (784, 256), (1024, 1024)])
def test_tiles_are_the_tables(shape: tuple[int, int]) -> None:
    for family in ("linear", "linear_backward"):
        tile = configs.TABLE[family, "sm_90", "half", configs.bucket(*shape)]
        assert plans.tile(*shape) == (tile.BLOCK_M, tile.BLOCK_N)


@pytest.mark.parametrize("plan", plans.PLANS)
@pytest.mark.parametrize("training", [True, False])
def test_more_of_anything_takes_longer(plan: str, training: bool) -> None:
    """A longer batch, a wider or a deeper net: not less of anything, and not a lower floor."""
    device = DEVICES["h200"]

    def measures(widths: tuple[int, ...], batch: int) -> list[float]:
        found = of(plan, widths, batch, _BF16, training=training)
        total = found.work
        return [
            total.operations, total.bytes, total.cached, total.launches, total.footprint, found.kept,
            found.floor(device, "half"),
        ]  # fmt: skip

    for grow in (
        [(NARROW, 1 << power) for power in range(0, 21)],
        [((width,) * 5, 1 << 14) for width in (16, 32, 64, 128)],
        [((64,) * depth, 1 << 14) for depth in range(3, 10)],
    ):
        for small, large in itertools.pairwise(measures(*one) for one in grow):
            assert all(a <= b for a, b in zip(small[:-1], large[:-1]))
            assert small[-1] <= 1.001 * large[-1]  # of few rows, more may take more multiprocessors
