"""The table of a network's addresses."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastmlp.kernels.launch import launch
from fastmlp.kernels.training import layer_table
from fastmlp.kernels.training.layer_table import LayerMemory, load_features, load_matrix, table


def layer(n: int, k: int, device: str, bias: bool = True) -> LayerMemory:
    weight = torch.randn(n, k, device=device)
    y = torch.randn(8, 48, device=device)[:, :n]
    b = torch.randn(n, device=device) if bias else None
    return LayerMemory(weight, b, weight, None, y, y, torch.randn(8, 32, device=device)[:, :n], (None,) * 4)


def test_rows(device: str) -> None:
    one, two = layer(20, 32, device), layer(7, 20, device, bias=False)
    made = table([one, two], 16, 16)
    assert made.rows.shape == (2, layer_table.COLUMNS.value)
    assert made.rows.dtype == torch.int64
    assert made.depth == 2
    assert made.tiles == 2 * 2 + 1 * 2
    rows = made.rows.tolist()
    assert rows[0][layer_table.FIRST_TILE.value] == 0
    assert rows[1][layer_table.FIRST_TILE.value] == 4
    assert (rows[1][layer_table.N.value], rows[1][layer_table.K.value]) == (7, 20)
    assert rows[0][layer_table.W.value] == one.weight.data_ptr()
    assert rows[0][layer_table.Y.value + 1] == 48
    assert rows[0][layer_table.DZ.value + 1] == 32
    assert rows[1][layer_table.B.value] == 0
    assert made.inner == 4  # of 32 and 20
    assert made.argument.factor.value == 4
    assert table([one], 16, 16).argument.factor.value == 16


@triton.jit
def _copy(table_ptr, out_ptr, LAYER: tl.constexpr, BLOCK: tl.constexpr):
    row = table_ptr + LAYER * layer_table.COLUMNS
    n, k = load_features(row, 1)
    i = tl.arange(0, BLOCK)
    y = load_matrix(row, layer_table.Y, tl.float32)
    for m in range(8):
        tl.store(out_ptr + m * n + i, tl.load(y.ptr + m * y.row + i * y.col, mask=i < n), mask=i < n)
    tl.store(out_ptr + 8 * n, k.to(tl.float32))


def test_a_kernel_finds_a_matrix_by_its_address(device: str) -> None:
    layers = [layer(20, 32, device), layer(7, 20, device)]
    out = torch.full((8 * 7 + 1,), float("nan"), device=device)
    launch(_copy, (1,), table(layers, 16, 16).rows, out, LAYER=1, BLOCK=32)
    assert layers[1].y is not None
    assert torch.equal(out[:-1].view(8, 7), layers[1].y)
    assert out[-1] == 20
