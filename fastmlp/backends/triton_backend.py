"""The Triton backend: chooses precision and the way, and hands tensors to the kernels' launchers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastmlp.activations import Act
from fastmlp.backends.base import (
    NOTHING,
    Backend,
    BackwardOptions,
    Criterion,
    Dropout,
    HeadOptions,
    HeadResult,
    LinearGrads,
    Net,
    NetForward,
    NetGrads,
    NetLayout,
    Quantized,
    Recorded,
    SquaredError,
    Undo,
)
from fastmlp.backends.torch_backend import TorchBackend
from fastmlp.kernels.common import arguments, quantized
from fastmlp.kernels.common.dropout import dropout_mask
from fastmlp.kernels.common.replay import Replay
from fastmlp.kernels.linear.backward import Asked, Undone, linear_backward, undone
from fastmlp.kernels.linear.forward import linear_act
from fastmlp.kernels.linear.tma import (
    backward_misfit,
    forward_misfit,
    linear_act_tma,
    linear_backward_tma,
)
from fastmlp.kernels.loss import cross_entropy as loss_kernels
from fastmlp.kernels.loss import mse
from fastmlp.kernels.loss.head import MAX_CLASSES, head, hidden, targets
from fastmlp.kernels.loss.softmax import criterion
from fastmlp.kernels.mlp import forward as mlp_kernels
from fastmlp.kernels.mlp.backward import mlp_backward, places
from fastmlp.kernels.mlp.forward import mlp_forward, saved_offsets
from fastmlp.kernels.tiles import decisions
from fastmlp.kernels.tiles.decisions import LIBRARY, TMA


def fp32_precision() -> str:
    """What float32 matrices are multiplied in: torch's own TF32 setting."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


_library = TorchBackend()  # on a GPU its products are cuBLAS'


class TritonBackend(Backend):
    """Fused kernels, on a GPU or in Triton's interpreter, and cuBLAS where that measured faster."""

    name = "triton"
    head_classes = MAX_CLASSES

    def recorded(self, function: Callable[..., Any], patience: int = 0) -> Recorded:
        """See `Backend.recorded`."""
        return Replay(function, patience)

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
        precision = _precision(dtype)
        if isinstance(x, Tensor) and dropout is None:  # of the others the pointer kernel alone knows
            ways = decisions.order("forward", x, weight, dtype, precision, x.shape[0])
            way = ways[0]
            if way == TMA:
                way = _instead(ways, forward_misfit(x, weight, dtype, precision))
            if way == LIBRARY:
                with torch.autocast(x.device.type, enabled=False):  # the dtype is chosen
                    return _library.linear_act(x, weight, bias, act, keep_z, dtype)
            if way == TMA:
                return linear_act_tma(x, weight, bias, _activation(act), keep_z, dtype, precision)
        return linear_act(
            _source(x), weight, bias, _activation(act), keep_z, dtype, precision, dropout=dropout
        )

    def linear_backward(
        self, grad: Tensor, x: Tensor | Quantized, weight: Tensor, options: BackwardOptions
    ) -> LinearGrads:
        """See `Backend.linear_backward`."""
        dtype, after, before, scale = options[:4]
        precision = _precision(dtype)
        way = ""
        if isinstance(x, Tensor) and after.dropout is None and before.dropout is None:
            op = "backward" if after.act.name == "none" else "backward_prologue"
            ways = decisions.order(op, x, weight, dtype, precision, x.shape[0])
            way = ways[0]
            if way == TMA:
                misfit = backward_misfit(grad, x, weight, before.saved, dtype, precision, after.act.name)
                way = _instead(ways, misfit)
        if way == LIBRARY:
            with torch.autocast(grad.device.type, enabled=False):
                return _library.linear_backward(grad, x, weight, options)
        asked: dict[str, Any] = {
            "before": _undone(before),
            "scale": None if scale is None else arguments.Scale(*scale),
            "scale_input": options.scale_input,
            "asked": Asked(options.need_input, options.need_params, options.bias_dtype),
            "dtype": dtype,
            "precision": precision,
        }
        if way == TMA:
            assert isinstance(x, Tensor)
            return LinearGrads(*linear_backward_tma(grad, x, weight, **asked))
        return LinearGrads(*linear_backward(grad, _source(x), weight, after=_undone(after), **asked))

    def dropout_mask(self, dropout: Dropout, rows: int, features: int) -> Tensor:
        """See `Backend.dropout_mask`."""
        return dropout_mask(dropout, rows, features)

    def cross_entropy(self, logits: Tensor, criterion: Criterion) -> tuple[Tensor, Tensor, None]:
        """See `Backend.cross_entropy`."""
        target, weight, options = criterion
        return *loss_kernels.forward(logits, target, weight, **options._asdict()), None

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
        _loss_backward(criterion.options.reduction, grad, logits, criterion, stats, out)

    def loss_of_rows(
        self, logits: Tensor, criterion: Criterion, upstream: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.loss_of_rows`."""
        target, weight, options = criterion
        rows = options._replace(reduction="none")._asdict()
        loss, stats = loss_kernels.forward(logits, target, weight, loss_dtype=torch.float32, **rows)
        if upstream is not None:
            each = upstream.expand(loss.shape)
            self.loss_gradient(logits, 0, logits.shape[1], criterion, stats, each)
        return loss, stats

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
        _loss_backward("none", upstream, logits, criterion, stats, logits, first=first, classes=classes)

    def loss_scratch(self, dtype: torch.dtype, dense: bool) -> float:
        """See `Backend.loss_scratch`."""
        return 0

    def mse_loss(
        self, input: Tensor, target: Tensor, weight: Tensor | None, options: SquaredError
    ) -> tuple[Tensor, Tensor]:
        """See `Backend.mse_loss`."""
        return mse.forward(input, target, weight, reduction=options.reduction)

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
        return mse.backward(grad, input, target, weight, denominator, reduction=options.reduction)

    def head(self, h: Tensor, weight: Tensor, bias: Tensor | None, options: HeadOptions) -> HeadResult:
        """See `Backend.head`."""
        target, class_weight, loss, wanted, dtype, loss_dtype, (act, saved, _) = options
        found = head(
            h,
            weight,
            bias,
            criterion(loss.loss, target=targets(target), weight=class_weight, **loss._asdict()),
            hidden(act.name, act.slope, saved),
            wanted,
            dtype=dtype,
            loss_dtype=loss_dtype,
            precision=_precision(dtype),
        )
        return HeadResult(*found)

    def mlp(self, x: Tensor, net: Net, *, save: bool, keep_z: bool) -> NetForward:
        """See `Backend.mlp`."""
        return NetForward(*mlp_forward(x, _net(net), save=save, keep_z=keep_z))

    def net_layout(self, widths: Sequence[int]) -> NetLayout:
        """See `Backend.net_layout`."""
        return NetLayout(saved_offsets(widths[1:-1]), places(widths))

    def mlp_backward(
        self,
        grad: Tensor,
        x: Tensor,
        net: Net,
        saved: Tensor | None,
        out_saved: Tensor | None,
        *,
        need_input: bool,
        need_params: bool,
    ) -> NetGrads:
        """See `Backend.mlp_backward`."""
        needs = {"need_input": need_input, "need_params": need_params}
        return NetGrads(*mlp_backward(grad, x, _net(net), saved, out_saved, **needs))


def _loss_backward(
    reduction: str, grad: Tensor, logits: Tensor, criterion: Criterion, *others: Tensor, **part: Any
) -> None:
    """The logits' gradient by the kernel, of all classes or a ``part`` of them."""
    target, weight, (ignore_index, _, label_smoothing, _) = criterion
    loss_kernels.backward(
        grad,
        logits,
        target,
        weight,
        *others,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        **part,
    )


def _instead(ways: tuple[str, ...], misfit: str | None) -> str:
    """The first of ``ways``, which is TMA, or what comes next where it cannot take the arguments."""
    if misfit is None:
        return TMA
    if len(ways) == 1:
        raise ValueError(f"{TMA}: {misfit}")  # forced, and nothing else allowed
    return ways[1]


def _net(net: Net) -> mlp_kernels.Net:
    """The network as its kernels take it."""
    params, hidden, out = net.params, net.acts[0], net.acts[-1]
    return mlp_kernels.Net(
        params[0::3],  # type: ignore[arg-type]
        params[1::3],
        params[2:-1:3],
        hidden.name,
        hidden.slope,
        out.name,
        out.slope,
        not hidden.saves_output,
        net.dtype,
        _precision(net.dtype),
    )


def _source(x: Tensor | Quantized) -> arguments.Source:
    """A layer's input as its kernels take it."""
    if isinstance(x, Tensor):
        return arguments.Source(arguments.matrix(x))
    index = None if x.index is None else x.index.contiguous()
    return quantized.source(x.values, index, x.scale, x.shift)


def _activation(act: Act) -> arguments.Activation:
    return arguments.activation(act.name, act.slope, act.weight)


def _undone(undo: Undo) -> Undone:
    """What is to be undone as the kernels take it."""
    if undo is NOTHING:
        return None, 0
    return undone(_activation(undo.act), undo.saved, undo.dropout)


def _precision(dtype: torch.dtype) -> str:
    """16-bit operands are multiplied exactly: only float32 has a choice."""
    return fp32_precision() if dtype == torch.float32 else "ieee"
