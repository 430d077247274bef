"""A whole network as one table of addresses, so that one kernel can serve layers of any number and size.

A row is a layer. The columns are 64-bit integers: sizes, strides (in elements), and addresses that a
kernel turns back into pointers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.arguments import Matrix
from fastmlp.kernels.launch import cdiv, next_power_of_2

COLUMNS = tl.constexpr(20)
FIRST_TILE = tl.constexpr(0)  # of the layer's tiles, counted over all layers
N = tl.constexpr(1)  # output features
K = tl.constexpr(2)  # input features
# A matrix is two columns: its address, and the stride of its rows.
X = tl.constexpr(3)  # the layer's input (M, K); the first layer's is an argument of its own
Y = tl.constexpr(5)  # its output (M, N)
SAVED = tl.constexpr(7)  # what f' is computed from: Y, or Z
DZ = tl.constexpr(9)  # (M, N)
# A parameter is four: float32, contiguous; momentum or Adam's first moment; Adam's second moment; the row of
# its numbers in the optimizer's table. What is not there is 0.
W = tl.constexpr(11)  # (N, K)
B = tl.constexpr(15)  # (N,)
GROUP = tl.constexpr(3)  # the last of the four
COPY = tl.constexpr(19)  # W in the dtype of the products, or W itself

#: Rows of the buffers that the kernels find by this table, the last one too, have memory up to a multiple of
#: so many elements, where the next one starts.
ALIGNMENT = 16
_ALIGNMENT = tl.constexpr(ALIGNMENT)


@dataclass
class LayerMemory:
    """The tensors of one layer; what is not there is None."""

    weight: Tensor
    bias: Tensor | None
    copy: Tensor  # what products read: the weight, or a copy in the compute dtype
    x: Tensor | None  # (M, K); None for the first layer
    y: Tensor | None  # (M, N); None for the last layer
    saved: Tensor | None
    dz: Tensor
    state: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # W's two, b's two
    groups: tuple[int, int] = (0, 0)
    act: str = "none"
    slope: float = 0.0  # the activation's negative slope

    @property
    def keeps_z(self) -> bool:
        """Whether f' is computed from f's input, which the forward then stores too."""
        return self.saved is not self.y

    def of(self, rows: int) -> LayerMemory:
        """The layer with so many rows of its buffers."""
        y = _rows(self.y, rows)
        return dataclasses.replace(
            self,
            x=_rows(self.x, rows),
            y=y,
            saved=_rows(self.saved, rows) if self.keeps_z else y,
            dz=self.dz[:rows],
        )

    def row(self, first_tile: int) -> list[int]:
        """The table's row."""
        row = [first_tile, *self.weight.shape]
        for tensor in (self.x, self.y, self.saved, self.dz):
            row += [_address(tensor), 0 if tensor is None else tensor.stride(0)]
        for tensor, states, group in zip(
            (self.weight, self.bias), (self.state[:2], self.state[2:]), self.groups
        ):
            row += [*map(_address, (tensor, *states)), group]
        return [*row, _address(self.copy)]


def _rows(tensor: Tensor | None, count: int) -> Tensor | None:
    return None if tensor is None else tensor[:count]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


#: All tables that are alive, by the address of their rows: a launch shows nothing else of its network.
TABLES: WeakValueDictionary[int, Table] = WeakValueDictionary()


class TableArgument(NamedTuple):
    """A `Table` as a kernel's argument; the number of layers goes beside it."""

    rows: Any  # (layers, COLUMNS) int64
    slots: Any  # a power of two, not less than the layers
    factor: Any  # a power of two up to ALIGNMENT that divides every K
    copies: Any  # the weights stand in the products' dtype too
    # Of an epoch alone, whose layers are alike:
    bias: Any = None  # all have one
    keeps_z: Any = None  # the hidden layers' f' is computed from Z, which the forward keeps


@dataclass(eq=False)
class Table:
    """The rows of all layers on the device, and what is known of them on the host."""

    layers: list[LayerMemory]
    rows: Tensor  # (layers, COLUMNS) int64
    tiles: int  # of all weights, BLOCK_M x BLOCK_N each
    inner: int  # divides every K

    def __post_init__(self) -> None:
        TABLES[self.rows.data_ptr()] = self
        slots, factor = next_power_of_2(self.depth), math.gcd(self.inner, ALIGNMENT)
        copies = any(layer.copy is not layer.weight for layer in self.layers)
        #: The table as a kernel's argument.
        self.argument = TableArgument(self.rows, *map(tl.constexpr, (slots, factor, copies)))

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.layers)

    def batch(self, rows: int) -> list[LayerMemory]:
        """The layers with so many rows of their buffers."""
        return [layer.of(rows) for layer in self.layers]

    def tensors(self) -> list[Tensor | None]:
        """All that a step's launches are given of the net, except the rows of a batch."""
        layers = [t for m in self.layers for t in (m.y, m.saved, m.dz, m.copy, m.bias)]
        return [self.rows, *layers]


def table(layers: Sequence[LayerMemory], block_m: int, block_n: int) -> Table:
    """The table of ``layers``, for weights that are updated in tiles of block_m x block_n."""
    rows, tiles = [], 0
    for layer in layers:
        n, k = layer.weight.shape
        rows.append(layer.row(tiles))
        tiles += cdiv(n, block_m) * cdiv(k, block_n)
    inner = math.gcd(*(layer.weight.shape[1] for layer in layers))
    device = layers[0].weight.device
    return Table(list(layers), torch.tensor(rows, dtype=torch.int64, device=device), tiles, inner)


@triton.jit
def load_pointer(row_ptr, COLUMN: tl.constexpr, TYPE: tl.constexpr):
    """A pointer to memory that starts at a multiple of 16 bytes."""
    return tl.multiple_of(tl.load(row_ptr + COLUMN).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def load_matrix(row_ptr, COLUMN: tl.constexpr, TYPE: tl.constexpr):
    """A matrix whose rows start at multiples of 16 elements."""
    stride = tl.multiple_of(tl.load(row_ptr + COLUMN + 1).to(tl.int32), 16)
    return Matrix(load_pointer(row_ptr, COLUMN, TYPE), stride, 1)


@triton.jit
def load_features(row_ptr, FACTOR: tl.constexpr):
    """N and K of a layer; the compiler is told what divides K."""
    k = tl.multiple_of(tl.load(row_ptr + K).to(tl.int32), FACTOR)
    return tl.load(row_ptr + N).to(tl.int32), k


@triton.jit
def width(features, PADDED: tl.constexpr):
    """Columns of a buffer; with PADDED all it has memory for, the last of which may hold anything."""
    if PADDED:
        return tl.cdiv(features, _ALIGNMENT) * _ALIGNMENT
    else:
        return features
