"""Tiles of a linear layer's logits in plain torch: their loss and gradient, and the products around them.

Every argument of the loss is taken, in float16 to float64. All forms of it are Σ_c a_c (lse - x_c) with
gradient A p_c - a_c, A = Σ_c a_c, as in `fastmlp.kernels.loss.softmax`. A block of rows at a time
is computed in float32 (float64 for float64), in place where the logits are that already, so that what is
allocated stays a fraction of the tile.

The products are torch's own, into memory that is there. Panels of 2,000 classes instead of whole tiles were
tried on a CPU in float32, where MKL likes few columns: 4 % faster at (512, 512, 32000) on two idle cores,
half as fast on busy ones, for the many calls wait there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastmlp.backends.base import Criterion

_BLOCK = 1 << 24  # bytes: no more than the last cache holds, and few calls
_PARTS = 4  # a block is at most this part of its tile
_CAST = 8192  # classes whose weights' gradient is in memory in two dtypes at once


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out (M, C) = x (M, K) weightᵀ + bias."""
    if bias is None:
        torch.mm(x, weight.t(), out=out)
    else:
        torch.addmm(bias, x, weight.t(), out=out)


def input_gradient(dlogits: Tensor, weight: Tensor, out: Tensor) -> None:
    """out (M, K) = dlogits (M, C) weight."""
    if out.dtype == dlogits.dtype:
        torch.mm(dlogits, weight, out=out)
    else:
        out.copy_(torch.mm(dlogits, weight))


def weight_gradient(dlogits: Tensor, x: Tensor, out: Tensor, accumulate: bool) -> None:
    """out (C, K) = dlogitsᵀ x, or added to it, which takes an ``out`` of the operands' dtype."""
    if accumulate:
        out.addmm_(dlogits.t(), x)
    elif out.dtype == dlogits.dtype:
        torch.mm(dlogits.t(), x, out=out)
    else:
        for first in range(0, len(out), _CAST):
            part = slice(first, first + _CAST)
            out[part].copy_(torch.mm(dlogits[:, part].t(), x))


def scratch(dtype: torch.dtype, dense: bool) -> float:
    """Bytes allocated for each element of a tile: see `Backend.loss_scratch`."""
    wide = torch.promote_types(dtype, torch.float32)
    copies = (wide != dtype) + 3 * dense
    return copies * wide.itemsize / _PARTS


def loss_of_rows(logits: Tensor, criterion: Criterion, upstream: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `Backend.loss_of_rows`."""
    n, c, d = logits.shape
    options = criterion.options
    wide = torch.promote_types(logits.dtype, torch.float32)
    losses = torch.empty((n, d), dtype=wide, device=logits.device)
    stats = torch.empty((3, n * d), dtype=wide, device=logits.device)
    for rows in _blocks(logits):
        x = _rows(logits, rows).to(wide)
        part = _part(criterion, rows)
        t = part.target
        peak = x.amax(1)
        a = None
        if _is_dense(part):
            a = _coefficients(part, x, 0, c)
            total = a.sum(1)
            weighted = (x - _finite(peak).unsqueeze(1)).mul_(a).sum(1)
        else:
            index, total = _index_and_weight(part, wide)
            weighted = total * (x.gather(1, index.unsqueeze(1)).squeeze(1) - peak)
        log_sum = _softmax(x, peak)
        loss = total * log_sum - weighted
        if not t.is_floating_point():
            ignored = t == options.ignore_index
            loss = torch.where(ignored, 0.0, loss)
            total = torch.where(ignored, 0.0, total)
        losses[rows] = loss.view(-1, d)
        at = slice(rows.start * d, rows.stop * d)
        for plane, value in zip(stats, (peak, log_sum, total)):
            plane[at] = value.reshape(-1)
        if upstream is not None:
            _subtract(x.mul_((upstream * total).unsqueeze(1)), a, part, total, 0, upstream)
            if wide != logits.dtype:
                _rows(logits, rows).copy_(x)
        del x, a  # before the next block is made
    return losses, stats


def loss_gradient(
    logits: Tensor, first: int, classes: int, criterion: Criterion, stats: Tensor, upstream: Tensor
) -> None:
    """See `Backend.loss_gradient`."""
    n, _, d = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    for rows in _blocks(logits):
        x = _rows(logits, rows).to(wide)
        part = _part(criterion, rows)
        t = part.target
        peak, log_sum, total = (_rows(plane.view(n, d), rows) for plane in stats)
        up = _rows(upstream, rows).to(wide)
        if not t.is_floating_point():  # selected, not multiplied: 0 * inf is NaN
            up = torch.where(t == criterion.options.ignore_index, 0.0, up)
        # Not exp(x - lse): near 1e4 one float has no digits left for the difference.
        x.sub_(peak.unsqueeze(1)).exp_().mul_((up * total * log_sum.neg().exp_()).unsqueeze(1))
        a = _coefficients(part, x, first, classes) if _is_dense(part) else None
        _subtract(x, a, part, total, first, up)
        if wide != logits.dtype:
            _rows(logits, rows).copy_(x)
        del x, a


def _subtract(
    x: Tensor, a: Tensor | None, criterion: Criterion, total: Tensor, first: int, up: Tensor
) -> None:
    """x -= up * a, for classes from ``first`` on; of class indices alone, a is ``total`` at the target."""
    if a is not None:
        x.sub_(a.mul_(up if up.dim() == 0 else up.unsqueeze(1)))
        return
    target, _, options = criterion
    inside = (target >= first) & (target < first + x.shape[1]) & (target != options.ignore_index)
    index = torch.where(inside, target - first, 0).unsqueeze(1)
    x.scatter_add_(1, index, torch.where(inside, -(up * total), 0.0).unsqueeze(1))


def _is_dense(criterion: Criterion) -> bool:
    return criterion.target.is_floating_point() or criterion.options.label_smoothing > 0


def _index_and_weight(criterion: Criterion, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """A class for every row (0 for the ignored), and its weight."""
    target, weight, options = criterion
    index = torch.where(target == options.ignore_index, 0, target)
    return index, torch.ones_like(index, dtype=wide) if weight is None else weight.to(wide)[index]


def _coefficients(criterion: Criterion, x: Tensor, first: int, classes: int) -> Tensor:
    """a_c = w_c ((1 - ε) t_c + ε / C) of the classes of ``x``, from ``first`` on; 0 in ignored rows."""
    target, weight, options = criterion
    epsilon, last = options.label_smoothing, first + x.shape[1]
    if target.is_floating_point():
        a = torch.empty_like(x).copy_(target[:, first:last]).mul_(1 - epsilon)
        a.add_(epsilon / classes)
    else:
        kept = target != options.ignore_index
        a = (kept.to(x.dtype) * (epsilon / classes)).unsqueeze(1).expand(x.shape).contiguous()
        inside = kept & (target >= first) & (target < last)
        index = torch.where(inside, target - first, 0).unsqueeze(1)
        a.scatter_add_(1, index, (inside.to(x.dtype) * (1 - epsilon)).unsqueeze(1))
    if weight is not None:
        w = weight[first:last].to(x.dtype)
        a.mul_(w if x.dim() == 2 else w.unsqueeze(1))
    return a


def _softmax(x: Tensor, peak: Tensor) -> Tensor:
    """Softmax along the classes in place; returns lse - ``peak``, the maximum of ``x``."""
    if x.dtype == torch.float64:  # of which ATen's softmax is good to 20 units in the last place
        x.sub_(peak.unsqueeze(1)).exp_()
        total = x.sum(1)
        x.div_(total.unsqueeze(1))
        return total.log_()
    torch.softmax(x, 1, out=x)
    # The largest p is at least 1/C: its log never saturates, as that of a rare class' p would.
    return x.amax(1).log_().neg_()


def _finite(peak: Tensor) -> Tensor:
    return torch.where(peak == -torch.inf, 0.0, peak)


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    """Some rows of (N, D) or (N, C, D), without a D of 1: ATen has a fast softmax of the last dimension."""
    part = tensor[rows]
    return part.squeeze(-1) if part.shape[-1] == 1 else part


def _part(criterion: Criterion, rows: slice) -> Criterion:
    """Of some rows, as `_rows`."""
    return criterion._replace(target=_rows(criterion.target, rows))


def _blocks(logits: Tensor) -> Iterator[slice]:
    n, v, d = logits.shape
    rows = _BLOCK // (v * d * max(logits.element_size(), 4))
    rows = max(1, min(max(rows, torch.get_num_threads()), -(-n // _PARTS)))
    return (slice(i, min(i + rows, n)) for i in range(0, n, rows))
