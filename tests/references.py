"""The losses written out in torch's own ops, with what these lack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    z_loss: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """torch's, with the z-loss in the open: in float32 at least, and rounded once, but under autocast."""
    options: dict[str, Any] = {
        "ignore_index": ignore_index,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
    }
    if z_loss == 0:
        return F.cross_entropy(logits, target, weight, **options)
    dtype, soft = logits.dtype, target.is_floating_point()
    wide = torch.promote_types(dtype, torch.float32)
    logits, weight = logits.to(wide), None if weight is None else weight.to(wide)
    loss = F.cross_entropy(logits, target.to(wide) if soft else target, weight, **options)
    extra = z_loss * logits.logsumexp(0 if logits.dim() == 1 else 1).square()
    count = torch.ones_like(extra)
    if not soft:
        kept = target != ignore_index
        extra = extra.where(kept, 0)
        count = kept.to(wide) if weight is None else kept * weight[target.long().where(kept, 0)]
    more = {"none": extra, "sum": extra.sum(), "mean": extra.sum() / count.sum()}[reduction]
    return (loss + more).to(wide if torch.is_autocast_enabled(logits.device.type) else dtype)


def linear_cross_entropy(
    x: Tensor, w: Tensor, target: Tensor, linear_bias: Tensor | None = None, **options: Any
) -> Tensor:
    """torch's linear and cross_entropy, of classes in any number of dimensions."""
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    logits = F.linear(x, w.reshape(-1, w.shape[-1]), bias).reshape(*x.shape[:-1], *w.shape[:-1])
    if options.get("ignore_index", 0) is None:
        del options["ignore_index"]
    return F.cross_entropy(logits, target, **options)
