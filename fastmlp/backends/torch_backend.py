"""The torch backend: the same interface in plain torch, on any device and in float64 too.

On a CPU the functional layer calls ATen with ATen's autograd instead, which is faster (a Python
Function never pays there). This is the backend of the Functions where they do pay on a CPU, and
the statement of what the kernels compute that their tests run against.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmlp.activations import NONE, Act
from fastmlp.backends import logit_tiles
from fastmlp.backends.base import (
    Backend,
    BackwardOptions,
    Criterion,
    Dropout,
    HeadOptions,
    HeadResult,
    LinearGrads,
    Loss,
    LossOptions,
    Quantized,
    SquaredError,
    Undo,
)
from fastmlp.backends.pages import large_like
from fastmlp.backends.philox import keep_mask


class TorchBackend(Backend):
    """ATen's ops, one after another."""

    name = "torch"
    head_classes = sys.maxsize

    def linear_act(
        self,
        x: Tensor | Quantized,
        weight: Tensor,
        bias: Tensor | None,
        act: Act,
        keep_z: bool,
        dtype: torch.dtype,
        dropout: Dropout | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Backend.linear_act`."""
        x = x.to(dtype) if isinstance(x, Tensor) else x.dense(dtype)
        z = F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))
        y = act(z) if keep_z else act.write_over(z)
        return self._dropped(y, dropout), z if keep_z else None

    def linear_backward(
        self, grad: Tensor, x: Tensor | Quantized, weight: Tensor, options: BackwardOptions
    ) -> LinearGrads:
        """See `Backend.linear_backward`."""
        dtype, after, before, scale = options[:4]
        dslope = None
        grad = self._dropped(grad, after.dropout)
        saved, saved_before = _undropped(after), _undropped(before)
        if saved is not None:
            if after.act.weight is not None and options.need_params:
                dslope = torch.where(saved > 0, 0.0, grad * saved).sum(0)
            grad = grad * after.act.derivative(saved)
        factor = 1.0 if scale is None else scale.value()
        dx = dw = db = None
        if options.need_input:
            dx = self._dropped(grad.to(dtype) @ weight.to(dtype), before.dropout)
            if saved_before is not None:
                dx = dx * before.act.derivative(saved_before)
            if options.scale_input:
                dx = dx * factor
        if options.need_params:
            x = x.to(dtype) if isinstance(x, Tensor) else x.dense(dtype)
            dw = (grad.to(dtype).t() @ x).to(weight.dtype) * factor
            db = None if options.bias_dtype is None else grad.sum(0).to(options.bias_dtype) * factor
            dslope = None if dslope is None else dslope * factor
        return LinearGrads(dx, dw, db, dslope)

    def dropout_mask(self, dropout: Dropout, rows: int, features: int) -> Tensor:
        """See `Backend.dropout_mask`."""
        return keep_mask(dropout.p, dropout.seed, dropout.site, rows, features)

    def _dropped(self, y: Tensor, dropout: Dropout | None) -> Tensor:
        return y if dropout is None else y * self.dropout_mask(dropout, *y.shape) * (1 / (1 - dropout.p))

    def cross_entropy(self, logits: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backend.cross_entropy`; class indices without smoothing, D = 1.

        A few rows at a time stay in the cache through all passes, and nothing of the logits' size is
        kept. lse = max(x) - log(max(p)), and the largest p is at least 1/C: its log never saturates,
        as that of a rare class' p would. The loss adds up the two last: at logits around 1e4 one
        float would have no digits left for the logarithm.
        """
        options = criterion.options
        logits = logits[:, :, 0]
        kept, label, factor = _labels(criterion.target[:, 0], criterion.weight, options.ignore_index)
        peak, log_p = logits.new_empty(2, len(logits))
        chunks = _chunks(logits)
        buffer = torch.empty_like(logits[chunks[0]])
        for rows in chunks:
            x = logits[rows]
            p = torch.softmax(x, 1, out=buffer[: len(x)])
            torch.amax(x, 1, out=peak[rows])
            torch.amax(p, 1, out=log_p[rows])
        log_p.log_()
        lse = peak - log_p
        loss = ((peak - logits.gather(1, label[:, None])[:, 0]) - log_p) * factor
        if options.z_loss:
            loss = loss + options.z_loss * lse.square()
        loss = torch.where(kept[:, None], loss[:, None], 0.0)  # no view: its owner may write over it
        denominator = factor.sum() if options.reduction == "mean" else loss.new_ones(())
        if options.reduction != "none":
            loss = loss.sum() / denominator
        return loss, lse, denominator

    def cross_entropy_backward(
        self,
        grad: Tensor,
        logits: Tensor,
        criterion: Criterion,
        stats: Tensor,
        denominator: Tensor | None,
        out: Tensor,
    ) -> None:
        """See `Backend.cross_entropy_backward`."""
        options = criterion.options
        logits, out = logits[:, :, 0], out[:, :, 0]
        kept, label, factor = _labels(criterion.target[:, 0], criterion.weight, options.ignore_index)
        assert denominator is not None
        upstream = grad[:, 0] if options.reduction == "none" else (grad / denominator).expand(len(logits))
        upstream = torch.where(kept, upstream, 0.0)
        scale = upstream * (factor + 2 * options.z_loss * stats) if options.z_loss else upstream * factor
        for rows in _chunks(logits):
            torch.softmax(logits[rows], 1, out=out[rows]).mul_(scale[rows, None])
        out.scatter_add_(1, label[:, None], -(upstream * factor)[:, None])

    def cross_entropy_with_grad(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the logits' gradient for an upstream gradient of 1.

        logits (B, C) contiguous, no size 0; target (B,) int64, each ignored or a class; weight (C,).
        No label smoothing, no z-loss.
        """
        kept, index, factor = _labels(target, weight, options.ignore_index)
        factor = factor.to(logits.dtype)
        total = factor.sum() if options.reduction == "mean" else None
        # A mean over no rows is NaN, and has a gradient of 0.
        scale = factor if total is None else torch.where(kept, factor / total, 0.0)
        losses, grad = torch.empty_like(factor), large_like(logits)
        for rows in _chunks(logits):
            losses[rows], p = softmax_loss(logits[rows], index[rows], grad[rows])
            column = scale[rows, None]
            torch.mul(p, column, out=grad[rows]).scatter_add_(1, index[rows, None], -column)
        losses = torch.where(kept, losses * factor, 0.0)
        if options.reduction == "none":
            return losses, grad
        return losses.sum() if total is None else losses.sum() / total, grad

    def loss_of_rows(
        self, logits: Tensor, criterion: Criterion, upstream: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.loss_of_rows`."""
        return logit_tiles.loss_of_rows(logits, criterion, upstream)

    def loss_gradient(
        self,
        logits: Tensor,
        first: int,
        classes: int,
        criterion: Criterion,
        stats: Tensor,
        upstream: Tensor,
    ) -> None:
        """See `Backend.loss_gradient`."""
        logit_tiles.loss_gradient(logits, first, classes, criterion, stats, upstream)

    def loss_scratch(self, dtype: torch.dtype, dense: bool) -> float:
        """See `Backend.loss_scratch`."""
        return logit_tiles.scratch(dtype, dense)

    def mse_loss(
        self, input: Tensor, target: Tensor, weight: Tensor | None, options: SquaredError
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.mse_loss`."""
        wide = torch.promote_types(input.dtype, torch.float32)
        loss = (input.to(wide) - target.to(wide)).square()
        denominator = loss.new_tensor(loss.numel())
        if weight is not None:
            loss, denominator = loss * weight, weight.to(wide).sum()
        if options.reduction != "none":
            loss = loss.sum() / denominator if options.reduction == "mean" else loss.sum()
        return loss.to(input.dtype), denominator

    def mse_loss_backward(
        self,
        grad: Tensor,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        denominator: Tensor,
        options: SquaredError,
    ) -> Tensor:
        """See `Backend.mse_loss_backward`."""
        d = 2 * (input.to(denominator.dtype) - target) * grad
        d = d if weight is None else d * weight
        return (d / denominator if options.reduction == "mean" else d).to(input.dtype)

    def head(self, h: Tensor, weight: Tensor, bias: Tensor | None, options: HeadOptions) -> HeadResult:
        """See `Backend.head`."""
        target, class_weight, loss, wanted, dtype, loss_dtype, before = options
        logits, _ = self.linear_act(h, weight, bias, NONE, False, dtype)
        wide = logits if dtype == torch.float64 else logits.float()
        total, denominator, dlogits = _sum_of_losses(wide, target, class_weight, loss)
        dz = None
        if wanted.dz:
            dz = dlogits.to(dtype) @ weight.to(dtype)
            if before.saved is not None:
                dz = dz * before.act.derivative(before.saved)
        return HeadResult(
            (total / denominator).to(loss_dtype),
            denominator,
            logits if wanted.logits else None,
            dlogits.to(dtype) if wanted.dlogits else None,
            dz,
        )


def _sum_of_losses(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, options: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the rows' losses, what it is to be divided by, and the sum's gradient."""
    mean = options.reduction == "mean"
    if isinstance(options, SquaredError):
        d = logits - target.to(logits.dtype)
        total = d.square().sum()
        return total, torch.full_like(total, d.numel() if mean else 1), 2 * d
    c = logits.shape[1]
    w = logits.new_ones(c) if class_weight is None else class_weight.to(logits.dtype)
    kept = (target != options.ignore_index).to(logits.dtype)
    index = torch.where(target == options.ignore_index, 0, target)
    epsilon = options.label_smoothing
    a = w * ((1 - epsilon) * F.one_hot(index, c) + epsilon / c) * kept[:, None]
    lse = logits.logsumexp(1)
    total = (a.sum(1) * lse - (a * logits).sum(1) + options.z_loss * lse.square() * kept).sum()
    denominator = (w[index] * kept).sum() if mean else torch.ones_like(total)
    gradient = logits.softmax(1) * (a.sum(1) + 2 * options.z_loss * lse * kept)[:, None] - a
    return total, denominator, gradient


def _undropped(undo: Undo) -> Tensor | None:
    """What f' is computed from: where that is f's output, what is kept is the layer's."""
    act, saved, dropout = undo
    if saved is None or dropout is None or not act.saves_output:
        return saved
    return saved * (1 - dropout.p)


def _labels(target: Tensor, weight: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row whether it counts, its class or 0, and that class' weight, 0 where it does not count."""
    kept = target != ignore_index
    label = torch.where(kept, target, 0)
    return kept, label, kept if weight is None else torch.where(kept, weight[label], 0.0)


def _chunks(logits: Tensor) -> list[slice]:
    """Slices of rows of about 4 MB each: they stay in the cache, and have work for every core."""
    rows = max(1, (1 << 22) // (logits.shape[1] * logits.element_size()))
    return [slice(i, i + rows) for i in range(0, len(logits), rows)]


#: Up to this many classes a softmax along the rows works element by element; transposed it is vectorized,
#: and 7 times faster at 256 rows of 10, 15 times at 4096.
_FEW_CLASSES = 32


def softmax_loss(logits: Tensor, index: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The rows' losses (B,), and the softmax (B, C): in ``out``, or for few classes in fresh memory.

    Args:
        logits: (B, C), B and C not 0.
        index: (B,) int64, every one a class.
        out: (B, C).

    Raises:
        RuntimeError: an index that is not a class.
    """
    if logits.shape[1] <= _FEW_CLASSES:
        log_p = torch.log_softmax(logits.t(), 0)
        losses = log_p.gather(0, index.unsqueeze(0)).squeeze(0).neg_()
        return losses, log_p.exp_().t()
    p = torch.softmax(logits, 1, out=out)
    peak = torch.amax(logits, 1)
    # lse = max(x) - log(max(p)), and the largest p is at least 1/C: its log never saturates, as that of
    # a rare class' p would. Of logits around 1e4 one float would have no digits left for the logarithm.
    return (peak - logits.gather(1, index.unsqueeze(1)).squeeze(1)).sub_(torch.amax(p, 1).log_()), p
