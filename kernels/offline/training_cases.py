"""The training engine's launches, for the compilation report and the tuner: a whole step, a whole epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmlp.kernels.common.arguments import Source
from fastmlp.kernels.common.quantized import source
from fastmlp.kernels.launch import cdiv, num_sms
from fastmlp.kernels.loss.head import targets
from fastmlp.kernels.offline.case import HEAVY, NUMERICS, Numerics, Shape, normal
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.training.epoch import epoch
from fastmlp.kernels.training.layer_table import ALIGNMENT, LayerMemory, Table, table
from fastmlp.kernels.training.optimizers import HYPERS
from fastmlp.kernels.training.recipe import Recipe
from fastmlp.kernels.training.step import train_step
from fastmlp.kernels.training.update import Accumulators, update


@dataclass(frozen=True)
class Kind:
    """What differs from problem to problem."""

    widths: tuple[int, ...]
    batch: int = 256
    act: str = "relu"
    rule: str = "sgd"
    loss: str = "cross_entropy"
    reduction: str = "mean"
    smoothing: float = 0.0
    class_weight: bool = False
    bias: bool = True
    pixels: bool = True  # uint8, or else float32 features
    affine: bool = False  # dequantized by a scale and a shift for each feature, which no epoch takes
    copies: bool = True  # products read what they multiply in their own dtype, as an epoch's must
    pdl: bool = False


@dataclass
class Problem:
    """A network with everything that its training needs; learning rates are 0, so that it stays as it is."""

    kind: Kind
    recipe: Recipe
    layers: list[LayerMemory]
    x: Source
    y: Source
    partial: Tensor
    hypers: Tensor
    barrier: Tensor
    _tables: dict[configs.Tile, tuple[Table, Accumulators]] = field(default_factory=dict)

    def prepared(self, family: str) -> tuple[Table, Accumulators, configs.Tile]:
        """The table for the family's tile, which may be one that the tuner tries."""
        largest = max((layer.weight for layer in self.layers), key=torch.Tensor.numel)
        tile = configs.for_weight(family, largest, self.recipe.dtype, self.recipe.precision)
        if tile not in self._tables:
            net = table(self.layers, tile.BLOCK_M, tile.BLOCK_N)
            zeros = partial(torch.zeros, device=largest.device)
            counters = zeros(net.tiles, dtype=torch.int32)
            into = Accumulators(self.partial, zeros(()), zeros(2, dtype=torch.float64), counters)
            self._tables[tile] = net, into
        return *self._tables[tile], tile

    def batch(self, data: Source) -> Source:
        """The first batch of the data."""
        return data._replace(index=data.index[: self.kind.batch])

    def step(self) -> None:
        """The launches of one step."""
        net, into, tile = self.prepared("update")
        train_step(net, self.recipe, self.batch(self.x), self.batch(self.y), self.hypers[0], into, tile)

    def update(self) -> None:
        """The last of them."""
        net, into, tile = self.prepared("update")
        batch = self.kind.batch
        programs = self.recipe.programs(net, batch)
        update(net, self.recipe, self.batch(self.x), batch, self.hypers[0], into, programs, tile)

    def epoch(self) -> None:
        """The cooperative launch of an epoch."""
        net, into, tile = self.prepared("epoch")
        self.barrier.zero_()
        into = into._replace(arrived=self.barrier)
        programs = num_sms(self.barrier.device.index or 0)
        epoch(net, self.recipe, self.x, self.y, self.kind.batch, self.hypers, into, tile, programs)


def problem(
    kind: Kind, compute: torch.dtype, precision: str, *, device: str = "meta", examples: int
) -> Problem:
    """A problem whose products run in ``compute``."""
    random = partial(normal, device, torch.float32, std=0.05)

    def padded(features: int) -> Tensor:
        size = cdiv(features, ALIGNMENT) * ALIGNMENT
        return normal(device, compute, kind.batch, size, std=0.05)[:, :features]

    layers: list[LayerMemory] = []
    inputs, outputs = kind.widths[0], kind.widths[-1]
    for i, (k, n) in enumerate(itertools.pairwise(kind.widths)):
        hidden = i < len(kind.widths) - 2
        y = padded(n) if hidden else None
        weight = random(n, k)
        states = (torch.zeros_like(weight), torch.zeros_like(weight), random(n).zero_(), random(n).zero_())
        layers.append(
            LayerMemory(
                weight,
                random(n) if kind.bias else None,
                weight.to(compute) if kind.copies else weight,
                layers[-1].y if layers else None,
                y,
                padded(n) if kind.act in HEAVY and hidden else y,
                padded(n),
                (None, None, None, None) if kind.rule == "sgd" else states,
                act=kind.act if hidden else "none",
            )
        )
    x = torch.zeros(examples, inputs, dtype=torch.uint8, device=device)
    scale, shift = (
        (random(inputs), random(inputs)) if kind.affine else (1 / 255 if kind.pixels else 1.0, None)
    )
    labels = torch.empty(examples, dtype=torch.int64, device=device).random_(outputs)
    order = torch.arange(examples, device=device).flip(0)
    class_weight = random(outputs).abs() if kind.class_weight else None
    numbers = kind.reduction, kind.rule, compute, precision, kind.pdl, class_weight
    recipe = Recipe(kind.loss, *numbers, label_smoothing=kind.smoothing)
    return Problem(
        kind,
        recipe,
        layers,
        source(x.random_(256) if kind.pixels else random(*x.shape), order, scale, shift),
        targets(random(examples, outputs) if kind.loss == "mse" else labels, order),
        torch.ones(3 * kind.batch, device=device, dtype=torch.float32),
        torch.zeros(cdiv(examples, kind.batch), 1, HYPERS.value, device=device, dtype=torch.float32),
        torch.zeros((), dtype=torch.int64, device=device),
    )


@dataclass(frozen=True)
class Timed:
    """A part of the training, "update" or "epoch", as a function."""

    problem: Problem
    part: str

    def __call__(self) -> None:
        """Launch it."""
        getattr(self.problem, self.part)()

    def result(self) -> list[Tensor]:
        """How it changes the weights at a learning rate; they are put back."""
        problem = self.problem
        weights = [layer.weight for layer in problem.layers]
        biases = [layer.bias for layer in problem.layers if layer.bias is not None]
        written = [*weights, *biases, *(layer.copy for layer in problem.layers)]
        before = [tensor.clone() for tensor in written]
        problem.hypers[:, :, 0] = 1e-3
        self()
        problem.hypers.zero_()
        moved = [weight - was for weight, was in zip(weights, before)]
        torch._foreach_copy_(written, before)
        return moved


_TIMED_STEPS = 40  # of an epoch


def timed(part: str, numerics: Numerics, shape: Shape, device: str = "cuda") -> Timed:
    """What the tuner times of a net with one hidden layer: ``part`` is "update" or "epoch"."""
    (m, n, k), (_, compute, precision) = shape, numerics
    net = problem(Kind((k, n, 10), batch=m), compute, precision, device=device, examples=_TIMED_STEPS * m)
    return Timed(net, part)


BOOK = (784, 256, 10)
DEEP = (784, 1024, 1024, 1024, 10)
_RAGGED = (50, 37, 23, 7)  # nothing a multiple of 16
_FOURS = (100, 36, 20, 7)  # but rows of float32 weights are multiples of 16 bytes


def problems(device: str = "meta") -> Iterator[tuple[str, str, Problem]]:
    """Variant, dtype and problem: the book's network in every dtype, and every branch of the kernels once."""

    def of(variant: str, kind: Kind, *dtypes: str) -> Iterator[tuple[str, str, Problem]]:
        for dtype in dtypes:
            examples = 4 * kind.batch + 96  # the last step is smaller
            _, compute, precision = NUMERICS[dtype]
            yield variant, dtype, problem(kind, compute, precision, device=device, examples=examples)

    for dtype in ("bf16", "fp16", "tf32", "fp32"):
        yield from of("book sgd", Kind(BOOK), dtype)
        yield from of("deep sgd", Kind(DEEP, 1024), dtype)
        yield from of("book mse", Kind(BOOK, loss="mse"), dtype)
    for dtype in ("bf16", "fp32"):
        yield from of("book momentum", Kind(BOOK, rule="momentum"), dtype)
        yield from of("book adam gelu", Kind(BOOK, rule="adam", act="gelu"), dtype)
        yield from of("ragged adam tanh no-bias", Kind(_RAGGED, rule="adam", bias=False, act="tanh"), dtype)
    yield from of("fours sgd", Kind(_FOURS), "fp32")
    yield from of("deep adam silu", Kind(DEEP, rule="adam", act="silu"), "bf16")
    every: dict[str, Any] = {"rule": "nesterov", "class_weight": True, "smoothing": 0.1, "reduction": "sum"}
    yield from of("book weight smoothing floats", Kind(BOOK, pixels=False, **every), "bf16")
    yield from of("book programmatic launch", Kind(BOOK, pdl=True), "bf16")
    yield from of("book affine", Kind(BOOK, affine=True), "bf16", "fp32")
    yield from of("deep affine adam", Kind(DEEP, 1024, affine=True, rule="adam"), "bf16")
    yield from of("book no copies", Kind(BOOK, copies=False), "bf16")
    yield from of("deep no copies", Kind(DEEP, 1024, copies=False), "bf16")
