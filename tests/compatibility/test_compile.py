"""torch.compile: one graph, for every batch size, with eager's numbers."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import fastmlp
from fastmlp import backends
from fastmlp import functional as FF
from tests.numerics import assert_as_good_as_torch

GROUP = "torch.compile and export"
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles C++ here")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def one_graph(function: Callable[..., Any], compiler: str = "aot_eager", **options: Any) -> tuple[Any, Any]:
    """``function`` compiled without a graph break, and a counter of its graphs."""
    counter = CompileCounterWithBackend(compiler)
    return torch.compile(function, fullgraph=True, backend=counter, **options), counter


def results(function: Callable[..., Tensor], tensors: list[Any]) -> list[Tensor]:
    """The value, and the gradients of those tensors that want one."""
    torch.manual_seed(5)
    value = function(*tensors)
    upstream = torch.randn_like(value)
    wanted = [t for t in tensors if isinstance(t, Tensor) and t.requires_grad]
    return [value, *torch.autograd.grad(value, wanted, upstream)]


def check(function: Callable[..., Tensor], *tensors: Any, compiler: str = "aot_eager") -> None:
    """Compiled and eager agree, bit for bit: they run the same kernels or the same ops."""
    compiled, counter = one_graph(function, compiler)
    for found, expected in zip(results(compiled, list(tensors)), results(function, list(tensors))):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert counter.frame_count == 1


def leaf(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_()


def with_parameters(net: nn.Module, loss: nn.Module) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The loss as a function of x, y and the parameters, so that all of them are compared."""
    names = [name for name, _ in net.named_parameters()]

    def function(x: Tensor, y: Tensor, *params: Tensor) -> Tensor:
        return loss(torch.func.functional_call(net, dict(zip(names, params)), (x,)), y)

    return function, list(net.parameters())


@pytest.mark.few(2)
@pytest.mark.feature(GROUP, "torch.compile, fullgraph, of an MLP and CrossEntropyLoss")
def test_a_training_step(backend: str, dtype: torch.dtype, device: str) -> None:
    net = fastmlp.MLP(12, [8, 3]).to(device, dtype)
    loss = fastmlp.CrossEntropyLoss()
    x, y = torch.randn(6, 12, device=device, dtype=dtype), torch.randint(3, (6,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    compiled, counter = one_graph(lambda x, y: loss(net(x), y))
    other = copy.deepcopy(net)
    theirs = torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(3):
        for step, of in ((compiled, optimizer), (lambda x, y: loss(other(x), y), theirs)):
            value = step(x, y)
            of.zero_grad()
            value.backward()
            of.step()
    for mine, eager in zip(net.parameters(), other.parameters()):
        assert torch.equal(mine, eager)
    assert counter.frame_count == 1


@pytest.mark.deep
@pytest.mark.feature(GROUP, "torch.compile by Inductor", dtype="float32")
@needs_compiler
def test_inductor(backend: str, device: str) -> None:
    net = fastmlp.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 3)).to(device)
    function, params = with_parameters(net, fastmlp.CrossEntropyLoss(label_smoothing=0.1))
    x, y = torch.randn(6, 3, 4, device=device), torch.randint(3, (6,), device=device)
    compiled, counter = one_graph(function, "inductor")
    found, eager = results(compiled, [x, y, *params]), results(function, [x, y, *params])
    exact = results(
        with_parameters(copy.deepcopy(net).double(), fastmlp.CrossEntropyLoss(label_smoothing=0.1))[0],
        [x.double(), y, *(p.detach().double().requires_grad_() for p in params)],
    )
    for mine, theirs, truth in zip(found, eager, exact):
        assert_as_good_as_torch(mine, theirs, truth)
    assert counter.frame_count == 1


@pytest.mark.few(2)
@pytest.mark.feature(GROUP, "one graph for every batch size", dtype="float32")
@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("widths", [[8, 3], [260, 3]], ids=["whole", "layers"])
def test_no_recompilation(widths: list[int], dynamic: bool | None, backend: str, device: str) -> None:
    """With torch's default the first batch is taken for the only one, and the second tells: then no more."""
    net = fastmlp.MLP(12, widths, activation_layer=nn.SiLU).to(device)
    loss = fastmlp.CrossEntropyLoss()
    compiled, counter = one_graph(lambda x, y: loss(net(x), y), dynamic=dynamic)
    graphs = []
    many = [] if backend == "triton" else [1025]  # for an interpreter too many
    for batch in (64, 33, 96, 7, 2, 65, *many):
        x, y = torch.randn(batch, 12, device=device), torch.randint(3, (batch,), device=device)
        value = compiled(x, y)
        value.backward()
        torch.testing.assert_close(value, loss(net(x), y), rtol=1e-5, atol=1e-6)
        graphs.append(counter.frame_count)
    assert graphs[-1] == graphs[0 if dynamic else 1]


@pytest.mark.feature(GROUP, "one graph for every batch size", dtype="float32")
def test_weights_of_symbolic_shapes(backend: str, device: str) -> None:
    """With ``dynamic=True`` widths are symbols where weights are no parameters: once no plan was found."""
    v, w = leaf(8, 12, device=device), leaf(3, 8, device=device)

    def function(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return FF.mlp(x, [v, w], activation="tanh")

    compiled, _ = one_graph(function, dynamic=True)
    for batch in (6, 33):
        x = leaf(batch, 12, device=device)
        torch.testing.assert_close(results(compiled, [x, v, w]), results(function, [x, v, w]))


@pytest.mark.feature(GROUP, "dropout, with eager's mask for eager's seed", dtype="float32")
def test_dropout(backend: str, device: str) -> None:
    net = fastmlp.Sequential(nn.Linear(20, 40), nn.LeakyReLU(0.2), nn.Dropout(0.4), nn.Linear(40, 3)).to(
        device
    )
    function, params = with_parameters(net, nn.CrossEntropyLoss())
    check(function, torch.randn(9, 20, device=device), torch.randint(3, (9,), device=device), *params)


@pytest.mark.feature(GROUP, "cross_entropy, inplace", dtype="float32")
def test_inplace(backend: str, device: str) -> None:
    x, y = leaf(6, 5, device=device), torch.randint(5, (6,), device=device)
    check(lambda x, y: FF.cross_entropy(x * 1, y, inplace=True), x, y)


@pytest.mark.feature(GROUP, "linear_cross_entropy in tiles, of every batch size", dtype="float32")
def test_linear_cross_entropy(backend: str, device: str) -> None:
    """To eager's numbers, but for the order of sums."""

    def function(x: Tensor, w: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return FF.linear_cross_entropy(x, w, y, linear_bias=b, workspace=3000)

    compiled, counter = one_graph(function, dynamic=True)
    graphs = []
    for rows in (7, 4):
        tensors = [leaf(*shape, device=device) for shape in ((rows, 12), (300, 12), (300,))]
        y = torch.randint(300, (rows,), device=device)
        torch.testing.assert_close(results(compiled, [*tensors, y]), results(function, [*tensors, y]))
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[1]


@pytest.mark.few(1)
@pytest.mark.feature(GROUP, "under autocast", dtype="float32")
def test_autocast(backend: str, device: str) -> None:
    net = fastmlp.MLP(12, [300, 3]).to(device)
    function, params = with_parameters(net, fastmlp.CrossEntropyLoss())

    def cast(*args: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return function(*args)

    check(cast, torch.randn(6, 12, device=device), torch.randint(3, (6,), device=device), *params)


@pytest.mark.feature(GROUP, "without gradients, and in evaluation", dtype="float32")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("backend", ["auto", "torch", "triton"])
def test_inference(backend: str, mode: Any, device: str) -> None:
    net = fastmlp.MLP(12, [8, 8, 3], dropout=0.3, activation_layer=nn.GELU).to(device).eval()
    with backends.use(backend), mode():
        compiled, counter = one_graph(net)
        x = torch.randn(6, 12, device=device)
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-6, atol=1e-6)
        assert counter.frame_count == 1


@pytest.mark.few(1)
@pytest.mark.feature(
    GROUP, "the modules: LinearAct, Dequantize, LinearCrossEntropyLoss, z_loss", dtype="float32"
)
def test_modules(backend: str, device: str) -> None:
    act = fastmlp.LinearAct(12, 7, activation=nn.PReLU()).to(device)
    check(lambda x, w: act(x).sum() + w.sum(), leaf(6, 12, device=device), act.weight)
    loss = fastmlp.LinearCrossEntropyLoss(12, 9, bias=True).to(device)
    target = torch.randint(9, (6,), device=device)
    compiled, _ = one_graph(loss)
    torch.testing.assert_close(
        compiled(act.weight[:6], target), loss(act.weight[:6], target), rtol=1e-6, atol=1e-6
    )
    net = fastmlp.Sequential(
        fastmlp.Dequantize(1 / 255), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    function, params = with_parameters(net.to(device), fastmlp.CrossEntropyLoss(z_loss=1e-4))
    pixels = torch.randint(256, (6, 3, 4), device=device, dtype=torch.uint8)
    target = torch.randint(3, (6,), device=device)
    found, eager = (results(f, [pixels, target, *params]) for f in (one_graph(function)[0], function))
    for a, b in zip(found, eager):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.few(1)
@pytest.mark.feature(GROUP, "torch.func inside of a compiled function", dtype="float32")
def test_transforms_inside(backend: str, device: str) -> None:
    net = fastmlp.MLP(4, [5, 3], activation_layer=nn.Tanh).to(device)
    params = {k: v.detach() for k, v in net.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return FF.cross_entropy(torch.func.functional_call(net, params, (x[None],)), y[None])

    x, y = torch.randn(6, 4, device=device), torch.randint(3, (6,), device=device)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
    compiled, _ = one_graph(each)
    for name, grads in compiled(params, x, y).items():
        torch.testing.assert_close(grads, each(params, x, y)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.feature(GROUP, 'double backward with backend="eager"', dtype="float32")
@pytest.mark.parametrize("plan", ["layers", "whole", "recompute"])
def test_double_backward(plan: str, backend: str, device: str) -> None:
    x, v, w = leaf(5, 4, device=device), leaf(6, 4, device=device), leaf(3, 6, device=device)
    y = torch.randint(3, (5,), device=device)

    def penalty(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        (dx,) = torch.autograd.grad(function(x, v, w), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (x, v, w))

    def loss(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return FF.cross_entropy(FF.mlp(x, [v, w], activation="tanh", plan=plan), y)

    for mine, eager in zip(penalty(one_graph(loss, "eager")[0]), penalty(loss)):
        torch.testing.assert_close(mine, eager, rtol=1e-5, atol=1e-7)


@pytest.mark.few(1)
@pytest.mark.feature(GROUP, "fuse, a compiled submodule, and TF32 changed afterwards", dtype="float32")
def test_surroundings(backend: str, device: str) -> None:
    """Every setting that a graph depends on is guarded."""
    net = fastmlp.fuse(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))).to(device)
    net[0].compile(backend="eager")
    compiled, counter = one_graph(net)
    x = torch.randn(6, 12, device=device)
    torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-6)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-2, atol=1e-2)
        other = "torch" if backend == "triton" else "triton"
        with backends.use(other):
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-2, atol=1e-2)
    finally:
        torch.set_float32_matmul_precision(before)
    assert counter.frame_count == 3


@pytest.mark.feature(GROUP, "CUDA graphs by mode=reduce-overhead", dtype="float32")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("width", [8, 300])
def test_cuda_graphs(width: int) -> None:
    """No op waits for the device or allocates outside of the graph's pool."""
    net = fastmlp.MLP(12, [width, 3]).cuda()
    loss = fastmlp.CrossEntropyLoss()
    compiled = torch.compile(lambda x, y: loss(net(x), y), fullgraph=True, mode="reduce-overhead")
    for _ in range(4):
        x, y = torch.randn(64, 12, device="cuda"), torch.randint(3, (64,), device="cuda")
        torch.compiler.cudagraph_mark_step_begin()
        grads = torch.autograd.grad(compiled(x, y), list(net.parameters()))
        for found, eager in zip(grads, torch.autograd.grad(loss(net(x), y), list(net.parameters()))):
            torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-6)
