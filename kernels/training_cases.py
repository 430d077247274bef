"""The training engine's launches, for the compilation report and the tuner: a whole step, a whole epoch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmlp.kernels import configs
from fastmlp.kernels.epoch import epoch
from fastmlp.kernels.launch import arch_of, cdiv, num_sms
from fastmlp.kernels.network import ALIGNMENT, LayerMemory, Table, table
from fastmlp.kernels.optimizers import HYPERS
from fastmlp.kernels.quantized import Number
from fastmlp.kernels.step import Task, train_step
from fastmlp.kernels.update import Accumulators, update


@dataclass
class Problem:
    """A network with everything that its training needs; learning rates are 0, so that it stays."""

    layers: list[LayerMemory]
    task: Task
    x: Tensor
    batch: int
    y: Tensor
    order: Tensor
    partial: Tensor
    hypers: Tensor
    barrier: Tensor
    dequantize: tuple[Tensor, Tensor] | None = None  # scale and shift, which no epoch takes
    _tables: dict[configs.Tile, tuple[Table, Accumulators]] = field(default_factory=dict)

    @property
    def copies(self) -> bool:
        """Whether products read what they multiply in their own dtype, as an epoch's must."""
        return all(layer.copy.dtype == self.task.dtype for layer in self.layers)

    @property
    def scale(self) -> Number:
        """Of uint8 pixels."""
        if self.dequantize is not None:
            return self.dequantize[0]
        return 1 / 255 if self.x.dtype == torch.uint8 else 1.0

    def prepared(self, family: str) -> tuple[Table, Accumulators, configs.Tile]:
        """The table for the family's tile, which may be one that the tuner tries."""
        kind = configs.precision_class(self.task.dtype, self.task.precision)
        largest = max((layer.weight for layer in self.layers), key=torch.Tensor.numel)
        tile = configs.lookup(family, arch_of(self.x), kind, *largest.shape)
        if tile not in self._tables:
            net = table(self.layers, tile.BLOCK_M, tile.BLOCK_N, tile.BLOCK_K)
            zeros = partial(torch.zeros, device=self.x.device)
            into = Accumulators(zeros(()), zeros(2, dtype=torch.float64), zeros(net.tiles, dtype=torch.int32))
            self._tables[tile] = net, into
        return *self._tables[tile], tile

    def step(self) -> None:
        """The launches of one step."""
        net, into, tile = self.prepared("update")
        rows = self.order[: self.batch]
        train_step(
            net,
            self.task,
            self.x,
            self.y,
            rows,
            self.scale,
            self.partial,
            self.hypers[0],
            into,
            tile,
            None if self.dequantize is None else self.dequantize[1],
        )

    def update(self) -> None:
        """The last of them."""
        net, into, tile = self.prepared("update")
        task = self.task
        update(
            net,
            self.x,
            self.order[: self.batch],
            self.scale,
            self.partial,
            task.programs(net, self.batch),
            self.hypers[0],
            into,
            rule=task.rule,
            mean=task.reduction == "mean",
            tile=tile,
            dtype=task.dtype,
            precision=task.precision,
        )

    def epoch(self) -> None:
        """The cooperative launch of an epoch."""
        net, into, tile = self.prepared("epoch")
        self.barrier.zero_()
        epoch(
            net,
            self.task,
            self.x,
            self.y,
            self.order,
            self.scale,
            self.batch,
            self.partial,
            self.hypers,
            into,
            self.barrier,
            tile=tile,
            programs=num_sms(self.x.device.index or 0),
        )


def problem(
    widths: tuple[int, ...],
    compute: torch.dtype,
    precision: str,
    *,
    batch: int = 256,
    act: str = "relu",
    rule: str = "sgd",
    loss: str = "cross_entropy",
    bias: bool = True,
    class_weight: bool = False,
    smoothing: float = 0.0,
    reduction: str = "mean",
    pixels: bool = True,
    pdl: bool = False,
    copies: bool = True,
    affine: bool = False,
    device: str = "meta",
    examples: int = 60000,
) -> Problem:
    """A problem of uint8 pixels, or else float32 features."""

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(std=0.05)

    def padded(features: int) -> Tensor:
        return random(batch, cdiv(features, ALIGNMENT) * ALIGNMENT, dtype=compute)[:, :features]

    keep_z = act in ("gelu", "gelu_tanh", "silu")
    layers: list[LayerMemory] = []
    for i, (k, n) in enumerate(itertools.pairwise(widths)):
        hidden = i < len(widths) - 2
        y = padded(n) if hidden else None
        weight = random(n, k)
        states = (torch.zeros_like(weight), torch.zeros_like(weight), random(n).zero_(), random(n).zero_())
        layers.append(
            LayerMemory(
                weight,
                random(n) if bias else None,
                random(n, k, dtype=compute) if copies and compute != torch.float32 else weight,
                layers[-1].y if layers else None,
                y,
                padded(n) if keep_z and hidden else y,
                padded(n),
                (None, None, None, None) if rule == "sgd" else states,
                act=act if hidden else "none",
            )
        )
    x = torch.zeros(examples, widths[0], dtype=torch.uint8, device=device)
    labels = torch.zeros(examples, dtype=torch.int64, device=device)
    task = Task(
        loss,
        reduction,
        rule,
        compute,
        precision,
        pdl,
        class_weight=random(widths[-1]).abs() if class_weight else None,
        label_smoothing=smoothing,
    )
    return Problem(
        layers,
        task,
        x.random_(256) if pixels else random(*x.shape),
        batch,
        random(examples, widths[-1]) if loss == "mse" else labels,
        torch.arange(examples, device=device),
        torch.ones(3 * batch, device=device, dtype=torch.float32),
        torch.zeros(cdiv(examples, batch), 1, HYPERS.value, device=device, dtype=torch.float32),
        torch.zeros((), dtype=torch.int64, device=device),
        (random(widths[0]), random(widths[0])) if affine else None,
    )


def timed(part: str, numerics: Any, shape: tuple[int, int, int], device: str = "cuda") -> Callable[[], None]:
    """What the tuner times of a net with one hidden layer: ``part`` is "update" or "epoch"."""
    m, n, k = shape
    widths = (k, n, 10)
    made = problem(widths, numerics.compute, numerics.precision, batch=m, device=device, examples=40 * m)
    return getattr(made, part)


BOOK = (784, 256, 10)
DEEP = (784, 1024, 1024, 1024, 10)
_RAGGED = (50, 37, 23, 7)  # nothing a multiple of 16


_DTYPES = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),
}


def problems() -> Iterator[tuple[str, str, Problem]]:
    """Variant, dtype and problem: the book's network in every dtype, and every branch of the kernels once."""
    for dtype, numerics in _DTYPES.items():
        yield "book sgd", dtype, problem(BOOK, *numerics)
        yield "deep sgd", dtype, problem(DEEP, *numerics, batch=1024)
        yield "book mse", dtype, problem(BOOK, *numerics, loss="mse")
    for dtype in ("bf16", "fp32"):
        numerics = _DTYPES[dtype]
        yield "book momentum", dtype, problem(BOOK, *numerics, rule="momentum")
        yield "book adam gelu", dtype, problem(BOOK, *numerics, rule="adam", act="gelu")
        yield (
            "ragged adam tanh no-bias",
            dtype,
            problem(_RAGGED, *numerics, rule="adam", bias=False, act="tanh"),
        )
    bf16 = _DTYPES["bf16"]
    yield "deep adam silu", "bf16", problem(DEEP, *bf16, rule="adam", act="silu")
    every: dict[str, Any] = {"rule": "nesterov", "class_weight": True, "smoothing": 0.1, "reduction": "sum"}
    yield "book weight smoothing floats", "bf16", problem(BOOK, *bf16, pixels=False, **every)
    yield "book programmatic launch", "bf16", problem(BOOK, *bf16, pdl=True)
    for dtype in ("bf16", "fp32"):
        yield "book affine", dtype, problem(BOOK, *_DTYPES[dtype], affine=True)
    yield "deep affine adam", "bf16", problem(DEEP, *bf16, affine=True, rule="adam", batch=1024)
    yield "book no copies", "bf16", problem(BOOK, *bf16, copies=False)
    yield "deep no copies", "bf16", problem(DEEP, *bf16, copies=False, batch=1024)
