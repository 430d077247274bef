"""Small nets as a whole, such as fields and policies use; a layer with dropout; a first layer on bytes.

Forward and backward start from a given gradient of the output and end with the input's: what a field's or a
policy's loss needs. Work and plans are counted by `fastmlp.costs.plans`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import functional
from fastmlp.costs import choice, devices, floors, plans

from . import peers
from .cases import TABULAR, Case, net
from .peers import EXACT, JAX, OURS, OURS_PLANS, TCNN, Factory, MissingPeerError, as_is
from .timing import Run

FORWARD, TRAINING = "fused MLP forward", "fused MLP forward + backward"
DROPOUT = "linear + ReLU + dropout forward + backward"
QUANTIZED = "first layer of uint8 rows, forward + backward"
#: Nets that people run, with their batch.
NETS = {
    "radiance field": ((32, 64, 64, 64, 64, 4), 1 << 18),
    "distance field": ((3, *[256] * 8, 1), 1 << 16),
    "policy": ((24, 64, 64, 8), 1 << 8),
    "tabular": (TABULAR, 1 << 12),
}
_FUSED_WIDTHS = (16, 32, 64, 128)  # of tiny-cuda-nn's fully fused kernel
_EXAMPLES = 60_000


def cases(device: str, seconds: float) -> Iterator[Case]:
    """Every case; on a CPU only those whose least time is below ``seconds``."""
    gpu = device == "cuda"
    for dtype in (torch.float32, torch.bfloat16) if gpu else (torch.float32,):
        found = [
            mlp(widths, batch, dtype, training, kind, key=True)
            for kind, (widths, batch) in NETS.items()
            for training in (False, True)
        ]
        found.append(dropout((4096, 1024, 1024), dtype))
        found.append(quantized((256, 784, 256), dtype))
        yield from (case for case in found if gpu or _cpu_seconds(case) < seconds)


def _cpu_seconds(case: Case) -> float:
    work, cpu = case.plans.get("eager", case.work), devices.find("cpu")
    return cpu.seconds(work.operations, work.bytes, 0, 0, "ieee")


def mlp(
    widths: Sequence[int], batch: int, dtype: torch.dtype, training: bool, kind: str = "", key: bool = False
) -> Case:
    """The whole net; everything in ``dtype``."""

    def build(device: str) -> dict[str, Factory]:
        x = torch.rand(batch, widths[0], device=device, dtype=dtype).requires_grad_(training)
        grad = torch.randn(batch, widths[-1], device=device, dtype=dtype)

        def run(
            function: Callable[[Tensor], Tensor], leaves: Sequence[Tensor], x: Tensor = x, grad: Tensor = grad
        ) -> Callable[[], object]:
            if training:
                return lambda: torch.autograd.grad(function(x), [x, *leaves], grad)
            return torch.no_grad()(lambda: function(x))

        def exact() -> Run:
            model, double = net(widths).to(device, dtype).double(), x.detach().double()
            double.requires_grad_(training)
            return Run(run(model, list(model.parameters()), double, grad.double()))

        def of_torch(wrap: peers.Wrap) -> Callable[[], object]:
            model = net(widths).to(device, dtype)
            return run(wrap(model), list(model.parameters()))

        def ours(plan: str = "auto") -> Callable[[], object]:
            params: list[Tensor] = list(net(widths).to(device, dtype).parameters())
            weights, biases = params[0::2], params[1::2]
            return run(lambda x: functional.mlp(x, weights, biases, "relu", plan=plan), params)

        found: dict[str, Factory] = {OURS: lambda: Run(ours()), EXACT: exact}
        if device == "cuda":
            found[peers.OURS_GRAPH] = lambda: Run(peers.graphed(ours(), device))
            for plan in OURS_PLANS if training else ("layers", "whole"):
                found[OURS_PLANS[plan]] = lambda plan=plan: Run(ours(plan))  # type: ignore[misc]
        found |= peers.of_torch(of_torch, device)
        found[JAX] = partial(_jax, widths, x.detach(), grad if training else None)
        found[TCNN] = lambda: Run(_tiny_cuda_nn(widths, x.detach(), grad if training else None))
        return found

    gpu = devices.find()  # the one at hand, or what stands in for it
    counted = count(widths, batch, dtype, training, gpu)
    kind_of = devices.operand_kind(dtype)
    least = min(counted.values(), key=lambda plan: plan.floor(gpu, kind_of))
    group = TRAINING if training else FORWARD
    label = f"{kind} {plans.name(widths)}, batch {batch}".strip()
    works = {name: plan.work for name, plan in counted.items()}
    return Case(group, label, dtype, least.work, build, key, works, roundings=4 * len(widths))


def count(
    widths: Sequence[int], batch: int, dtype: torch.dtype, training: bool, gpu: devices.Device
) -> dict[str, plans.Plan]:
    """Every plan that the net fits on ``gpu``."""
    layers = plans.chain(widths)
    names = ["eager", "layers"]
    if choice.whole_misfit(layers, devices.operand_kind(dtype)) is None:
        names += ["whole", "recompute"] if training else ["whole"]
    return {
        name: plans.count(name, layers, batch, dtype, gpu.sms, training, input_grad=training)
        for name in names
    }


def _jax(widths: Sequence[int], x: Tensor, grad: Tensor | None) -> Run:
    peer = peers.jax_peer(x.device.type)
    return peer.inference(widths, x) if grad is None else peer.gradients(widths, x, grad)


def _tiny_cuda_nn(widths: Sequence[int], x: Tensor, grad: Tensor | None) -> Callable[[], object]:
    """Its net of these widths, without biases and in fp16; its binding takes the input in float32."""
    package = peers.library("tinycudann", _TCNN_PACKAGE, x.device.type)
    hidden = set(widths[1:-1])
    if len(hidden) != 1:
        raise MissingPeerError("its hidden layers have one width")
    width = hidden.pop()
    config = {
        "otype": "FullyFusedMLP" if width in _FUSED_WIDTHS else "CutlassMLP",
        "activation": "ReLU",
        "output_activation": "None",
        "n_neurons": width,
        "n_hidden_layers": len(widths) - 2,
    }
    model = package.Network(widths[0], widths[-1], config)
    source = x.float().requires_grad_(grad is not None)
    if grad is None:
        return torch.no_grad()(lambda: model(source))
    upstream, leaves = grad.to(model.dtype), [source, *model.parameters()]
    return lambda: torch.autograd.grad(model(source), leaves, upstream)


_TCNN_PACKAGE = "git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch"


def dropout(shape: tuple[int, int, int], dtype: torch.dtype) -> Case:
    """A hidden layer in training; eager stores the mask."""
    m, k, n = shape

    def build(device: str) -> dict[str, Factory]:
        x = torch.randn(m, k, device=device, dtype=dtype).requires_grad_()
        grad = torch.randn(m, n, device=device, dtype=dtype)

        def make(wrap: peers.Wrap, kind: type[nn.Sequential] = nn.Sequential) -> Callable[[], object]:
            model = kind(nn.Linear(k, n), nn.ReLU(), nn.Dropout(0.5)).to(device, dtype)
            function, leaves = wrap(model), [x, *model.parameters()]
            return lambda: torch.autograd.grad(function(x), leaves, grad)

        return {OURS: lambda: Run(make(as_is, fastmlp.Sequential)), **peers.of_torch(make, device)}

    return Case(DROPOUT, f"{m} x {k} -> {n}", dtype, floors.linear(m, k, n, dtype, backward=True), build)


def quantized(shape: tuple[int, int, int], dtype: torch.dtype) -> Case:
    """Rows of images gathered by their index, scaled to [0, 1] and multiplied."""
    m, k, n = shape

    def build(device: str) -> dict[str, Factory]:
        data = torch.randint(256, (_EXAMPLES, k), dtype=torch.uint8, device=device)
        index = torch.randint(_EXAMPLES, (m,), device=device)
        grad = torch.randn(m, n, device=device, dtype=dtype)

        def run(model: nn.Module, gathered: Callable[[], Tensor], wrap: peers.Wrap) -> Callable[[], object]:
            function, leaves = wrap(lambda: model(gathered())), list(model.parameters())
            return lambda: torch.autograd.grad(function(), leaves, grad)

        def layers() -> tuple[nn.Module, nn.Module]:
            return nn.Linear(k, n).to(device, dtype), nn.ReLU()

        def ours() -> Callable[[], object]:
            model = fastmlp.Sequential(fastmlp.Dequantize(1 / 255), *layers())
            return run(model, lambda: data.index_select(0, index), as_is)

        def of_torch(wrap: peers.Wrap) -> Callable[[], object]:
            model = nn.Sequential(*layers())
            return run(model, lambda: data.index_select(0, index).to(dtype) / 255, wrap)

        return {OURS: lambda: Run(ours()), **peers.of_torch(of_torch, device)}

    work = floors.gathered_linear(m, k, n, dtype, torch.uint8)
    return Case(QUANTIZED, f"{m} of {_EXAMPLES} x {k} -> {n}", dtype, work, build)
