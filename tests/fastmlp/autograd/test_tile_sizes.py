"""How a linear cross-entropy is cut into tiles: by count, at sizes that no test could run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastmlp.autograd.tile_sizes import TileSizes, tile_sizes

#: Tokens, hidden size, vocabulary of some language models' heads.
SIZES = (
    (8192, 4096, 128256),
    (4096, 4096, 32000),
    (8192, 8192, 32000),
    (16384, 2048, 262144),
)


def planned(
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    autocast: torch.dtype | None = None,
    scratch: float = 0,
    workspace: int | None = None,
    need_params: bool = True,
    d: int = 1,
) -> TileSizes:
    n, k, c = sizes
    x = torch.empty(n, k, dtype=dtype, device="meta")
    weight = torch.empty(c, d, k, dtype=dtype, device="meta")
    loss = torch.float32 if autocast else dtype
    arguments: dict[str, Any] = {"scratch": scratch, "need_params": need_params, "workspace": workspace}
    return tile_sizes(x, weight, autocast or dtype, loss, **arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("scratch", [0, 2.5])
def test_a_tenth_of_eagers_memory(sizes: tuple[int, int, int], dtype: torch.dtype, scratch: float) -> None:
    """A tile of either sweep, and three floats and a loss a row, in a tenth of three logits matrices."""
    n, _, c = sizes
    found = planned(sizes, dtype, scratch=scratch)
    element, rows = dtype.itemsize + scratch, 4 * 4 * n
    tenth = 3 * n * c * dtype.itemsize / 10
    assert found.rows * c * element + rows <= tenth
    assert n * found.classes * element + rows <= tenth
    assert bool(found.classes) == (dtype != torch.float32)


def test_the_issues_size() -> None:
    """bfloat16: 0.63 GB of eager's 6.3 GB; four tiles of rows, four of classes."""
    assert planned(SIZES[0], torch.bfloat16) == TileSizes(2048, 32064)
    assert planned(SIZES[0], torch.float32) == TileSizes(2048, 0)


def test_autocast_holds_the_cast_operands_too() -> None:
    """float32 weights are cast once, 1.05 GB of eager's 13.7 GB, and 16-bit tiles take what is left."""
    n, k, c = SIZES[0]
    found = planned(SIZES[0], torch.float32, torch.bfloat16)
    tile = max(found.rows * c, found.classes * (n + k))
    casts = 2 * (c * k + n * k)
    assert 2 * tile + casts <= (3 * n * c * 4 + casts) / 10
    assert found.classes > 0


def test_one_tile_where_there_is_room() -> None:
    """All rows at once: three products, and nothing to accumulate in any dtype."""
    for dtype in (torch.float32, torch.bfloat16):
        assert planned((512, 64, 1000), dtype, workspace=1 << 30) == TileSizes(512, 0)
    assert planned((512, 64, 1000), torch.float32) == TileSizes(512, 0)  # 32 MB are no burden


def test_no_sweep_over_classes_without_parameters() -> None:
    assert planned(SIZES[0], torch.bfloat16, need_params=False).classes == 0


@pytest.mark.parametrize("workspace", [1, 1000, 10**6])
@pytest.mark.parametrize("d", [1, 6])
def test_every_row_and_class_has_a_tile(workspace: int, d: int) -> None:
    for sizes in ((1, 1, 1), (7, 3, 5), (100, 8, 1003)):
        found = planned(sizes, torch.bfloat16, workspace=workspace, d=d)
        assert 1 <= found.rows <= sizes[0]
        assert 0 <= found.classes <= sizes[2]
        assert found.classes > 0 or found.rows == sizes[0]
