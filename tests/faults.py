"""Faults to plant: a line that is right, and one as it might have been written.

Over all rooms, a few of each kind: a sign, a stride, a mask, an epsilon, a reduction, an argument that is
ignored, a route that is stale.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """One of them."""

    file: str
    what: str
    right: str  # occurs once in the file
    wrong: str
    tests: tuple[str, ...] = ()  # where it is looked for first; else beside the file's mirror


FAULTS = (
    # kernels
    Fault(
        "kernels/common/activations.py",
        "sign: GELU's derivative",
        "return cdf + saved * 0.3989",
        "return cdf - saved * 0.3989",
    ),
    Fault(
        "kernels/common/activations.py",
        "NaN: ReLU makes a number of it",
        "return tl.where(z <= 0, 0.0, z)",
        "return tl.where(z > 0, z, 0.0)",
    ),
    Fault(
        "kernels/common/device.py",
        "rounding: bf16 is cut off",
        "bits + 0x7FFF + ((bits >> 16) & 1)",
        "bits",
    ),
    Fault(
        "kernels/common/dropout.py",
        "order: two of four features are exchanged",
        "tl.join(_keep(r0, p), _keep(r2, p))",
        "tl.join(_keep(r0, p), _keep(r1, p))",
    ),
    Fault(
        "kernels/linear/forward.py",
        "mask: K's tail is not masked",
        "w_tile = tl.load(ws, mask=col_ok & (k[:, None] < K - start), other=0.0)",
        "w_tile = tl.load(ws, mask=col_ok, other=0.0)",
    ),
    Fault(
        "kernels/linear/forward.py",
        "order: Z is stored after the activation",
        "store(at(z, rows, cols), acc, inside)",
        "store(at(z, rows, cols), activate(acc, 0.0, act.name), inside)",
    ),
    Fault(
        "kernels/linear/backward.py",
        "stride: dY is walked along its rows",
        "grads += TILE.BLOCK_K * grad.col",
        "grads += TILE.BLOCK_K * grad.row",
    ),
    Fault(
        "kernels/linear/backward.py",
        "split: the bias' gradient is left out of the workspace",
        "store(tail, bias, once)",
        "store(tail, bias * 0.0, once)",
    ),
    Fault(
        "kernels/loss/softmax.py",
        "infinity: a maximum of -inf is subtracted",
        'return tl.where(m == float("-inf"), 0.0, m)',
        "return m",
    ),
    Fault(
        "kernels/loss/softmax.py",
        "smoothing: spread over one class less",
        "share = tl.where(share, 1.0 - smoothing, 0.0) + smoothing / C",
        "share = tl.where(share, 1.0 - smoothing, 0.0) + smoothing / (C - 1)",
    ),
    Fault(
        "kernels/loss/softmax.py",
        "mean: over no weight it is 0",
        'return tl.where(weight == 0, float("nan"), total / weight)',
        "return tl.where(weight == 0, 0.0, total / weight)",
    ),
    Fault(
        "kernels/loss/mse.py",
        "factor: the gradient's 2",
        "store(dx_ptr + i, 2.0 * upstream * d, ok)",
        "store(dx_ptr + i, upstream * d, ok)",
    ),
    Fault(
        "kernels/loss/head.py",
        "bias: the head's is left out",
        "x += load_vector(bias, cols, C)[None, :]",
        "x += 0.0 * load_vector(bias, cols, C)[None, :]",
    ),
    Fault(
        "kernels/training/optimizers.py",
        "epsilon: inside the root's correction",
        "denominator = root + tl.load(hyper_ptr + 6)",
        "denominator = root + tl.load(hyper_ptr + 6) / tl.load(hyper_ptr + 7)",
    ),
    Fault(
        "kernels/training/update.py",
        "reduction: a mean's gradient is a sum's",
        "return tl.where(weight == 0, 0.0, 1.0 / weight)",
        "return tl.where(weight == 0, 0.0, 1.0)",
    ),
)
