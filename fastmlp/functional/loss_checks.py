"""What the arguments of a loss must look like, and which of them the kernels take."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmlp import backends
from fastmlp.backends.base import LossOptions
from fastmlp.backends.route import debugging

REDUCTIONS = ("none", "mean", "sum")
#: A loss' input, target and weight.
Tensors = tuple[Tensor, Tensor, Tensor | None]


def widened(input: Tensor, target: Tensor, weight: Tensor | None) -> Tensors:
    """What autocast makes of a loss' arguments."""
    half = (torch.float16, torch.bfloat16)
    wide = [t.float() if t is not None and t.dtype in half else t for t in (input, target, weight)]
    return tuple(wide)  # type: ignore[return-value]


def takes_constants(target: Tensor, weight: Tensor | None, rank: int, options: LossOptions) -> bool:
    """Whether kernels take a cross-entropy's target, class weights and options, for logits of ``rank`` dims.

    The gradients of target and weight are torch's, and so are corners of class indices where torch's own op
    says what is right: a smoothing of 1 multiplies the target's loss by 0, which makes a NaN of an infinite
    one; uint8 is an error in images, and where class weights are to be gathered for a smoothed mean.
    """
    if options.reduction not in REDUCTIONS:
        return False
    if any(t is not None and (t.requires_grad or not backends.readable(t)) for t in (target, weight)):
        return False
    if target.is_floating_point():
        return True
    refused = rank > 2 or (weight is not None and options.label_smoothing > 0 and options.reduction == "mean")
    return options.label_smoothing != 1 and not (target.dtype == torch.uint8 and refused)


def check_loss(
    shape: tuple[int, ...], like: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions
) -> None:
    """Raise an error that names the argument, its shape and what was expected.

    Args:
        shape: of the logits.
        like: a tensor of the logits' device and dtype.
        target: see `fastmlp.functional.cross_entropy`.
        weight: see `fastmlp.functional.cross_entropy`.
        options: see `fastmlp.functional.cross_entropy`.
    """
    if not 0 <= options.label_smoothing <= 1:
        raise RuntimeError(f"label_smoothing: expected a number in [0, 1], got {options.label_smoothing}")
    _check_target(shape, like, target, options)
    if weight is not None:
        _check_weight(shape[1], like, weight)
    if debugging() and not target.is_floating_point():
        wrong = (target != options.ignore_index) & ((target < 0) | (target >= shape[1]))
        if bool(wrong.any()):
            raise IndexError(f"target: {int(target[wrong][0])} is out of bounds for {shape[1]} classes")


def _check_target(shape: tuple[int, ...], like: Tensor, target: Tensor, options: LossOptions) -> None:
    rows, soft = (shape[0], *shape[2:]), target.is_floating_point()
    if target.shape != (shape if soft else rows):
        wanted = f"probabilities of input's shape {shape}" if soft else f"{rows} for input {shape}"
        error = ValueError if target.shape[:1] != shape[:1] else RuntimeError  # as torch's
        raise error(f"target: expected {wanted}, got {tuple(target.shape)}")
    if soft and options.ignore_index >= 0:
        raise RuntimeError("ignore_index: of no use with class probabilities as the target")
    if not soft and target.dtype not in (torch.int64, torch.uint8):
        raise RuntimeError(f"target: expected class indices of int64 or uint8, got {target.dtype}")
    if target.device != like.device:
        raise RuntimeError(f"target: expected on {like.device} as the input, got {target.device}")


def _check_weight(classes: int, like: Tensor, weight: Tensor) -> None:
    if weight.shape != (classes,):
        raise RuntimeError(f"weight: expected ({classes},), one a class, got {tuple(weight.shape)}")
    if weight.device != like.device or weight.dtype != like.dtype:
        raise RuntimeError(
            f"weight: expected {like.dtype} on {like.device} as the input, "
            f"got {weight.dtype} on {weight.device}"
        )


def check_linear(
    input: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    ignore_index: int | None,
    workspace: int | None,
) -> tuple[int, ...]:
    """The shape of a linear layer's logits, (N, C, d1, ...) or (C,).

    Raises:
        RuntimeError: shapes that do not fit, as torch's; an ``ignore_index`` beside class probabilities.
        ValueError: no ``workspace``.
    """
    if input.dim() not in (1, 2):
        raise RuntimeError(f"input: expected (N, K) or (K,), got {tuple(input.shape)}")
    if weight.dim() < 2:
        raise RuntimeError(f"linear_weight: expected (C, ..., K), got {tuple(weight.shape)}")
    if input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"linear_weight: expected (C, ..., {input.shape[-1]}) for input {tuple(input.shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:-1]:
        raise RuntimeError(
            f"linear_bias: expected {tuple(weight.shape[:-1])} for linear_weight "
            f"{tuple(weight.shape)}, got {tuple(bias.shape)}"
        )
    if weight.dim() > 2 and input.dim() == 1:
        raise RuntimeError(
            f"input: expected (N, {input.shape[0]}) for a linear_weight of {weight.dim()} dimensions, "
            f"got {tuple(input.shape)}"
        )
    shape = (*input.shape[:-1], *weight.shape[:-1])
    if target.shape == shape and ignore_index is not None:
        raise RuntimeError("ignore_index: cannot be given with class probabilities as the target")
    if workspace is not None and workspace <= 0:
        raise ValueError(f"workspace: expected a positive number of bytes or None, got {workspace}")
    return shape
