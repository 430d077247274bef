"""The Triton backend: chooses precision and hands tensors to the kernels' launchers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmlp.activations import NONE, Act
from fastmlp.backends.base import Backend, HeadResult, LinearGrads, LossOptions, Scale
from fastmlp.kernels import cross_entropy as loss_kernels
from fastmlp.kernels.head import MAX_CLASSES, head
from fastmlp.kernels.linear import linear_act
from fastmlp.kernels.linear_backward import linear_backward


def fp32_precision() -> str:
    """What float32 matrices are multiplied in: torch's own TF32 setting."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


class TritonBackend(Backend):
    """Fused kernels, on a GPU or in Triton's interpreter."""

    name = "triton"
    head_classes = MAX_CLASSES

    def linear_act(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, act: Act, keep_z: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """See `Backend.linear_act`."""
        return linear_act(x, weight, bias, act.name, act.slope, act.weight, keep_z, dtype, _precision(dtype))

    def linear_backward(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        *,
        act: Act = NONE,
        saved: Tensor | None = None,
        previous_act: Act = NONE,
        previous_saved: Tensor | None = None,
        scale: Scale | None = None,
        scale_input: bool = False,
        need_input: bool = True,
        need_params: bool = True,
        bias_dtype: torch.dtype | None = None,
        dtype: torch.dtype,
    ) -> LinearGrads:
        """See `Backend.linear_backward`."""
        return LinearGrads(
            *linear_backward(
                grad,
                x,
                weight,
                act=act.name,
                saved=saved,
                slope=act.slope,
                slope_weight=act.weight,
                previous_act=previous_act.name,
                previous_saved=previous_saved,
                previous_slope=previous_act.slope,
                scale=scale,
                scale_input=scale_input,
                need_input=need_input,
                need_params=need_params,
                bias_dtype=bias_dtype,
                dtype=dtype,
                precision=_precision(dtype),
            )
        )

    def cross_entropy(
        self, logits: Tensor, target: Tensor, weight: Tensor | None, options: LossOptions
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `Backend.cross_entropy`."""
        return loss_kernels.forward(logits, target, weight, **options._asdict())

    def cross_entropy_backward(
        self,
        grad: Tensor,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        stats: Tensor,
        denominator: Tensor,
        out: Tensor,
        options: LossOptions,
    ) -> None:
        """See `Backend.cross_entropy_backward`."""
        loss_kernels.backward(
            grad,
            logits,
            target,
            weight,
            stats,
            denominator,
            out,
            reduction=options.reduction,
            ignore_index=options.ignore_index,
            label_smoothing=options.label_smoothing,
        )

    def loss_of_rows(
        self,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: LossOptions,
        upstream: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.loss_of_rows`."""
        rows = options._replace(reduction="none")._asdict()
        loss, stats, _ = loss_kernels.forward(logits, target, weight, loss_dtype=torch.float32, **rows)
        if upstream is not None:
            each = upstream.expand(loss.shape)
            self.loss_gradient(logits, 0, target, weight, stats, each, options, logits.shape[1])
        return loss, stats

    def loss_gradient(
        self,
        logits: Tensor,
        first: int,
        target: Tensor,
        weight: Tensor | None,
        stats: Tensor,
        upstream: Tensor,
        options: LossOptions,
        classes: int,
    ) -> None:
        """See `Backend.loss_gradient`."""
        loss_kernels.backward(
            upstream,
            logits,
            target,
            weight,
            stats,
            None,
            logits,
            reduction="none",
            ignore_index=options.ignore_index,
            label_smoothing=options.label_smoothing,
            first=first,
            classes=classes,
        )

    def loss_scratch(self, dtype: torch.dtype, dense: bool) -> float:
        """See `Backend.loss_scratch`."""
        return 0

    def head(
        self,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        class_weight: Tensor | None,
        options: LossOptions,
        *,
        previous_act: Act,
        previous_saved: Tensor | None,
        keep_logits: bool,
        need_grad: bool,
        need_input: bool,
        dtype: torch.dtype,
        loss_dtype: torch.dtype,
    ) -> HeadResult:
        """See `Backend.head`."""
        result = head(
            h,
            weight,
            bias,
            target,
            class_weight,
            previous_act=previous_act.name,
            previous_saved=previous_saved,
            previous_slope=previous_act.slope,
            keep_logits=keep_logits,
            need_grad=need_grad,
            need_input=need_input,
            dtype=dtype,
            loss_dtype=loss_dtype,
            precision=_precision(dtype),
            **options._asdict(),
        )
        return HeadResult(*result)


def _precision(dtype: torch.dtype) -> str:
    """16-bit operands are multiplied exactly: only float32 has a choice."""
    return fp32_precision() if dtype == torch.float32 else "ieee"
