"""A narrow network's whole backward in two launches, and a third to sum the splits of a long batch.

`mlp_backward_kernel` takes the gradient of BLOCK_M rows down through all layers on the chip,

    dZ[l] = (dZ[l + 1] W[l + 1]) * f'(saved[l]),

and writes each dZ once, beside the saved matrices' layout (M, TOTAL). With RECOMPUTE the forward saved
nothing: the kernel runs it again first and writes what it will read.

`mlp_gradients_kernel` then forms every dW = dZᵀ X with db in one grid over all tiles of all layers. They go
to one flat buffer, of which the gradients are views; a long batch is split, each split has a row of a
workspace, and `sum_splits_kernel` adds the rows first to last: no atomics, the same bits every time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels import configs
from fastmlp.kernels.activations import undo
from fastmlp.kernels.arguments import Activation, Blocks, Matrix, Source, Undo, Vector
from fastmlp.kernels.device import cast, dot, load_slopes, mask_gradient, pointers, store
from fastmlp.kernels.launch import arch_of, cdiv, launch, launch_if, num_sms
from fastmlp.kernels.linear_backward import split_batch, weight_gradient
from fastmlp.kernels.mlp import ALIGNMENT, Net, hidden_layers, pick, weight_block


@triton.jit
def output_gradient(
    grad_ptr, stride_gm, stride_gn, out_ptr, out_slope, rows, features, M, N: tl.constexpr,
    OUT_ACT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """A block of the output layer's dZ: dY, times the output activation's f'."""
    inside = (rows[:, None] < M) & (features[None, :] < N)
    d = tl.load(pointers(grad_ptr, rows, features, stride_gm, stride_gn), mask=inside, other=0.0)
    if OUT_ACT != "none":
        saved = tl.load(pointers(out_ptr, rows, features, N, 1), mask=inside, other=0.0)
        d = mask_gradient(d, saved, out_slope, DTYPE, OUT_ACT)
    return cast(d, DTYPE)


@triton.jit
def through_activation(
    grad, saved_ptr, dz_ptr, slope_ptr, stride_slope, slope, rows, features, offset, M, N,
    TOTAL: tl.constexpr, RAGGED: tl.constexpr, ACT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """dZ of a hidden block from its dH; it is stored, but for a PReLU, whose slopes' gradient needs dH."""
    inside = (rows[:, None] < M) & (features[None, :] < N)
    columns = offset + features
    if ACT == "prelu":
        store(pointers(dz_ptr, rows, columns, TOTAL, 1), grad, inside)
    saved = tl.load(pointers(saved_ptr, rows, columns, TOTAL, 1), mask=inside, other=0.0)
    slopes = load_slopes(slope_ptr, slope, stride_slope, features, N, ACT)
    dz = undo(grad, saved.to(tl.float32), slopes[None, :], ACT)
    if RAGGED:  # as in the forward
        dz = tl.where(features[None, :] < N, dz, 0.0)
    dz = cast(dz, DTYPE)
    if ACT != "prelu":
        tl.store(pointers(dz_ptr, rows, columns, TOTAL, 1), dz, mask=inside)
    return dz


@triton.jit
def gradient_block(
    d, w_ptr, features, N, K, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dZ W for a block of W's columns: dZ (BLOCK_M, N) is a tuple of blocks of BLOCK_N features."""
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for j in tl.static_range(len(d)):
        w = weight_block(w_ptr, j * BLOCK_N + tl.arange(0, BLOCK_N), features, N, K)
        acc = dot(d[j], w, acc, DTYPE, PRECISION)
    return acc


@triton.jit(do_not_specialize=["M"])
def mlp_backward_kernel(
    x_ptr, stride_xm, stride_xk,
    weights, biases, slopes, slope, out_slope,  # as in the forward
    grad_ptr, stride_gm, stride_gn,  # dY (M, WIDTHS[-1])
    out_ptr,  # what OUT_ACT's derivative is computed from, contiguous
    saved_ptr, dz_ptr,  # (M, OFFSETS[-1]); of a PReLU dz_ptr receives dH
    dout_ptr,  # the output layer's dZ (M, WIDTHS[-1]) contiguous, if OUT_ACT
    dx_ptr,  # (M, WIDTHS[0]) contiguous
    M,
    WIDTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STRIDE_SLOPE: tl.constexpr,
    ACT: tl.constexpr,
    OUT_ACT: tl.constexpr,
    RAGGED: tl.constexpr,
    SAVE_Z: tl.constexpr,
    RECOMPUTE: tl.constexpr,
    NEED_INPUT: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
   
    BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    if RECOMPUTE:
        hidden_layers(
            x_ptr, stride_xm, stride_xk, weights, biases, slopes, slope, saved_ptr, rows, M,
            WIDTHS, OFFSETS, HAS_BIAS, STRIDE_SLOPE, RAGGED, ACT, True, SAVE_Z, DTYPE, PRECISION,
            BLOCKS, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        tl.debug_barrier()  # the program's other threads read what this one wrote

    LAST: tl.constexpr = len(WIDTHS) - 2
    TOTAL: tl.constexpr = OFFSETS[LAST]
    N_OUT: tl.constexpr = WIDTHS[LAST + 1]
    WIDTH: tl.constexpr = WIDTHS[LAST]
    d = ()
    for i in tl.static_range(BLOCKS):
        features = i * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for start in range(0, N_OUT, BLOCK_OUT):
            n = start + tl.arange(0, BLOCK_OUT)
            dout = output_gradient(
                grad_ptr, stride_gm, stride_gn, out_ptr, out_slope, rows, n, M, N_OUT, OUT_ACT, DTYPE
            )
            if OUT_ACT != "none" and i == 0:
                inside = (rows[:, None] < M) & (n[None, :] < N_OUT)
                tl.store(pointers(dout_ptr, rows, n, N_OUT, 1), dout, mask=inside)
            w = weight_block(weights[LAST], n, features, N_OUT, WIDTH)
            acc = dot(dout, w, acc, DTYPE, PRECISION)
        dz = through_activation(
            acc, saved_ptr, dz_ptr, slopes[LAST - 1], STRIDE_SLOPE[LAST - 1], slope, rows, features,
            OFFSETS[LAST - 1], M, WIDTH, TOTAL, RAGGED, ACT, DTYPE,
        )  # fmt: skip
        d = d + (dz,)  # type: ignore[assignment]
    for step in range(1, LAST):
        layer = LAST - step  # dZ of its output is d; that of its input follows
        n = pick(WIDTHS, layer + 1)
        k = pick(WIDTHS, layer)
        w_ptr = pick(weights, layer)
        following = ()
        for i in tl.static_range(BLOCKS):
            features = i * BLOCK_N + tl.arange(0, BLOCK_N)
            grad = gradient_block(d, w_ptr, features, n, k, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_N)
            dz = through_activation(
                grad, saved_ptr, dz_ptr, pick(slopes, layer - 1), pick(STRIDE_SLOPE, layer - 1), slope,
                rows, features, tl.multiple_of(pick(OFFSETS, layer - 1), 16), M, k, TOTAL, RAGGED, ACT, DTYPE,
            )  # fmt: skip
            following = following + (dz,)  # type: ignore[assignment]
        d = following
    if NEED_INPUT:
        for start in range(0, WIDTHS[0], BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            dx = gradient_block(
                d, weights[0], k, WIDTHS[1], WIDTHS[0], DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K
            )
            inside = (rows[:, None] < M) & (k[None, :] < WIDTHS[0])
            store(pointers(dx_ptr, rows, k, WIDTHS[0], 1), dx, inside)


@triton.jit
def gradient_tile(
    tile, split, rows_per_split, num_splits, M, N, K,
    grad_ptr, stride_gm, stride_gn, z_ptr, stride_zm, slope_ptr, STRIDE_SLOPE,
    x_ptr, stride_xm, stride_xk, x_slope_ptr, X_STRIDE_SLOPE, slope,
    grads_ptr, place, dslopes_ptr, slope_place, workspace_ptr, SIZE: tl.constexpr, SLOPES: tl.constexpr,
    ACT: tl.constexpr, X_ACT: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of a layer's dW (N, K) with db and the slopes' gradient, over one split of the batch."""
    tiles_k = tl.cdiv(K, BLOCK_N)
    # Never a constant: Triton 3.8's thread-locality pass fails on a float32 sum that a loop always makes.
    first_column = (tile % tiles_k == 0) & (num_splits > 0)
    rows = tile // tiles_k * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tile % tiles_k * BLOCK_N + tl.arange(0, BLOCK_N)
    first = split * rows_per_split
    last = tl.minimum(first + rows_per_split, M)
    acc, bias, slope_grad = weight_gradient(
        rows, cols, first, last, first_column, Matrix(grad_ptr, stride_gm, stride_gn),
        Undo(
            Activation(ACT, slope, Vector(slope_ptr, STRIDE_SLOPE) if ACT == "prelu" else None),
            Matrix(z_ptr, stride_zm, 1), None,
        ) if ACT != "none" else None, 0,
        Source(
            Matrix(x_ptr, stride_xm, stride_xk), None, None, None,
            Activation(X_ACT, slope, Vector(x_slope_ptr, X_STRIDE_SLOPE) if X_ACT == "prelu" else None)
            if X_ACT != "none" else None,
        ),
        N, K, DTYPE, Blocks(BLOCK_M, BLOCK_N, BLOCK_K, 1, False, PRECISION),
    )  # fmt: skip
    offsets = place + rows[:, None] * K + cols[None, :]
    inside = (rows[:, None] < N) & (cols[None, :] < K)
    once = (rows < N) & first_column
    bias_offsets = place + N * K + rows
    if num_splits == 1:
        store(grads_ptr + offsets, acc, inside)
        store(grads_ptr + bias_offsets, bias, once)
        if ACT == "prelu":
            tl.store(dslopes_ptr + slope_place + rows, slope_grad, mask=once)
    else:
        workspace = workspace_ptr + split.to(tl.int64) * (SIZE + SLOPES)
        tl.store(workspace + offsets, acc, mask=inside)
        tl.store(workspace + bias_offsets, bias, mask=once)
        if ACT == "prelu":
            tl.store(workspace + SIZE + slope_place + rows, slope_grad, mask=once)


@triton.jit(do_not_specialize=["M", "num_splits", "rows_per_split"])
def mlp_gradients_kernel(
    x_ptr, stride_xm, stride_xk,  # X (M, WIDTHS[0])
    slopes, slope,
    grad_ptr, stride_gm, stride_gn,  # the output layer's dZ (M, WIDTHS[-1])
    saved_ptr, dz_ptr,  # (M, OFFSETS[-1])
    grads_ptr, dslopes_ptr,  # flat: dW and db of each layer from PLACES on, and the slopes'
    workspace_ptr, num_splits, rows_per_split,  # (num_splits, SIZE + SLOPES)
    M,
    WIDTHS: tl.constexpr,
    OFFSETS: tl.constexpr,
    TILES: tl.constexpr,  # before each layer's first tile, and their total
    PLACES: tl.constexpr,
    SIZE: tl.constexpr,
    SLOPES: tl.constexpr,
    STRIDE_SLOPE: tl.constexpr,
    ACT: tl.constexpr,
    SAVE_Z: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The first and the last layer read other tensors than those between, so each has its branch."""
    LAST: tl.constexpr = len(WIDTHS) - 2
    TOTAL: tl.constexpr = OFFSETS[LAST]
    MASK: tl.constexpr = "prelu" if ACT == "prelu" else "none"  # dz_ptr holds dH of a PReLU, else dZ
    X_ACT: tl.constexpr = ACT if SAVE_Z else "none"
    pid = tl.program_id(0) % TILES[LAST + 1]
    split = tl.program_id(0) // TILES[LAST + 1]
    if pid < TILES[1]:
        gradient_tile(
            pid, split, rows_per_split, num_splits, M, WIDTHS[1], WIDTHS[0],
            dz_ptr, TOTAL, 1, saved_ptr, TOTAL, slopes[0], STRIDE_SLOPE[0],
            x_ptr, stride_xm, stride_xk, slopes[0], 0, slope,
            grads_ptr, 0, dslopes_ptr, 0, workspace_ptr, SIZE, SLOPES,
            MASK, "none", DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif pid >= TILES[LAST]:
        gradient_tile(
            pid - TILES[LAST], split, rows_per_split, num_splits, M, WIDTHS[LAST + 1], WIDTHS[LAST],
            grad_ptr, stride_gm, stride_gn, saved_ptr, TOTAL, slopes[LAST - 1], 0,
            saved_ptr + OFFSETS[LAST - 1], TOTAL, 1, slopes[LAST - 1], STRIDE_SLOPE[LAST - 1], slope,
            grads_ptr, PLACES[LAST], dslopes_ptr, 0, workspace_ptr, SIZE, SLOPES,
            "none", X_ACT, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif LAST > 1:
        layer = 1
        for i in tl.static_range(2, LAST):
            layer = tl.where(pid >= TILES[i], i, layer)
        offset = tl.multiple_of(pick(OFFSETS, layer), 16)
        x_offset = tl.multiple_of(pick(OFFSETS, layer - 1), 16)
        gradient_tile(
            pid - pick(TILES, layer), split, rows_per_split, num_splits, M,
            pick(WIDTHS, layer + 1), pick(WIDTHS, layer),
            dz_ptr + offset, TOTAL, 1, saved_ptr + offset, TOTAL,
            pick(slopes, layer), pick(STRIDE_SLOPE, layer),
            saved_ptr + x_offset, TOTAL, 1, pick(slopes, layer - 1), pick(STRIDE_SLOPE, layer - 1), slope,
            grads_ptr, tl.multiple_of(pick(PLACES, layer), 16), dslopes_ptr, offset, workspace_ptr,
            SIZE, SLOPES, MASK, X_ACT, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_splits"])
def sum_splits_kernel(
    workspace_ptr,
    num_splits,
    grads_ptr,
    dslopes_ptr,
    SIZE: tl.constexpr,
    SLOPES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the workspace over the splits, first to last."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, num_splits):
        row = workspace_ptr + tl.cast(split, tl.int64) * (SIZE + SLOPES)
        acc += tl.load(row + offsets, mask=offsets < SIZE + SLOPES, other=0.0)
    store(grads_ptr + offsets, acc, offsets < SIZE)
    if SLOPES > 0:
        tl.store(dslopes_ptr + offsets - SIZE, acc, mask=(offsets >= SIZE) & (offsets < SIZE + SLOPES))


_SUM_BLOCK = 1024
#: The network's constants that `mlp_gradients_kernel` takes.
_OF_GRADIENTS = ("WIDTHS", "OFFSETS", "STRIDE_SLOPE", "ACT", "SAVE_Z", "DTYPE", "PRECISION")


class Gradients(NamedTuple):
    """Of a network; what was not asked for is None."""

    input: Tensor | None  # (M, K)
    params: Tensor | None  # flat: dW and then db of each layer, from `places` on
    slopes: Tensor | None  # flat, float32: of each hidden layer, (N,) from `saved_offsets` on

    def layers(self, widths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Each layer's dW (N, K) and db (N,): views."""
        assert self.params is not None
        shapes = zip(itertools.pairwise(widths), places(widths))
        parts = [((n, k), self.params[start : start + n * k + n]) for (k, n), start in shapes]
        return [(flat[: n * k].view(n, k), flat[n * k :]) for (n, k), flat in parts]


def places(widths: Sequence[int]) -> tuple[int, ...]:
    """Where each layer's dW and db start in `Gradients.params`, and the total."""
    sizes = (cdiv(n * k + n, ALIGNMENT) * ALIGNMENT for k, n in itertools.pairwise(widths))
    return tuple(itertools.accumulate(sizes, initial=0))


def mlp_backward(
    grad: Tensor,
    x: Tensor,
    net: Net,
    saved: Tensor | None,
    out_saved: Tensor | None,
    *,
    need_input: bool,
    need_params: bool,
) -> Gradients:
    """Every gradient of the network from ``grad`` (M, N): at most three launches.

    ``saved`` is what the forward left; None computes it again. ``out_saved`` (M, N) contiguous is what the
    output activation's derivative is computed from.
    """
    m, widths = len(x), net.widths
    masked = net.out_act != "none"
    tile = net.tile("_backward")

    def empty(*shape: int, dtype: torch.dtype = net.dtype) -> Tensor:
        return torch.empty(shape, device=x.device, dtype=dtype)

    recompute = saved is None
    saved = empty(m, net.offsets[-1]) if saved is None else saved
    dz = torch.empty_like(saved)
    dout = empty(m, widths[-1]) if masked else grad
    dx = empty(m, widths[0]) if need_input else None
    launch(
        mlp_backward_kernel,
        (cdiv(m, tile.BLOCK_M),),
        x, x.stride(0), x.stride(1),
        *net.arguments(), net.out_slope,
        grad, grad.stride(0), grad.stride(1),
        out_saved, saved, dz, dout, dx,
        m,
        **net.constants(),
        RECOMPUTE=recompute,
        NEED_INPUT=need_input,
        **net.blocks(tile),
    )  # fmt: skip
    if not need_params:
        return Gradients(dx, None, None)
    return Gradients(dx, *_parameter_gradients(dout, x, net, saved, dz))


def _parameter_gradients(
    dout: Tensor, x: Tensor, net: Net, saved: Tensor, dz: Tensor
) -> tuple[Tensor, Tensor]:
    m, widths, weights = len(x), net.widths, net.weights
    kind = configs.precision_class(net.dtype, net.precision)
    tile = configs.lookup("mlp_gradients", arch_of(x), kind, max(widths[1:-1]), max(widths[1:-1]))
    shapes = list(itertools.pairwise(widths))
    tiles = tuple(
        itertools.accumulate((cdiv(n, tile.BLOCK_M) * cdiv(k, tile.BLOCK_N) for k, n in shapes), initial=0)
    )
    *starts, size = places(widths)
    slopes = net.offsets[-1] if net.act == "prelu" else 0
    splits, rows_per_split = split_batch(m, tiles[-1], tile.BLOCK_K, num_sms(x.device.index or 0))
    flat = torch.empty(size, device=x.device, dtype=weights[0].dtype)
    dslopes = torch.empty(slopes, device=x.device, dtype=torch.float32)
    # Always there, so that the number of splits never changes the kernel.
    workspace = torch.empty(
        (splits if splits > 1 else 0, size + slopes), device=x.device, dtype=torch.float32
    )
    _, _, slope_weights, slope = net.arguments()
    constants = net.constants()
    launch(
        mlp_gradients_kernel,
        (tiles[-1] * splits,),
        x, x.stride(0), x.stride(1),
        slope_weights, slope,
        dout, dout.stride(0), dout.stride(1),
        saved, dz, flat, dslopes, workspace, splits, rows_per_split,
        m,
        TILES=tiles,
        PLACES=tuple(starts),
        SIZE=size,
        SLOPES=slopes,
        **{name: constants[name] for name in _OF_GRADIENTS},
        BLOCK_M=tile.BLOCK_M,
        BLOCK_N=tile.BLOCK_N,
        BLOCK_K=tile.BLOCK_K,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    launch_if(
        splits > 1,
        sum_splits_kernel,
        (cdiv(size + slopes, _SUM_BLOCK),),
        workspace, splits, flat, dslopes,
        SIZE=size,
        SLOPES=slopes,
        BLOCK=_SUM_BLOCK,
    )  # fmt: skip
    return flat, dslopes
