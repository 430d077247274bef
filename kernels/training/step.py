"""One training step of a whole network in 2L - 1 launches, the optimizer's update included."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastmlp.kernels.common.arguments import Source, activation, matrix
from fastmlp.kernels.linear.backward import Asked, linear_backward, undone
from fastmlp.kernels.linear.forward import linear_act
from fastmlp.kernels.loss.head import Results, head_step, hidden
from fastmlp.kernels.loss.softmax import Sums
from fastmlp.kernels.tiles.configs import Tile
from fastmlp.kernels.training.layer_table import Table
from fastmlp.kernels.training.recipe import Recipe
from fastmlp.kernels.training.update import Accumulators, update


def train_step(
    net: Table, recipe: Recipe, x: Source, y: Source, hypers: Tensor, into: Accumulators, tile: Tile
) -> None:
    """Forward, loss, backward and update of ``net``. 2L - 1 launches, L >= 2.

    x (M, K) and the head's targets y of the same M rows; hypers (groups, HYPERS); ``tile`` the one that
    ``net`` was made for. The net's buffers hold M rows at least, ``into`` the sums of the head's programs.
    """
    m = len(x.matrix.ptr if x.index is None else x.index)
    layers, source = net.batch(m), x
    how: dict[str, Any] = {"dtype": recipe.dtype, "precision": recipe.precision, "pdl": recipe.pdl}
    for layer in layers[:-1]:
        assert layer.y is not None
        linear_act(
            source,
            layer.copy,
            layer.bias,
            activation(layer.act, layer.slope),
            layer.keeps_z,
            out=(layer.y, layer.saved if layer.keeps_z else None),
            **how,
        )
        source = Source(matrix(layer.y))
    last, below = layers[-1], layers[-2]
    head_step(
        source.matrix.ptr,
        last.copy,
        last.bias,
        recipe.criterion(y),
        hidden(below.act, below.slope, below.saved),
        Results(Sums(into.partial), None, matrix(last.dz), matrix(below.dz)),
        **how,
    )
    for layer, below in reversed(list(zip(layers[1:-1], layers))):
        assert layer.x is not None
        linear_backward(
            layer.dz,
            Source(matrix(layer.x)),
            layer.copy,
            before=undone(activation(below.act, below.slope), below.saved),
            asked=Asked(params=False),
            out=below.dz,
            **how,
        )
    update(net, recipe, x, m, hypers, into, recipe.programs(net, m), tile)
