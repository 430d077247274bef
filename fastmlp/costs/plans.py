"""What a chain of linear layers takes by each plan, launch by launch.

- ``eager``: torch's own ops: a product, an activation, their backwards.
- ``layers``: one kernel a layer forward and one backward (`fastmlp.kernels.linear.forward`).
- ``whole``: one kernel forward and at most three backward (`fastmlp.kernels.mlp`); the forward leaves what
  the backward needs.
- ``recompute``: the same, but the forward leaves nothing and the backward runs it again.

A launch reads each tensor through memory once and writes each result once. What several of its programs read
goes through the cache for each of them: that bounds narrow layers. Only products count as operations.
docs/cost.md has the formulae.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastmlp.activations import TABLE
from fastmlp.costs.devices import Device
from fastmlp.costs.floors import Work

PLANS = ("eager", "layers", "whole", "recompute")
#: Rows of the batch that one program of the whole-network kernels takes through all layers, by bytes of an
#: element: `fastmlp.kernels.tiles.configs` has the tiles, which differ a little between architectures.
WHOLE_ROWS = {2: 64, 4: 32}
#: torch keeps the input of these for its backward; ours keep the output of a leaky ReLU.
_TORCH_KEEPS_INPUT = {"leaky_relu", *(row.name for row in TABLE.values() if not row.saves_output)}
_ALIGNMENT = 16  # of the columns that the whole-network kernels save, and of a split's part of a workspace
_REDUCTION = 64  # rows of the batch in one step of a dW tile
_SPLIT = 512  # the fewest rows of the batch that one program of dW reduces
_FLOAT32 = 4


class Dense(NamedTuple):
    """A linear layer and its activation, as far as counting goes."""

    k: int  # input features
    n: int  # output features
    bias: bool = True
    act: str = "none"  # a name of `fastmlp.activations.NAMES`
    keeps_z: bool = False  # f' is computed from f's input in our kernels
    slopes: int = 0  # a PReLU's
    dropout: bool = False
    slope: float = 0.0  # a leaky ReLU's
    trained: bool = True  # the weight wants a gradient

    @property
    def params(self) -> int:
        """Elements of weight and bias."""
        return self.n * self.k + self.n * self.bias


class Launch(NamedTuple):
    """One launch."""

    name: str
    operations: int
    bytes: int  # through memory
    cached: int  # through the cache
    programs: int = 0  # 0: as many as the device takes


def passed(name: str, moved: int) -> Launch:
    """A pass over so many bytes, without a product."""
    return Launch(name, 0, moved, moved)


@dataclass(frozen=True, repr=False)
class Plan:
    """The launches of a forward and, in training, of its backward."""

    forward: tuple[Launch, ...]
    backward: tuple[Launch, ...]
    kept: int  # bytes that the forward leaves for the backward, beside input, parameters and output
    footprint: int  # bytes that live at the same time

    @property
    def launches(self) -> tuple[Launch, ...]:
        """All of them, in order."""
        return self.forward + self.backward

    @property
    def work(self) -> Work:
        """Their sum."""
        launches = (Work(one.operations, one.bytes, 1, self.footprint, one.cached) for one in self.launches)
        return sum(launches, Work(0, 0, 0, self.footprint))

    def __repr__(self) -> str:
        launches = f"{len(self.forward)} + {len(self.backward)} launches"
        return f"<Plan: {launches}, {self.kept:,} bytes kept for the backward>"

    def floor(self, device: Device, kind: str) -> float:
        """The least seconds: launches follow one another, each as long as its slowest stream."""
        return sum(device.seconds(*one[1:], kind) for one in self.launches)

    def __add__(self, other: Plan) -> Plan:
        """One chain and then another."""
        return Plan(
            self.forward + other.forward,
            other.backward + self.backward,
            self.kept + other.kept,
            self.footprint + other.footprint,
        )


def chain(widths: Sequence[int], act: str = "relu", bias: bool = True, keeps_z: bool = False) -> list[Dense]:
    """The layers of these widths with ``act`` between them."""
    pairs = list(itertools.pairwise(widths))
    return [
        Dense(k, n, bias, *((act, keeps_z) if i < len(pairs) - 1 else ("none", False)))
        for i, (k, n) in enumerate(pairs)
    ]


def widths_of(layers: Sequence[Dense]) -> tuple[int, ...]:
    """Of the input and of every layer."""
    return (layers[0].k, *(layer.n for layer in layers))


def count(
    plan: str,
    layers: Sequence[Dense],
    batch: int,
    dtype: torch.dtype,
    sms: int,
    training: bool = True,
    input_grad: bool = False,
) -> Plan:
    """What ``plan`` takes for ``batch`` rows, everything in ``dtype`` on ``sms`` multiprocessors.

    Args:
        plan: one of `PLANS`.
        layers: the chain.
        batch: rows, at least 1.
        dtype: of input, parameters and products.
        sms: how many programs run at the same time, at least: it decides how often a sum is split.
        training: count the backward too, from a given gradient of the output.
        input_grad: whether the input needs a gradient.
    """
    counter = {"eager": _Eager, "layers": _Layers, "whole": _Whole, "recompute": _Recompute}[plan]
    return counter(layers, batch, dtype.itemsize, sms, training, training and input_grad).plan()


def name(widths: Sequence[int]) -> str:
    """Such as 784-256-10; equal widths in a row are counted."""
    groups = [(width, len(list(same))) for width, same in itertools.groupby(widths)]
    return "-".join(
        f"{width} (x {times})" if times > 3 else "-".join([str(width)] * times) for width, times in groups
    )


def cdiv(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def tile(k: int, n: int) -> tuple[int, int]:
    """The tile of a layer's kernels, as in `fastmlp.kernels.tiles.configs` for 16-bit operands on sm_90."""
    return (64, 32) if n * k <= 1 << 19 else (128, 128)


def splits(rows: int, tiles: int, sms: int) -> int:
    """How many programs share a sum over the batch: `fastmlp.kernels.linear.backward.split_batch`."""
    wanted = max(1, min(rows // _SPLIT, sms // tiles))
    return cdiv(rows, cdiv(cdiv(rows, wanted), _REDUCTION) * _REDUCTION)


@dataclass
class _Counter:
    """What all plans share."""

    layers: Sequence[Dense]
    m: int  # rows
    e: int  # bytes of an element
    sms: int
    training: bool
    input_grad: bool

    def plan(self) -> Plan:
        if not self.training:
            return Plan(tuple(self.forward()), (), 0, self.footprint())
        return Plan(tuple(self.forward()), tuple(self.backward()), self.kept(), self.footprint())

    def forward(self) -> Iterator[Launch]:
        raise NotImplementedError

    def backward(self) -> Iterator[Launch]:
        raise NotImplementedError

    def kept(self) -> int:
        raise NotImplementedError

    def passing(self) -> int:
        """Elements a row that live for a while only."""
        return 2 * max(layer.n for layer in self.layers)

    def footprint(self) -> int:
        params = sum(layer.params for layer in self.layers)
        ends = self.layers[0].k + self.layers[-1].n
        if not self.training:
            return self.e * (params + self.m * (ends + self.passing()))
        gradients = self.layers[0].k * self.input_grad + self.layers[-1].n
        return self.e * (2 * params + self.m * (ends + gradients + self.passing())) + self.kept()

    def product(self, name: str, m: int, k: int, n: int, others: int = 0) -> Launch:
        """(m, k) by (k, n), with other elements that are read or written once."""
        bm, bn = tile(k, n)
        rows, cols = cdiv(m, bm), cdiv(n, bn)
        moved, cached = m * k + k * n + m * n + others, m * k * cols + k * n * rows + m * n + others
        return Launch(name, 2 * m * k * n, self.e * moved, self.e * cached, rows * cols)

    def stream(self, name: str, elements: int) -> Launch:
        """A pass over so many elements."""
        return passed(name, self.e * elements)


class _Eager(_Counter):
    def forward(self) -> Iterator[Launch]:
        for layer in self.layers:
            yield self.product("addmm", self.m, layer.k, layer.n, layer.n * layer.bias)
            if layer.act != "none":
                yield self.stream(layer.act, 2 * self.m * layer.n + layer.slopes)
            if layer.dropout:  # reads and writes the matrix, and writes a mask of bytes
                yield self.dropout("dropout", layer)

    def backward(self) -> Iterator[Launch]:
        for i, layer in reversed(list(enumerate(self.layers))):
            outputs = self.m * layer.n
            if layer.dropout:
                yield self.dropout("dropout_backward", layer)
            if layer.act != "none":  # a PReLU's slopes have a gradient an element, which is then summed
                matrices = 4 if layer.slopes else 3
                yield self.stream(f"{layer.act}_backward", matrices * outputs + layer.slopes)
            if layer.slopes:
                yield self.stream("sum", outputs + layer.slopes)
            if i > 0 or self.input_grad:
                yield self.product("mm", self.m, layer.n, layer.k)
            # cuBLAS splits a long sum over the batch too; how is not known, so: as ours, and without a trace.
            product = self.product("mm", layer.n, self.m, layer.k)
            yield product._replace(programs=product.programs * splits(self.m, product.programs, self.sms))
            if layer.bias:
                yield self.stream("sum", outputs + layer.n)

    def kept(self) -> int:
        """Each layer's input, and z where torch computes f' from it."""
        inputs = sum(layer.k for layer in self.layers[1:])
        z = sum(layer.n for layer in self.layers if layer.act in _TORCH_KEEPS_INPUT)
        # Behind an activation that keeps its output the dropped one is another matrix; its mask is bytes.
        dropped = [layer for layer in self.layers if layer.dropout]
        outputs = sum(layer.n for layer in dropped if layer.act not in ("none", *_TORCH_KEEPS_INPUT))
        return self.m * (self.e * (inputs + z + outputs) + sum(layer.n for layer in dropped))

    def dropout(self, name: str, layer: Dense) -> Launch:
        """A pass of torch's dropout, forward or backward."""
        return passed(name, self.m * layer.n * (2 * self.e + 1))


class _Layers(_Counter):
    def forward(self) -> Iterator[Launch]:
        for layer in self.layers:
            z = self.m * layer.n * (layer.keeps_z and self.training)
            others = layer.n * layer.bias + layer.slopes + z
            yield self.product("linear_act", self.m, layer.k, layer.n, others)

    def backward(self) -> Iterator[Launch]:
        masked = False  # the gradient that comes is dZ already
        for i, layer in reversed(list(enumerate(self.layers))):
            fold = i > 0 and self.layers[i - 1].act not in ("none", "prelu")
            # What f' is computed from is Y, which is the next layer's input X, or Z, one more matrix.
            previous = fold and self.layers[i - 1].keeps_z
            yield from self._layer(layer, i > 0 or self.input_grad, not masked, fold, previous)
            masked = fold

    def _layer(
        self, layer: Dense, need_input: bool, prologue: bool, fold: bool, previous: bool
    ) -> Iterator[Launch]:
        m, k, n, e = self.m, layer.k, layer.n, self.e
        bm, bn = tile(k, n)
        gradient = m * n * (2 if prologue and layer.act != "none" else 1)  # dY and what f' is computed from
        input_tiles = cdiv(m, bm) * cdiv(k, bn) if need_input else 0
        weight_tiles = cdiv(n, bm) * cdiv(k, bn)
        parts = splits(m, weight_tiles, self.sms)
        moved = gradient + m * k + layer.slopes
        cached = gradient * cdiv(k, bn) + m * k * cdiv(n, bm)  # by the tiles of dW
        if need_input:
            moved += n * k + m * k * (1 + previous)
            cached += gradient * cdiv(k, bn) + n * k * cdiv(m, bm) + m * k * (1 + fold)
        outputs = e * layer.params + _FLOAT32 * n * bool(layer.slopes)
        workspace = parts * cdiv(n * k + 2 * n, _ALIGNMENT) * _ALIGNMENT * _FLOAT32
        out = workspace if parts > 1 else outputs
        operations, programs = 2 * m * k * n * (1 + need_input), input_tiles + weight_tiles * parts
        yield Launch("linear_backward", operations, e * moved + out, e * cached + out, programs)
        if parts > 1:
            yield passed("sum_splits", workspace + outputs)
        if layer.slopes == 1:
            yield passed("sum", _FLOAT32 * (n + 1))

    def kept(self) -> int:
        inputs = sum(layer.k for layer in self.layers[1:])
        return self.e * self.m * (inputs + sum(layer.n for layer in self.layers if layer.keeps_z))


class _Whole(_Counter):
    """A program takes `WHOLE_ROWS` rows through all layers, and reads every weight that they meet."""

    recompute = False

    @property
    def saved(self) -> int:
        """Elements a row of what the hidden layers leave: one matrix each, its columns aligned."""
        return sum(cdiv(layer.n, _ALIGNMENT) * _ALIGNMENT for layer in self.layers[:-1])

    def rows_launch(self, name: str, operations: int, a_row: int, weights: int) -> Launch:
        """``a_row`` elements a row pass through memory, and every program reads ``weights``."""
        programs = cdiv(self.m, WHOLE_ROWS[self.e])
        moved = self.m * a_row + weights
        return Launch(
            name, self.m * operations, self.e * moved, self.e * (moved + (programs - 1) * weights), programs
        )

    def forward(self) -> Iterator[Launch]:
        last = self.layers[-1]
        left = self.saved if self.training and not self.recompute else 0
        out = last.n * (1 + (last.keeps_z and self.training))
        weights = sum(layer.params + layer.slopes for layer in self.layers)
        products = 2 * sum(layer.k * layer.n for layer in self.layers)
        yield self.rows_launch("mlp_forward", products, self.layers[0].k + left + out, weights)

    def backward(self) -> Iterator[Launch]:
        first, last = self.layers[0], self.layers[-1]
        above = self.layers if self.input_grad else self.layers[1:]
        operations = 2 * sum(layer.k * layer.n for layer in above)
        weights = sum(layer.k * layer.n for layer in above) + sum(layer.slopes for layer in self.layers)
        # dY, with an output activation what its f' is computed from and dZ; the saved matrices and every dZ.
        a_row = last.n * (3 if last.act != "none" else 1) + 2 * self.saved + first.k * self.input_grad
        if self.recompute:  # the saved matrices are written here, and read while they are in the cache
            hidden = self.layers[:-1]
            operations += 2 * sum(layer.k * layer.n for layer in hidden)
            a_row += first.k
            weights += sum(layer.n * layer.bias for layer in hidden)
            weights += first.k * first.n * (not self.input_grad)
        yield self.rows_launch("mlp_backward", operations, a_row, weights)
        yield from self.gradients()

    def gradients(self) -> Iterator[Launch]:
        """All dW with db in one launch, over square tiles; their sums in another."""
        size, m, e = _REDUCTION, self.m, self.e
        tiles = sum(cdiv(layer.n, size) * cdiv(layer.k, size) for layer in self.layers)
        parts = splits(m, tiles, self.sms)
        slopes = sum(layer.slopes > 0 for layer in self.layers) and self.saved
        elements = sum(cdiv(layer.params, _ALIGNMENT) * _ALIGNMENT for layer in self.layers)
        outputs, workspace = e * elements + _FLOAT32 * slopes, parts * (elements + slopes) * _FLOAT32
        out = workspace if parts > 1 else outputs
        moved = e * m * (self.layers[0].k + 2 * self.saved + self.layers[-1].n) + out
        cached = out + e * m * sum(
            layer.n * cdiv(layer.k, size) + layer.k * cdiv(layer.n, size) for layer in self.layers
        )
        operations = 2 * m * sum(layer.k * layer.n for layer in self.layers)
        yield Launch("mlp_gradients", operations, moved, cached, tiles * parts)
        if parts > 1:
            yield passed("sum_splits", workspace + outputs)

    def kept(self) -> int:
        out = self.layers[-1].n * self.layers[-1].keeps_z
        return self.e * self.m * ((0 if self.recompute else self.saved) + out)

    def passing(self) -> int:
        return self.saved * (1 + self.recompute) if self.training else 0


class _Recompute(_Whole):
    recompute = True
