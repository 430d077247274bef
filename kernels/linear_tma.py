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

import triton
import triton.language as tl

from fastmlp.kernels.activations import activate, undo
from fastmlp.kernels.device import cast, dot, load_scale, load_slopes, tile_of


@triton.jit
def _epilogue(
    acc, row, col,
    c_desc, z_desc, previous_desc, b_ptr, stride_b, slope_ptr, stride_slope, slope, scale, N,
    ACT: tl.constexpr, PREVIOUS_ACT: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP_Z: tl.constexpr,
    HAS_SCALE: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Finish and store the columns of a tile that begin at ``col``."""
    cols = col + tl.arange(0, BLOCK_N)
    if HAS_BIAS:
        acc += tl.load(b_ptr + cols * stride_b, mask=cols < N, other=0.0).to(tl.float32)[None, :]
    if KEEP_Z:
        z_desc.store([row, col], cast(acc, DTYPE))
    if ACT != "none":
        slopes = load_slopes(slope_ptr, slope, stride_slope, cols, N, ACT)
        acc = activate(acc, slopes[None, :], ACT)
    if PREVIOUS_ACT != "none":
        acc = undo(acc, previous_desc.load([row, col]).to(tl.float32), slope, PREVIOUS_ACT)
    if HAS_SCALE:
        acc *= scale
    c_desc.store([row, col], cast(acc, DTYPE))


@triton.jit
def _sum_columns(
    tile, a_desc, db_ptr, scale, M, K,
    DTYPE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """db of BLOCK_M features: dZ (K, M) summed over the examples, first to last."""
    total = tl.zeros((BLOCK_K, BLOCK_M), tl.float32)
    for start in range(0, K, BLOCK_K):
        total += a_desc.load([start, tile * BLOCK_M]).to(tl.float32)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(db_ptr + rows, cast(tl.sum(total, 0) * scale, db_ptr.dtype.element_ty), mask=rows < M)


@triton.jit(do_not_specialize=["M", "N", "K"])
def matmul_kernel(
    a_desc, b_desc,  # blocks of A (M, K) and B (K, N); of the transposed matrices where it says so
    c_desc, z_desc,  # C (M, N), and Z alike, if KEEP_Z
    previous_desc,  # (M, N): what PREVIOUS_ACT's derivative is computed from
    sum_desc, db_ptr,  # A's matrix again, unrounded, and (M,): its sums over K, if SUM_ROWS
    b_ptr, stride_b,  # bias (N,)
    slope_ptr, stride_slope, slope,  # of ACT, or of PREVIOUS_ACT
    scale_ptr, denominator_ptr,  # scalars: C and db are times scale / denominator
    M, N, K,
    ACT: tl.constexpr,
    PREVIOUS_ACT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_Z: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    TRANSPOSED_A: tl.constexpr,
    TRANSPOSED_B: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SUBTILES: tl.constexpr,
    FLATTEN: tl.constexpr,
    WARP_SPECIALIZE: tl.constexpr,
):  # fmt: skip
    num_m, num_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    num_tiles = num_m * num_n
    scale = load_scale(scale_ptr, denominator_ptr, HAS_SCALE)
    for tile in tl.range(
        tl.program_id(0), num_tiles, tl.num_programs(0), flatten=FLATTEN, warp_specialize=WARP_SPECIALIZE
    ):
        pid_m, pid_n = tile_of(tile, num_m, num_n, GROUP_M)
        row, col = pid_m * BLOCK_M, pid_n * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, K, BLOCK_K):
            if TRANSPOSED_A:
                a = a_desc.load([start, row]).T
            else:
                a = a_desc.load([row, start])
            if TRANSPOSED_B:
                b = b_desc.load([col, start]).T
            else:
                b = b_desc.load([start, col])
            acc = dot(a, b, acc, DTYPE, PRECISION)
        if SUBTILES == 1:
            _epilogue(
                acc, row, col, c_desc, z_desc, previous_desc, b_ptr, stride_b,
                slope_ptr, stride_slope, slope, scale, N,
                ACT, PREVIOUS_ACT, HAS_BIAS, KEEP_Z, HAS_SCALE, DTYPE, BLOCK_N,
            )  # fmt: skip
        else:  # in halves: each takes half the registers, and half the shared memory on its way out
            HALF: tl.constexpr = BLOCK_N // 2
            left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, HALF)), (0, 2, 1)))
            _epilogue(
                left, row, col, c_desc, z_desc, previous_desc, b_ptr, stride_b,
                slope_ptr, stride_slope, slope, scale, N,
                ACT, PREVIOUS_ACT, HAS_BIAS, KEEP_Z, HAS_SCALE, DTYPE, HALF,
            )  # fmt: skip
            _epilogue(
                right, row, col + HALF, c_desc, z_desc, previous_desc, b_ptr, stride_b,
                slope_ptr, stride_slope, slope, scale, N,
                ACT, PREVIOUS_ACT, HAS_BIAS, KEEP_Z, HAS_SCALE, DTYPE, HALF,
            )  # fmt: skip
    if SUM_ROWS:
        # The tiles of db are numbered on from those of C: programs with no tile in the last wave take them.
        first = tl.program_id(0) + tl.cdiv(num_tiles - tl.program_id(0), tl.num_programs(0)) * tl.num_programs(0)
        for tile in range(first, num_tiles + num_m, tl.num_programs(0)):
            _sum_columns(tile - num_tiles, sum_desc, db_ptr, scale, M, K, DTYPE, BLOCK_M, BLOCK_K)
