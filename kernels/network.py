"""A whole network as one table of addresses, so that one kernel can serve layers of any number and size.

A row is a layer. The columns are 64-bit integers: sizes, strides (in elements), and addresses that a
kernel turns back into pointers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.launch import cdiv

COLUMNS = tl.constexpr(20)
FIRST_TILE = tl.constexpr(0)  # of the layer's tiles, counted over all layers
N = tl.constexpr(1)  # output features
K = tl.constexpr(2)  # input features
X = tl.constexpr(3)  # the layer's input (M, K); of the first layer the kernels are told apart
STRIDE_X = tl.constexpr(4)
Y = tl.constexpr(5)  # its output (M, N)
STRIDE_Y = tl.constexpr(6)
SAVED = tl.constexpr(7)  # what f' is computed from: Y, or Z laid out as Y
DZ = tl.constexpr(8)  # (M, N)
STRIDE_DZ = tl.constexpr(9)
W = tl.constexpr(10)  # (N, K) float32, contiguous
B = tl.constexpr(11)  # (N,) float32, or 0
COPY = tl.constexpr(12)  # W in the dtype of the products, or W itself
W_FIRST = tl.constexpr(13)  # the optimizer's state of W: momentum, or Adam's first moment
W_SECOND = tl.constexpr(14)  # Adam's second moment
B_FIRST = tl.constexpr(15)
B_SECOND = tl.constexpr(16)
W_GROUP = tl.constexpr(17)  # the row of W's numbers in the optimizer's table
B_GROUP = tl.constexpr(18)

#: Rows of the buffers that the kernels find by this table start at multiples of so many elements.
ALIGNMENT = 16


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

    def row(self, first_tile: int) -> list[int]:
        """The table's row."""
        n, k = self.weight.shape
        x, y, dz = (0 if t is None else t.stride(0) for t in (self.x, self.y, self.dz))
        row = [first_tile, n, k, _address(self.x), x, _address(self.y), y, _address(self.saved)]
        row += [_address(self.dz), dz, _address(self.weight), _address(self.bias), _address(self.copy)]
        row += [*map(_address, self.state), *self.groups]
        return row + [0] * (COLUMNS.value - len(row))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


#: The tables that there are, by the address of their rows: a launch has nothing else of its network.
TABLES: WeakValueDictionary[int, Table] = WeakValueDictionary()


@dataclass(eq=False)
class Table:
    """The rows of all layers on the device, and what is known of them on the host."""

    layers: list[LayerMemory]
    rows: Tensor  # (layers, COLUMNS) int64
    tiles: int  # of all weights, BLOCK_M x BLOCK_N each
    aligned: bool  # every K is a multiple of ALIGNMENT
    even_k: bool  # BLOCK_K divides every K

    def __post_init__(self) -> None:
        TABLES[self.rows.data_ptr()] = self

    @property
    def has_copies(self) -> bool:
        """Whether the weights stand in the products' dtype too."""
        return any(layer.copy is not layer.weight for layer in self.layers)

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.layers)


def table(layers: Sequence[LayerMemory], block_m: int, block_n: int, block_k: int) -> Table:
    """The table of ``layers``, for weights that are updated in tiles of block_m x block_n."""
    rows, tiles = [], 0
    for layer in layers:
        n, k = layer.weight.shape
        rows.append(layer.row(tiles))
        tiles += cdiv(n, block_m) * cdiv(k, block_n)
    inner = [layer.weight.shape[1] for layer in layers]
    device = layers[0].weight.device
    return Table(
        list(layers),
        torch.tensor(rows, dtype=torch.int64, device=device),
        tiles,
        all(k % ALIGNMENT == 0 for k in inner),
        all(k % block_k == 0 for k in inner),
    )


@triton.jit
def load_pointer(row_ptr, COLUMN: tl.constexpr, TYPE: tl.constexpr):
    """A pointer to memory that starts at a multiple of 16 bytes."""
    return tl.multiple_of(tl.load(row_ptr + COLUMN).to(tl.pointer_type(TYPE)), 16)


@triton.jit
def load_stride(row_ptr, COLUMN: tl.constexpr):
    return tl.multiple_of(tl.load(row_ptr + COLUMN).to(tl.int32), 16)


@triton.jit
def load_features(row_ptr, ALIGNED: tl.constexpr):
    """N and K of a layer."""
    k = tl.load(row_ptr + K).to(tl.int32)
    if ALIGNED:
        k = tl.multiple_of(k, 16)
    return tl.load(row_ptr + N).to(tl.int32), k
