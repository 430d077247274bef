"""Training steps on a CPU, without autograd.

The buffers stay from step to step, and plain SGD's update happens inside the matrix product that makes
the gradient: W := (1 - lr * decay) W - lr dZᵀ X, so the gradient itself is never written.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastmlp import profiler_ranges
from fastmlp.autograd.cross_entropy import reference_loss
from fastmlp.backends.base import LossOptions, SquaredError
from fastmlp.backends.torch_backend import softmax_loss
from fastmlp.engine import rules
from fastmlp.engine.autograd import without_autocast
from fastmlp.engine.base import Executor
from fastmlp.engine.checks import check_batch
from fastmlp.engine.cpu_layers import FEW, CpuLayer, Rows
from fastmlp.engine.network import Network


class CpuExecutor(Executor):
    """Runs `Network`s on a CPU; every number is torch's to rounding.

    Plain SGD, with momentum, dampening and weight decay, is folded into the products, and leaves no
    ``.grad``; its momentum buffers are where ``torch.optim.SGD`` keeps them. Any other optimizer, and
    one with hooks, gets gradients and takes its own step. Any ``.grad`` that was left on the
    optimizer's parameters, also on those that are not the network's, is ignored.

    A step over no rows does as torch's: a mean loss of NaN and gradients of 0, which momentum and decay may
    still turn into an update. It adds nothing to `sums`.

    Args:
        network: what runs, its parameters on the CPU.
        optimizer: over some or all of the parameters; its groups are read at every step.
        dtype: of the matrix products: the parameters' own, or bfloat16, where the parameters, the
            loss and the update stay as they are. Worth it where AVX512-BF16 or AMX multiplies
            bfloat16 in hardware.

    Raises:
        ValueError: another dtype.
    """

    name = "cpu"

    def __init__(self, network: Network, optimizer: torch.optim.Optimizer, dtype: torch.dtype) -> None:
        own = network.layers[0].weight.dtype
        if dtype not in (own, torch.bfloat16):
            raise ValueError(f"dtype: expected {own} as the parameters, or torch.bfloat16, got {dtype}")
        self.sums = torch.zeros(2, dtype=torch.float64, device="cpu")
        self._losses, self._right = self.sums.unbind()
        self._network, self._optimizer, self._dtype, self._own = network, optimizer, dtype, own
        self._layers = [CpuLayer(layer, dtype) for layer in network.layers]
        self._grads: dict[int, Tensor] = {}  # by the id of their parameter
        self._checked: list[tuple[object, ...]] = []  # shapes and dtypes of the last batch
        self._rows = -1
        features, classes = network.widths[0], network.widths[-1]
        self._taken: dict[torch.dtype, Rows] = {}
        options = network.options
        self._squared = isinstance(options, SquaredError)
        self._x_memory = Rows(features, dtype)
        self._y_memory = Rows(classes, own) if self._squared else Rows(1, torch.int64)
        self._wide_memory = self._x_memory if dtype == own else Rows(features, own)
        self._head_memory = [Rows(classes, d, columns=classes <= FEW) for d in (own, dtype, own)]
        self._plain = (
            isinstance(options, LossOptions)
            and network.class_weight is None
            and options.label_smoothing == 0
            and options.z_loss == 0
            and not 0 <= options.ignore_index < classes
        )

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor, rows: Tensor | None = None, *, count: bool = True) -> Tensor:
        """See `Executor.step`.

        Raises:
            ValueError, TypeError, RuntimeError: as `check_batch`.
            IndexError: a label that is not a class, as torch's; or a row that is not there.
        """
        x, y = self._batch(x, y, rows)
        if x.shape[0] != self._rows:
            self._resize(x.shape[0])
        inputs, saved = [x], []
        for layer in profiler_ranges.each(self._layers, _MASTER):
            x, kept = layer.forward(x)
            inputs.append(x)
            saved.append(kept)
        logits = inputs.pop()
        # Nothing but buffers is written up to here, where a label that is no class raises.
        loss, dz, scale = self._loss(logits, y)
        if count and self._rows:
            self._losses.add_(loss, alpha=self._rows)  # in float64, as the type promotes
            if not self._squared:
                # Not argmax: the logits of few classes are columns, along which it takes 4 times as long.
                self._right.add_(torch.count_nonzero(logits.max(1).indices == y))
        self._update(inputs, saved, dz, scale)
        return loss

    def _resize(self, rows: int) -> None:
        self._rows = rows
        for layer in self._layers:
            layer.resize(rows)
        self._p, self._dz, self._wide = (m.take(rows) for m in self._head_memory)
        self._minus_ones = torch.tensor(-1.0, dtype=self._own, device="cpu").expand(1, rows)

    def _batch(self, x: Tensor, y: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """The batch: (B, features) of the products' dtype, contiguous, and its labels."""
        kinds: list[tuple[object, ...]] = [
            (t.shape, t.dtype, t.device) for t in (x, y, rows) if t is not None
        ]
        if kinds != self._checked:
            check_batch(self._network, x, y, rows, self._dtype)
            self._checked = kinds
        if rows is not None:
            count = rows.shape[0]
            if x.dtype not in self._taken:
                self._taken[x.dtype] = Rows(self._x_memory.take(0).shape[1], x.dtype)
            batch = self._taken[x.dtype].take(count).view(count, *x.shape[1:])
            x = torch.index_select(x, 0, rows, out=batch)  # an index out of range raises here
            y = torch.index_select(y, 0, rows, out=self._y_memory.take(count).view(count, *y.shape[1:]))
        if self._network.scale is not None:
            return self._dequantized(x, self._network.scale, self._network.shift), y
        if x.dtype != self._dtype or not x.is_contiguous():
            cast = self._x_memory.take(x.shape[0])
            cast.view(x.shape).copy_(x)
            return (cast.div_(255) if x.dtype == torch.uint8 else cast), y
        return (x if x.dim() == 2 else x.flatten(1)), y

    def _dequantized(self, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        """Integers as features of the products' dtype, rounded to it once."""
        wide = self._wide_memory.take(x.shape[0])
        wide.view(x.shape).copy_(x)
        wide.mul_(scale)
        if shift is not None:
            wide.add_(shift)
        return wide if self._dtype == self._own else self._x_memory.take(x.shape[0]).copy_(wide)

    def _loss(self, logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
        """The loss, and a gradient of the logits that still lacks a factor, and that factor."""
        options = self._network.options
        if isinstance(options, SquaredError):
            return self._squared_error(logits, y, options.reduction == "mean")
        casts = self._own != self._dtype
        wide = self._wide.copy_(logits) if casts else logits
        if self._plain and self._rows:
            mean = options.reduction == "mean"
            try:
                loss, dz = self._plain_loss(wide, y, mean)
            except RuntimeError:  # an ignored label, which torch's own op handles
                pass
            else:
                return loss, self._dz.copy_(dz) if casts else dz, 1 / self._rows if mean else 1.0
        wide = wide.detach().requires_grad_()
        with torch.enable_grad():
            loss = reference_loss(wide, y, self._network.class_weight, options)
        (dz,) = torch.autograd.grad(loss, wide)
        return loss.detach(), dz.to(self._dtype), 1.0

    def _squared_error(self, output: Tensor, y: Tensor, mean: bool) -> tuple[Tensor, Tensor, float]:
        """As `_loss`; the output's memory is overwritten."""
        casts = self._own != self._dtype
        d = (self._wide.copy_(output) if casts else output).sub_(y)
        squares = torch.mul(d, d, out=self._p)
        scale = 2 / max(d.numel(), 1) if mean else 2.0
        return squares.mean() if mean else squares.sum(), self._dz.copy_(d) if casts else d, scale

    def _plain_loss(self, logits: Tensor, y: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
        """The loss, and softmax minus one-hot, where every label is a class; else a RuntimeError."""
        if logits.shape[1] > FEW:
            losses, p = softmax_loss(logits, y, self._p)
            dz = p.scatter_add_(1, y.unsqueeze(1), self._minus_ones.t())
            return losses.mean() if mean else losses.sum(), dz
        log_p = torch.log_softmax(logits.t(), 0)  # vectorized; along short rows it is not
        assert isinstance(self._network.options, LossOptions)
        how, ignored = 1 if mean else 2, self._network.options.ignore_index
        # What F.nll_loss calls, and half its time. torch's stub takes a name for the reduction.
        loss = torch._C._nn.nll_loss_nd(log_p.t(), y, None, how, ignored)  # type: ignore[arg-type]
        return loss, log_p.exp_().scatter_add_(0, y.unsqueeze(0), self._minus_ones).t()

    def _update(self, inputs: list[Tensor], saved: list[Tensor], dz: Tensor, scale: float) -> None:
        """Backward, and each parameter's update as soon as nothing needs its old value."""
        optimizer = self._optimizer
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        fold = _folds(optimizer)
        rules.drop_gradients(optimizer)
        order = reversed(range(len(self._layers)))
        for i in profiler_ranges.each(order, lambda i: self._layers[i].master):
            layer, x, grad = self._layers[i], inputs[i], dz
            if i > 0:
                dz = layer.input_grad(grad, self._layers[i - 1].act, saved[i - 1])
            self.updating = fold
            for p, add in (
                (layer.master, partial(layer.add_weight_grad, grad, x)),
                (layer.master_bias, partial(layer.add_bias_grad, grad)),
            ):
                group = groups.get(id(p))
                if p is None or group is None:
                    continue
                if fold:
                    _sgd(group, optimizer.state, p, add, scale)
                    continue
                if id(p) not in self._grads:
                    self._grads[id(p)] = torch.empty_like(p)
                p.grad = self._grads[id(p)]
                add(p.grad, 0.0, scale)
        if fold:
            optimizer._opt_called = True  # type: ignore[attr-defined]  # else a scheduler warns that no step came before its own
        else:
            self.updating = True
            with without_autocast(layer.master.device):
                optimizer.step()
        self.updating = False


_MASTER = operator.attrgetter("master")
#: (out, beta, alpha): out becomes beta * out + alpha * gradient.
AddGrad = Callable[[Tensor, float, float], None]


def _folds(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `_sgd` is what ``optimizer.step()`` would do."""
    return (
        type(optimizer) is torch.optim.SGD
        and rules.is_plain(optimizer)
        and not any(group["nesterov"] or group["differentiable"] for group in optimizer.param_groups)
    )


def _sgd(group: dict[str, Any], state: dict[Tensor, Any], p: Tensor, add: AddGrad, scale: float) -> None:
    """One parameter's step as ``torch.optim.SGD`` takes it, without a gradient in memory."""
    lr, momentum, decay = float(group["lr"]), group["momentum"], group["weight_decay"]
    scale = -scale if group["maximize"] else scale
    if momentum == 0:
        add(p, 1 - lr * decay, -lr * scale)
        return
    velocity, new = state[p].get("momentum_buffer"), 1 - group["dampening"]
    if velocity is None:  # the first gradient goes in as it is
        velocity, momentum, new = torch.empty_like(p), 0.0, 1.0
        state[p]["momentum_buffer"] = velocity
    add(velocity, momentum, new * scale)
    if decay != 0:
        velocity.add_(p, alpha=new * decay)
    p.add_(velocity, alpha=-lr)
