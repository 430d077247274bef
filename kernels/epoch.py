"""A whole epoch in one cooperative launch: the phases of a step, with a barrier of the grid between them.

The phases are the device functions of the kernels that a graph launches one after another: the layers'
forwards, the head, the hidden layers' dZ, the update. Programs take a phase's tiles in turns. Where
every program has at most one tile of the weights it keeps that tile, float32 with its optimizer state,
in registers from the first step to the last; others see what their next forward reads, the copy.

All programs must be on the chip at once, or the barrier never opens: `launch_cooperative_grid` sees to
it. Where programs run one after another (the interpreter) every phase is a launch of its own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels import configs, network, quantized
from fastmlp.kernels.arguments import TL_DTYPE, Activation, Blocks, Matrix, Source, Undo, Vector
from fastmlp.kernels.configs import Tile
from fastmlp.kernels.head import Results, head_tile, targets
from fastmlp.kernels.launch import INTERPRETED, arch_of, cdiv, launch, next_power_of_2
from fastmlp.kernels.linear import linear_tile
from fastmlp.kernels.linear_backward import input_tile
from fastmlp.kernels.network import (
    COLUMNS,
    COPY,
    DZ,
    SAVED,
    STRIDE_DZ,
    STRIDE_X,
    STRIDE_Y,
    B,
    X,
    Y,
    load_features,
    load_pointer,
    load_stride,
)
from fastmlp.kernels.optimizers import HYPERS
from fastmlp.kernels.quantized import Number
from fastmlp.kernels.softmax import Criterion, Sums
from fastmlp.kernels.step import Task
from fastmlp.kernels.update import (
    Accumulators,
    apply_tile,
    finish_step,
    gradient_scale,
    load_weights,
    locate,
    store_weights,
    tile_gradient,
)


@triton.jit
def grid_barrier(counter_ptr, arrivals):
    """Wait until ``arrivals`` programs have come by in all; what they wrote before is then visible.

    One thread's acquire-release, with a barrier of the program's threads on either side, orders all of
    its threads' accesses. Waiting is by plain volatile reads, which do not lock the counter's line.
    """
    tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="acq_rel")
    while tl.load(counter_ptr, volatile=True) < arrivals:
        pass
    tl.atomic_add(counter_ptr, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def forward_phase(
    layer, table_ptr, M, slope,
    x_ptr, stride_xm, stride_xk, index_ptr, x_scale,
    ACT: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP_Z: tl.constexpr, DEQUANT: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN_K: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """Y = f(X Wᵀ + b) of one hidden layer."""
    row = table_ptr + layer * COLUMNS
    n, k = load_features(row, ALIGNED)
    w_ptr = load_pointer(row, COPY, DTYPE)
    b_ptr = tl.load(row + B).to(tl.pointer_type(tl.float32))
    y_ptr = load_pointer(row, Y, DTYPE)
    stride_ym = load_stride(row, STRIDE_Y)
    z_ptr = load_pointer(row, SAVED, DTYPE)
    for tile in range(tl.program_id(0), tl.cdiv(M, BLOCK_M) * tl.cdiv(n, BLOCK_N), tl.num_programs(0)):
        if layer == 0:
            linear_tile(
                tile,
                Source(
                    Matrix(x_ptr, stride_xm, stride_xk), index_ptr,
                    Vector(x_scale, 0) if DEQUANT == "scale" else None,
                ),
                Matrix(w_ptr, k, 1), Vector(b_ptr, 1) if HAS_BIAS else None, Activation(ACT, slope), None, 0,
                Matrix(y_ptr, stride_ym, 1), Matrix(z_ptr, stride_ym, 1) if KEEP_Z else None, M, n, k,
                Blocks(BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, EVEN_K, PRECISION),
            )  # fmt: skip
        else:
            linear_tile(
                tile, Source(Matrix(load_pointer(row, X, DTYPE), load_stride(row, STRIDE_X), 1)),
                Matrix(w_ptr, k, 1), Vector(b_ptr, 1) if HAS_BIAS else None, Activation(ACT, slope), None, 0,
                Matrix(y_ptr, stride_ym, 1), Matrix(z_ptr, stride_ym, 1) if KEEP_Z else None, M, n, k,
                Blocks(BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, EVEN_K, PRECISION),
            )  # fmt: skip


@triton.jit
def head_phase(
    table_ptr, num_layers, M, C, slope, t_ptr, stride_t, stride_tc, index_ptr, cw_ptr, stride_cw,
    partial_ptr, num_partials, ignore_index, smoothing, z_loss, LOSS: tl.constexpr,
    ACT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_WEIGHT: tl.constexpr, MEAN: tl.constexpr,
    ALIGNED: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Logits, loss, right answers, dlogits, and the last hidden layer's dZ."""
    row = table_ptr + (num_layers - 1) * COLUMNS
    below = row - COLUMNS
    _, k = load_features(row, ALIGNED)
    stride_h = load_stride(row, STRIDE_X)
    h = Matrix(load_pointer(row, X, DTYPE), stride_h, 1)
    w = Matrix(load_pointer(row, COPY, DTYPE), k, 1)
    bias = Vector(tl.load(row + B).to(tl.pointer_type(tl.float32)), 1) if HAS_BIAS else None
    saved = Matrix(load_pointer(below, SAVED, DTYPE), stride_h, 1)
    dlogits = Matrix(load_pointer(row, DZ, DTYPE), load_stride(row, STRIDE_DZ), 1)
    dz = Matrix(load_pointer(below, DZ, DTYPE), load_stride(below, STRIDE_DZ), 1)
    out = Results(Sums(partial_ptr, None, None), None, dlogits, dz)
    target = Source(Matrix(t_ptr, stride_t, stride_tc), index_ptr, None, None)
    class_weight = Vector(cw_ptr, stride_cw) if HAS_WEIGHT else None
    for tile in range(tl.program_id(0), num_partials, tl.num_programs(0)):
        head_tile(
            tile, num_partials, h, w, bias,
            Undo(Activation(ACT, slope, None), saved, None) if ACT != "none" else None,
            Criterion(
                LOSS, "mean" if MEAN else "sum", target, class_weight, ignore_index, smoothing, z_loss
            ),
            out, M, C, k, DTYPE, Blocks(BLOCK_M, BLOCK_C, BLOCK_K, 1, False, PRECISION),
        )  # fmt: skip


@triton.jit
def input_phase(
    layer, table_ptr, M, slope,
    ACT: tl.constexpr, ALIGNED: tl.constexpr, DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """dZ of the layer below ``layer``."""
    row = table_ptr + layer * COLUMNS
    below = row - COLUMNS
    n, k = load_features(row, ALIGNED)
    dz_ptr = load_pointer(row, DZ, DTYPE)
    stride_dz = load_stride(row, STRIDE_DZ)
    w_ptr = load_pointer(row, COPY, DTYPE)
    saved_ptr = load_pointer(below, SAVED, DTYPE)
    stride_y = load_stride(below, STRIDE_Y)
    out_ptr = load_pointer(below, DZ, DTYPE)
    stride_out = load_stride(below, STRIDE_DZ)
    for tile in range(tl.program_id(0), tl.cdiv(M, BLOCK_M) * tl.cdiv(k, BLOCK_N), tl.num_programs(0)):
        input_tile(
            tile, Matrix(dz_ptr, stride_dz, 1), Matrix(w_ptr, k, 1), None, 0,
            Undo(Activation(ACT, slope), Matrix(saved_ptr, stride_y, 1), None) if ACT != "none" else None,
            0, 1.0, Matrix(out_ptr, stride_out, 1), M, n, k,
            Blocks(BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, False, PRECISION),
        )  # fmt: skip


_RUNTIME = ["num_layers", "num_rows", "batch", "num_groups"]


@triton.jit(do_not_specialize=[*_RUNTIME, "first_step", "last_step", "first_phase", "last_phase"])
def epoch_kernel(
    table_ptr, num_layers, num_tiles,
    x_ptr, stride_xm, stride_xk, x_scale,  # the data set
    t_ptr, stride_t, stride_tc, cw_ptr, stride_cw,  # targets of the data set; class weights
    index_ptr,  # (num_rows,): the epoch's order
    hyper_ptr, num_groups,  # (steps, groups, HYPERS)
    partial_ptr,  # (3, programs of the head)
    loss_ptr, sums_ptr, barrier_ptr,
    num_rows, batch, first_step, last_step, first_phase, last_phase,
    C, slope, ignore_index, smoothing, z_loss,
    LOSS: tl.constexpr,
    ACT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    KEEP_Z: tl.constexpr,
    DEQUANT: tl.constexpr,  # not "affine"
    HAS_WEIGHT: tl.constexpr,
    MEAN: tl.constexpr,
    RULE: tl.constexpr,
    HAS_COPY: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVEN_K: tl.constexpr,
    RESIDENT: tl.constexpr,  # every program has at most one tile of the weights
    BARRIER: tl.constexpr,  # the phases of all steps in one launch
    LAYERS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    HEAD_M: tl.constexpr,
    HEAD_C: tl.constexpr,
    HEAD_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    mine = tl.minimum(pid, num_tiles - 1)
    layer, row, n, k, rows, cols = locate(
        table_ptr, num_layers, mine, ALIGNED, LAYERS, BLOCK_M, BLOCK_N, GROUP_M
    )
    if RESIDENT:
        w, first, second = load_weights(row, rows, cols, n, k, RULE)
    arrivals = tl.cast(0, tl.int64)
    for step in range(first_step, last_step):
        start = tl.cast(step, tl.int64) * batch
        M = tl.minimum(num_rows - start, batch).to(tl.int32)
        index = index_ptr + start
        hypers = hyper_ptr + tl.cast(step, tl.int64) * num_groups * HYPERS
        num_partials = tl.cdiv(M, HEAD_M)
        for phase in range(first_phase, last_phase):
            if phase < num_layers - 1:
                forward_phase(
                    phase, table_ptr, M, slope, x_ptr, stride_xm, stride_xk, index, x_scale,
                    ACT, HAS_BIAS, KEEP_Z, DEQUANT, ALIGNED, EVEN_K, DTYPE, PRECISION,
                    BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
                )  # fmt: skip
            elif phase == num_layers - 1:
                head_phase(
                    table_ptr, num_layers, M, C, slope, t_ptr, stride_t, stride_tc, index, cw_ptr, stride_cw,
                    partial_ptr, num_partials, ignore_index, smoothing, z_loss, LOSS,
                    ACT, HAS_BIAS, HAS_WEIGHT, MEAN, ALIGNED, DTYPE, PRECISION, HEAD_M, HEAD_C, HEAD_K,
                )  # fmt: skip
            elif phase < 2 * num_layers - 2:
                input_phase(
                    2 * num_layers - 2 - phase, table_ptr, M, slope,
                    ACT, ALIGNED, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M,
                )  # fmt: skip
            else:
                scale = gradient_scale(partial_ptr, num_partials, MEAN)
                if RESIDENT:
                    if pid < num_tiles:
                        g, bias_g = tile_gradient(
                            layer, row, n, k, rows, cols, 0, M,
                            x_ptr, stride_xm, stride_xk, index, x_scale, 0, 0.0, 0,
                            True, DEQUANT, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
                        )  # fmt: skip
                        w, first, second = apply_tile(
                            row, n, k, rows, cols, w, first, second, g * scale, bias_g * scale, hypers,
                            RULE, HAS_COPY, True, DTYPE,
                        )  # fmt: skip
                else:
                    for tile in range(pid, num_tiles, programs):
                        at, its, tn, tk, trows, tcols = locate(
                            table_ptr, num_layers, tile, ALIGNED, LAYERS, BLOCK_M, BLOCK_N, GROUP_M
                        )
                        g, bias_g = tile_gradient(
                            at, its, tn, tk, trows, tcols, 0, M,
                            x_ptr, stride_xm, stride_xk, index, x_scale, 0, 0.0, 0,
                            True, DEQUANT, DTYPE, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
                        )  # fmt: skip
                        tw, tfirst, tsecond = load_weights(its, trows, tcols, tn, tk, RULE)
                        apply_tile(
                            its, tn, tk, trows, tcols, tw, tfirst, tsecond, g * scale, bias_g * scale,
                            hypers, RULE, HAS_COPY, False, DTYPE,
                        )  # fmt: skip
                if pid == 0:
                    finish_step(partial_ptr, num_partials, loss_ptr, sums_ptr, M, MEAN)
            if BARRIER:
                arrivals += programs
                grid_barrier(barrier_ptr, arrivals)
    if RESIDENT:
        if pid < num_tiles:
            store_weights(row, rows, cols, n, k, w, first, second, RULE)


def runs_on(arch: str) -> bool:
    """Whether the barrier is proved for ``arch``: its memory order is NVIDIA's, or there are no threads."""
    return not arch.startswith("gfx")


def phases(depth: int) -> int:
    """Phases of a step: the hidden layers' forwards, the head, dZ of all but the last of them, the update."""
    return 2 * depth - 1


def epoch(
    net: network.Table,
    task: Task,
    x: Tensor,
    y: Tensor,
    order: Tensor,
    x_scale: Number,
    batch: int,
    partial: Tensor,
    hypers: Tensor,
    into: Accumulators,
    barrier: Tensor,
    *,
    tile: Tile,
    programs: int,
) -> None:
    """The steps of a whole epoch over x (N, K) and y, (N,) or (N, C), in the given order (N,). One launch.

    All layers have a bias or none has, all hidden layers have the first one's activation, there are two
    layers at least, and 16-bit products read copies. hypers (steps, groups, HYPERS), contiguous; partial
    and ``tile`` as in `train_step`; barrier () int64, zeroed before. ``programs`` of them must fit on the
    chip at once.
    """
    steps = cdiv(len(order), batch)
    classes = net.layers[-1].weight.shape[0]
    resident = net.tiles <= programs
    first, class_weight = net.layers[0], task.class_weight
    kind = configs.precision_class(task.dtype, task.precision)
    head = configs.lookup("head", arch_of(x), kind, *net.layers[-1].weight.shape)

    def run(first_step: int, last_step: int, first_phase: int, last_phase: int, barrier_on: bool) -> None:
        options = {} if INTERPRETED else {"launch_cooperative_grid": barrier_on}
        launch(
            epoch_kernel,
            (programs,),
            net.rows, net.depth, net.tiles,
            x, x.stride(0), x.stride(1), quantized.arguments(x_scale, None)[0],
            *targets(y).matrix, class_weight, 0 if class_weight is None else class_weight.stride(0),
            order,
            hypers, hypers.shape[1],
            partial,
            into.loss, into.sums, barrier,
            len(order), batch, first_step, last_step, first_phase, last_phase,
            classes, first.slope, task.ignore_index, float(task.label_smoothing) or None, float(task.z_loss),
            LOSS=task.loss,
            ACT=first.act,
            HAS_BIAS=first.bias is not None,
            KEEP_Z=first.keeps_z,
            DEQUANT=quantized.dequant(x_scale, None),
            HAS_WEIGHT=class_weight is not None,
            MEAN=task.reduction == "mean",
            RULE=task.rule,
            HAS_COPY=net.has_copies,
            ALIGNED=net.aligned,
            EVEN_K=net.even_k,
            RESIDENT=resident,
            BARRIER=barrier_on,
            LAYERS=next_power_of_2(net.depth),
            DTYPE=TL_DTYPE[task.dtype],
            PRECISION=task.precision,
            HEAD_M=head.BLOCK_M,
            HEAD_C=max(next_power_of_2(classes), 16),
            HEAD_K=head.BLOCK_K,
            **tile.options(),
            **options,
        )  # fmt: skip

    if not INTERPRETED:
        run(0, steps, 0, phases(net.depth), True)
        return
    for step in range(steps):
        for phase in range(phases(net.depth)):
            run(step, step + 1, phase, phase + 1, False)
