"""A whole epoch in one cooperative launch: the phases of a step, with a barrier of the grid between them.

The phases are the device functions of the kernels that a graph launches one after another: the layers'
forwards, the head, the hidden layers' dZ, the update. Programs take a phase's tiles in turns. Where
every program has at most one tile of the weights it keeps that tile, float32 with its optimizer state,
in registers from the first step to the last; others see the copy, which their next forward reads.

All programs must be on the chip at once, or the barrier never opens: `launch_cooperative_grid` sees to
it. Where programs run one after another (the interpreter) every phase is a launch of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastmlp.kernels.common.arguments import TL_DTYPE, Matrix, Source, Undo, Vector, activation
from fastmlp.kernels.launch import INTERPRETED, cdiv, launch
from fastmlp.kernels.linear.backward import input_tile
from fastmlp.kernels.linear.forward import linear_tile
from fastmlp.kernels.loss.head import Results, head_tile
from fastmlp.kernels.loss.softmax import Criterion, Sums
from fastmlp.kernels.tiles.configs import Tile
from fastmlp.kernels.training.layer_table import (
    COLUMNS,
    COPY,
    DZ,
    SAVED,
    B,
    Table,
    W,
    X,
    Y,
    load_features,
    load_matrix,
    load_pointer,
)
from fastmlp.kernels.training.optimizers import HYPERS
from fastmlp.kernels.training.recipe import Recipe
from fastmlp.kernels.training.update import (
    Accumulators,
    apply_tile,
    finish_step,
    gradient_scale,
    in_weight,
    load_state,
    locate,
    reloaded,
    store_state,
    tile_gradient,
)


class Turn(NamedTuple):
    """The one phase of the one step that a launch runs, where each phase has its own."""

    step: Any
    phase: Any


@triton.jit
def grid_barrier(counter_ptr, arrivals):
    """Wait until ``arrivals`` programs in all have arrived; what they wrote before is then visible.

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
def load_weight(row, k, DTYPE: tl.constexpr):
    """W (N, K) as the products read it."""
    return Matrix(load_pointer(row, COPY, DTYPE), k, 1)


@triton.jit
def forward_phase(layer, net, M, x, act, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """Y = f(X Wᵀ + b) of one hidden layer; ``x`` is the first one's X."""
    row = net.rows + layer * COLUMNS
    n, k = load_features(row, net.factor)
    w = load_weight(row, k, DTYPE)
    b_ptr = load_pointer(row, B, tl.float32)
    y = load_matrix(row, Y, DTYPE)
    z = load_matrix(row, SAVED, DTYPE)
    tiles = tl.cdiv(M, TILE.BLOCK_M) * tl.cdiv(n, TILE.BLOCK_N)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        if layer == 0:
            linear_tile(
                tile, x, w, Vector(b_ptr, 1) if net.bias else None, act, None, 0,
                y, z if net.keeps_z else None, M, n, k, TILE,
            )  # fmt: skip
        else:
            linear_tile(
                tile, Source(load_matrix(row, X, DTYPE)), w, Vector(b_ptr, 1) if net.bias else None, act,
                None, 0, y, z if net.keeps_z else None, M, n, k, TILE,
            )  # fmt: skip


@triton.jit
def input_phase(layer, net, M, act, DTYPE: tl.constexpr, TILE: tl.constexpr):
    """dZ of the layer below ``layer``."""
    row = net.rows + layer * COLUMNS
    below = row - COLUMNS
    n, k = load_features(row, net.factor)
    dz = load_matrix(row, DZ, DTYPE)
    w = load_weight(row, k, DTYPE)
    saved = load_matrix(below, SAVED, DTYPE)
    out = load_matrix(below, DZ, DTYPE)
    tiles = tl.cdiv(M, TILE.BLOCK_M) * tl.cdiv(k, TILE.BLOCK_N)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        input_tile(tile, dz, w, None, 0, Undo(act, saved, None), 0, 1.0, out, M, n, k, TILE)


@triton.jit
def head_phase(net, num_layers, M, C, act, criterion, index, into, DTYPE: tl.constexpr, HEAD: tl.constexpr):
    """Logits, loss, right answers, dlogits, and the last hidden layer's dZ."""
    row = net.rows + (num_layers - 1) * COLUMNS
    below = row - COLUMNS
    _, k = load_features(row, net.factor)
    h = load_matrix(row, X, DTYPE)
    w = load_weight(row, k, DTYPE)
    b_ptr = load_pointer(row, B, tl.float32)
    saved = load_matrix(below, SAVED, DTYPE)
    dlogits = load_matrix(row, DZ, DTYPE)
    dz = load_matrix(below, DZ, DTYPE)
    tiles = tl.cdiv(M, HEAD.BLOCK_M)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        head_tile(
            tile, tiles, h, w, Vector(b_ptr, 1) if net.bias else None, Undo(act, saved, None),
            Criterion(
                criterion.name, criterion.reduction, Source(criterion.target.matrix, index),
                criterion.weight, criterion.ignore_index, criterion.smoothing, criterion.z_loss,
            ),
            Results(Sums(into.partial), None, dlogits, dz), M, C, k, DTYPE, HEAD,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=["num_layers", "num_tiles", "num_groups", "num_rows", "batch", "steps", "phases"]
)
def epoch_kernel(
    net, num_layers, num_tiles,  # a TableArgument, of layers that all have a bias or none
    x,  # a Source: the data set's rows in the epoch's order (num_rows, K)
    criterion,  # a Criterion: of the data set's targets
    act,  # an Activation: of every hidden layer
    hyper_ptr, num_groups,  # (steps, groups, HYPERS)
    into,  # Accumulators; arrived is the barrier, () int64
    num_rows, batch, steps, phases, C,  # phases of a step; outputs of the net
    turn,  # a Turn, or None: all of them, with the barrier in between
    RULE: tl.constexpr,
    RESIDENT: tl.constexpr,  # every program has at most one tile of the weights
    DTYPE: tl.constexpr,
    TILE: tl.constexpr,  # Blocks
    HEAD: tl.constexpr,  # the head's Blocks
):  # fmt: skip
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    mine = locate(net, num_layers, tl.minimum(pid, num_tiles - 1), TILE)
    if RESIDENT:
        offsets, ok = in_weight(mine)
        state = load_state(mine.row, offsets, ok, W, RULE)
    if turn is None:
        first_step, last_step, first_phase, last_phase = 0, steps, 0, phases
    else:
        first_step, last_step, first_phase, last_phase = turn.step, turn.step + 1, turn.phase, turn.phase + 1
    for step in range(first_step, last_step):
        start = tl.cast(step, tl.int64) * batch
        M = tl.minimum(num_rows - start, batch).to(tl.int32)
        index = x.index + start
        hypers = hyper_ptr + tl.cast(step, tl.int64) * num_groups * HYPERS
        for phase in range(first_phase, last_phase):
            if phase < num_layers - 1:
                forward_phase(phase, net, M, Source(x.matrix, index, x.scale), act, DTYPE, TILE)
            elif phase == num_layers - 1:
                head_phase(net, num_layers, M, C, act, criterion, index, into, DTYPE, HEAD)
            elif phase < 2 * num_layers - 2:
                input_phase(2 * num_layers - 2 - phase, net, M, act, DTYPE, TILE)
            else:
                num_partials = tl.cdiv(M, HEAD.BLOCK_M)
                scale = gradient_scale(into, num_partials, criterion.reduction)
                if RESIDENT:
                    if pid < num_tiles:
                        place = reloaded(net, mine)
                        g, bias_g = tile_gradient(
                            place, Source(x.matrix, index, x.scale), 0, M, False, DTYPE, TILE
                        )
                        state = apply_tile(
                            net, place, state, g * scale, bias_g * scale, hypers, RULE, True, DTYPE
                        )
                else:
                    for tile in range(pid, num_tiles, programs):
                        place = locate(net, num_layers, tile, TILE)
                        g, bias_g = tile_gradient(
                            place, Source(x.matrix, index, x.scale), 0, M, False, DTYPE, TILE
                        )
                        offsets, ok = in_weight(place)
                        state = load_state(place.row, offsets, ok, W, RULE)
                        apply_tile(net, place, state, g * scale, bias_g * scale, hypers, RULE, False, DTYPE)
                if pid == 0:
                    finish_step(into, num_partials, M, criterion.reduction)
            if turn is None:
                done = tl.cast(step, tl.int64) * phases + (phase + 1)
                grid_barrier(into.arrived, done * programs)
    if RESIDENT:
        if pid < num_tiles:
            offsets, ok = in_weight(reloaded(net, mine))
            store_state(mine.row, offsets, ok, state, W, RULE)


def runs_on(arch: str) -> bool:
    """Whether the barrier is proven for ``arch``: its memory order is NVIDIA's, or it has no threads."""
    return not arch.startswith("gfx")


def phases(depth: int) -> int:
    """Phases of a step: the hidden layers' forwards, the head, dZ of all but the last of them, the update."""
    return 2 * depth - 1


def epoch(
    net: Table,
    recipe: Recipe,
    x: Source,
    y: Source,
    batch: int,
    hypers: Tensor,
    into: Accumulators,
    tile: Tile,
    programs: int,
) -> None:
    """The steps of a whole epoch, over the rows of ``x`` and ``y`` in the order of their index. One launch.

    All layers have a bias or none has, all hidden layers have the first one's activation, there are two
    layers at least, and 16-bit products read copies. x is dequantized by one number at most; hypers (steps,
    groups, HYPERS), contiguous; ``into`` and ``tile`` as in `train_step`, but ``into.arrived`` is
    the barrier, () int64, zeroed before. All ``programs`` must fit on the chip at once.
    """
    rows, first = len(x.index), net.layers[0]
    steps = cdiv(rows, batch)
    alike = {"bias": tl.constexpr(first.bias is not None), "keeps_z": tl.constexpr(first.keeps_z)}
    argument, head = net.argument._replace(**alike), recipe.head_tile(net)
    options = {} if INTERPRETED else {"launch_cooperative_grid": True}

    def run(turn: Turn | None) -> None:
        launch(
            epoch_kernel,
            (programs,),
            argument, net.depth, net.tiles,
            x,
            recipe.criterion(y),
            activation(first.act, first.slope),
            hypers, hypers.shape[1],
            into,
            rows, batch, steps, phases(net.depth), net.layers[-1].weight.shape[0],
            turn,
            RULE=recipe.rule,
            RESIDENT=net.tiles <= programs,
            DTYPE=TL_DTYPE[recipe.dtype],
            TILE=tile.blocks(net.inner, recipe.precision),
            HEAD=head,
            **tile.options,
            **options,
        )  # fmt: skip

    if not INTERPRETED:
        run(None)
        return
    for step in range(steps):
        for phase in range(phases(net.depth)):
            run(Turn(step, phase))
