"""The layer's products for wide weights on sm_90 and later: one persistent kernel fed by TMA.

``C = A B`` serves all three products of a layer; which operand lies transposed in memory is a constexpr:

    forward  Y (M, N) = f(X Wᵀ + b)    A = X         B = W transposed    bias and f in the epilogue
    input   dX (M, K) = dZ W           A = dZ        B = W               the layer before's f' in the epilogue
    weight  dW (N, K) = dZᵀ X          A = dZ transposed    B = X        db after the last tile

As many programs as there are multiprocessors walk over the tiles. Tensor descriptors, made on the host,
let the copy engine fetch operands and write results: no address is computed and no edge is masked in the
loop, and a tile's epilogue overlaps the loads of the next one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from fastmlp.kernels.common.activations import activate, undo
from fastmlp.kernels.common.arguments import TL_DTYPE, Activation, Scale, Undo, load_vector, slopes_of, vector
from fastmlp.kernels.common.device import cast, dot, load_scale, store, tile_of
from fastmlp.kernels.launch import INTERPRETED, arch_of, cdiv, has_tma, launch, num_sms
from fastmlp.kernels.linear.backward import Asked, Undone
from fastmlp.kernels.tiles import configs
from fastmlp.kernels.tiles.configs import TmaTile


class TmaBlocks(NamedTuple):
    """A `TmaTile`, all of it known to the compiler."""

    BLOCK_M: int
    BLOCK_N: int
    BLOCK_K: int
    GROUP_M: int
    SUBTILES: int
    WARP_SPECIALIZE: bool
    PRECISION: str


@triton.jit
def _finish_tile(
    acc, row, col, c_desc, z_desc, saved_desc, bias, act, before, scale, N,
    DTYPE: tl.constexpr, SUBTILES: tl.constexpr,
):  # fmt: skip
    """Epilogue of the tile at (row, col), in SUBTILES parts: one's registers and buffers serve the next."""
    BLOCK_M: tl.constexpr = acc.shape[0]
    BLOCK_N: tl.constexpr = acc.shape[1]
    if SUBTILES > 1:
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, HALF)), (0, 2, 1)))
        _finish_tile(
            left, row, col,
            c_desc, z_desc, saved_desc, bias, act, before, scale, N, DTYPE, SUBTILES // 2,
        )  # fmt: skip
        _finish_tile(
            right, row, col + HALF,
            c_desc, z_desc, saved_desc, bias, act, before, scale, N, DTYPE, SUBTILES // 2,
        )  # fmt: skip
    else:
        cols = col + tl.arange(0, BLOCK_N)
        if bias is not None:
            acc += load_vector(bias, cols, N)[None, :]
        if z_desc is not None:
            z_desc.store([row, col], cast(acc, DTYPE))
        if act is not None:
            acc = activate(acc, slopes_of(act, cols, N)[None, :], act.name)
        if before is not None:
            acc = undo(acc, saved_desc.load([row, col]).to(tl.float32), before.slope, before.name)
        c_desc.store([row, col], cast(acc * scale, DTYPE))


@triton.jit
def _sum_rows(
    row, a_desc, sum_ptr, scale, M, K,
    TRANSPOSED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums of BLOCK_M rows of A (M, K), first element to last."""
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=6):  # nothing but reads: as many under way as possible
        if TRANSPOSED:
            total += a_desc.load([start, row]).T.to(tl.float32)
        else:
            total += a_desc.load([row, start]).to(tl.float32)
    rows = row + tl.arange(0, BLOCK_M)
    store(sum_ptr + rows, tl.sum(total, 1) * scale, rows < M)


@triton.jit(do_not_specialize=["M", "N", "K"])
def matmul_kernel(
    a_desc, b_desc,  # blocks of A (M, K) and B (K, N), or of the transposed matrices
    c_desc, z_desc,  # C (M, N), and Z alike, or None
    saved_desc,  # (M, N): what the derivative of ``before`` is computed from, or None
    sum_desc, sum_ptr,  # blocks of A again, never rounded, and (M,): its rows' sums; or None
    bias,  # a Vector (N,), or None
    act, before,  # Activations, the one to apply and the one to undo, or None
    scale,  # a Scale of C and of the sums, or None
    M, N, K,
    TRANSPOSED_A: tl.constexpr,
    TRANSPOSED_B: tl.constexpr,
    DTYPE: tl.constexpr,
    TILE: tl.constexpr,  # TmaBlocks
):  # fmt: skip
    num_m, num_n = tl.cdiv(M, TILE.BLOCK_M), tl.cdiv(N, TILE.BLOCK_N)
    num_tiles = num_m * num_n
    factor = load_scale(scale)
    for tile in tl.range(
        tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True, warp_specialize=TILE.WARP_SPECIALIZE
    ):
        pid_m, pid_n = tile_of(tile, num_m, num_n, TILE.GROUP_M)
        row, col = pid_m * TILE.BLOCK_M, pid_n * TILE.BLOCK_N
        acc = tl.zeros((TILE.BLOCK_M, TILE.BLOCK_N), tl.float32)
        for start in range(0, K, TILE.BLOCK_K):
            if TRANSPOSED_A:
                a = a_desc.load([start, row]).T
            else:
                a = a_desc.load([row, start])
            if TRANSPOSED_B:
                b = b_desc.load([col, start]).T
            else:
                b = b_desc.load([start, col])
            acc = dot(a, b, acc, DTYPE, TILE.PRECISION)
        _finish_tile(
            acc, row, col, c_desc, z_desc, saved_desc, bias, act, before, factor, N, DTYPE, TILE.SUBTILES
        )
    if sum_ptr is not None:
        # These tiles are numbered after those of C, so that programs which the last wave leaves idle begin.
        pid, programs = tl.program_id(0), tl.num_programs(0)
        first = pid + tl.cdiv(num_tiles - pid, programs) * programs
        for tile in range(first, num_tiles + num_m, programs):
            row = (tile - num_tiles) * TILE.BLOCK_M
            _sum_rows(row, sum_desc, sum_ptr, factor, M, K, TRANSPOSED_A, TILE.BLOCK_M, TILE.BLOCK_K)


def linear_act_tma(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    act: Activation,
    keep_z: bool,
    dtype: torch.dtype,
    precision: str,
) -> tuple[Tensor, Tensor | None]:
    """What `linear_act` returns, for arguments that `forward_misfit` accepts. One launch."""
    (m, _), n = x.shape, weight.shape[0]
    y = torch.empty((m, n), device=x.device, dtype=dtype)
    z = torch.empty_like(y) if keep_z else None
    _matmul("matmul", x, weight.t(), y, weight, precision, z=z, act=act, bias=bias)
    return y, z


def linear_backward_tma(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    before: Undone,
    scale: Scale | None,
    scale_input: bool,
    asked: Asked,
    dtype: torch.dtype,
    precision: str,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    """What `linear_backward` returns, for arguments that `backward_misfit` accepts.

    A launch for dX, and one for dW and db. The batch is never split: few tiles of dW leave
    multiprocessors idle.
    """
    dx = dw = db = None
    if asked.input:
        dx = torch.empty(x.shape, device=x.device, dtype=dtype)
        dx_scale = scale if scale_input else None
        _matmul("matmul_backward", grad, weight, dx, weight, precision, before=before[0], scale=dx_scale)
    if asked.params:
        dw = torch.empty(weight.shape, device=x.device, dtype=dtype)
        if asked.bias_dtype is not None:
            db = torch.empty(weight.shape[0], device=x.device, dtype=asked.bias_dtype)
        _matmul("matmul_backward", grad.t(), x, dw, weight, precision, sums=db, scale=scale)
    return dx, dw, db, None


def _matmul(
    family: str,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    weight: Tensor,
    precision: str,
    *,
    z: Tensor | None = None,
    bias: Tensor | None = None,
    act: Activation | None = None,
    before: Undo | None = None,
    sums: Tensor | None = None,
    scale: Scale | None = None,
) -> None:
    """C = A B with its epilogue, and the sums of A's rows. One launch."""
    (m, k), n, dtype = a.shape, b.shape[1], a.dtype
    tile = configs.for_weight(family, weight, dtype, precision)
    assert isinstance(tile, TmaTile)
    rounded = precision == "tf32"
    part = (tile.BLOCK_M, tile.BLOCK_N // tile.SUBTILES)
    tiles = cdiv(m, tile.BLOCK_M) * cdiv(n, tile.BLOCK_N)
    blocks = TmaBlocks(
        tile.BLOCK_M, tile.BLOCK_N, tile.BLOCK_K, tile.GROUP_M, tile.SUBTILES, tile.WARP_SPECIALIZE, precision
    )
    saved = None if before is None or before.saved is None else before.saved.ptr
    launch(
        matmul_kernel,
        (min(tiles, num_sms(a.device.index or 0)),),
        _blocks(a, tile.BLOCK_M, tile.BLOCK_K, rounded),
        _blocks(b, tile.BLOCK_K, tile.BLOCK_N, rounded),
        _blocks(c, *part),
        None if z is None else _blocks(z, *part),
        None if saved is None else _blocks(saved, *part),
        None if sums is None else _blocks(a, tile.BLOCK_M, tile.BLOCK_K),
        sums, vector(bias), act, None if before is None else before.act, scale, m, n, k,
        TRANSPOSED_A=a.stride(1) != 1,
        TRANSPOSED_B=b.stride(1) != 1,
        DTYPE=TL_DTYPE[dtype],
        TILE=blocks,
        **tile.options,
    )  # fmt: skip


# From Triton 3.8 on the copy engine can round float32 to TF32; else the tensor cores cut the low bits off.
_CAN_ROUND = "round_f32_to_tf32" in TensorDescriptor.__dataclass_fields__


def _blocks(matrix: Tensor, rows: int, cols: int, rounded: bool = False) -> TensorDescriptor:
    """The descriptor that fetches blocks of ``matrix``; blocks of its transpose if that is how it lies."""
    options: dict[str, Any] = {"round_f32_to_tf32": True} if rounded and _CAN_ROUND else {}
    if matrix.stride(1) != 1:
        matrix, rows, cols = matrix.t(), cols, rows
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, cols], **options)


def forward_misfit(x: Tensor, weight: Tensor, dtype: torch.dtype, precision: str) -> str | None:
    """Why `linear_act_tma` cannot take these; None if it can."""
    return (
        _unsupported(arch_of(x), dtype, precision)
        or _not_of(dtype, input=x, weight=weight)
        or (_UNALIGNED.format("output") if weight.shape[0] * dtype.itemsize % 16 else None)
    )


def backward_misfit(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    previous_saved: Tensor | None,
    dtype: torch.dtype,
    precision: str,
    act: str = "none",
) -> str | None:
    """Why `linear_backward_tma` cannot take these; None if it can."""
    if act != "none":
        return "the activation is still to be undone as the gradient is read"
    if previous_saved is not None and previous_saved.stride(1) != 1:
        return "the activation's output is transposed"
    saved = {} if previous_saved is None else {"saved": previous_saved}
    return (
        _unsupported(arch_of(x), dtype, precision)
        or _not_of(dtype, grad=grad, input=x, weight=weight, **saved)
        or (_UNALIGNED.format("gradient") if x.shape[1] * dtype.itemsize % 16 else None)
    )


_UNALIGNED = "{}: rows or memory not a multiple of 16 bytes"


def _unsupported(arch: str, dtype: torch.dtype, precision: str) -> str | None:
    if INTERPRETED:
        return None
    if not has_tma(arch):
        return f"{arch} has no TMA"
    if dtype == torch.float32 and precision == "ieee":
        return "float32 without TF32 does not use tensor cores"
    return None


def _not_of(dtype: torch.dtype, **matrices: Tensor) -> str | None:
    """TMA's rules: one stride is 1, the other and the address are multiples of 16 bytes."""
    for name, matrix in matrices.items():
        if matrix.dtype != dtype:
            return f"{name}: {matrix.dtype}, computed in {dtype}"
        (rows, cols), (outer, inner) = matrix.shape, matrix.stride()
        if inner != 1:
            cols, outer, inner = rows, inner, outer
        if inner != 1 or outer < cols:
            return f"{name}: neither rows nor columns are contiguous"
        if outer * dtype.itemsize % 16 or matrix.data_ptr() % 16:
            return _UNALIGNED.format(name)
    return None
