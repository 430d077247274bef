"""nn.Sequential, with its linear layers and activations run together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastmlp import ranges
from fastmlp.backends import choose, onednn, requested
from fastmlp.backends.base import LossOptions
from fastmlp.functional.linear import chain
from fastmlp.functional.loss import chain_cross_entropy
from fastmlp.functional.quantized import INTEGERS
from fastmlp.modules.dequantize import Dequantize
from fastmlp.modules.loss import CrossEntropyLoss
from fastmlp.modules.plan import Dequantized, layer_of, plan, untouched


class Sequential(nn.Sequential):
    """An ``nn.Sequential`` in which each run of ``nn.Linear`` and activation is one fused chain.

    It holds the very modules it is given: ``state_dict``, ``apply``, indexing, slicing, hooks,
    optimizers, pickling and ``repr`` are torch's. Source: ``torch.nn.Sequential``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Run the children in order; see `plan` for what is fused."""
        return run(self._modules.values(), input)  # type: ignore[arg-type]

    def cross_entropy(
        self, input: Tensor, target: Tensor, loss: CrossEntropyLoss
    ) -> tuple[Tensor, Tensor] | None:
        """``loss(self(input), target)`` with the last layer and the loss in one kernel, and the logits.

        The logits have no gradient. None where the kernels do not run here, or the children do not
        end in a chain that the head could close: then call the two modules.
        """
        return self._head(input, target, loss) if type(self).forward is Sequential.forward else None

    def _head(self, input: Tensor, target: Tensor, loss: CrossEntropyLoss) -> tuple[Tensor, Tensor] | None:
        """`cross_entropy`, where the forward is known to be the children in order."""
        if not isinstance(input, Tensor) or choose(_like(self, input)).backend is None:
            return None
        if type(loss) is not CrossEntropyLoss or loss.inplace or not (untouched(self) and untouched(loss)):
            return None
        stages = plan(self, _OPENED)
        if not stages:
            return None
        *before, last = stages
        if not isinstance(last, list | Dequantized):
            return None
        for stage in before:
            input = chain(input, stage) if isinstance(stage, list) else stage(input)
        layers, source = (last, input) if isinstance(last, list) else (last.layers, last.source(input))
        options = LossOptions(loss.ignore_index, loss.reduction, loss.label_smoothing, loss.z_loss)
        value, logits = chain_cross_entropy(source, layers, target, loss.weight, options, with_logits=True)
        assert logits is not None
        return value, logits


_OPENED = (nn.Sequential, Sequential)


def run(children: Iterable[nn.Module], input: Tensor) -> Tensor:
    """The output of ``children``, which may be gone through more than once, one after another."""
    # Modules may pass on anything, as in torch's; the kernels take tensors.
    if not isinstance(input, Tensor) or choose(_like(children, input)).backend is None:
        if isinstance(input, Tensor) and requested() == "auto" and onednn.applies(input):
            return _infer(children, input)
        for child in children:  # nn.Sequential's own loop: nothing is to be planned
            input = child(input)
        return input
    for stage in plan(children, _OPENED):
        input = chain(input, stage) if isinstance(stage, list) else stage(input)
    return input


def _infer(children: Iterable[nn.Module], input: Tensor) -> Tensor:
    """The children on a CPU without autograd. No plan is made: at batch 1 it would cost what it saves."""
    fresh = False  # whether the input is a linear layer's result, which nobody else holds
    for child in ranges.each(children, _weight_of):
        if type(child) is nn.Linear and isinstance(input, Tensor) and untouched(child):
            layer = layer_of(child)
            if layer is not None:
                input, fresh = onednn.linear(input, layer.weight, layer.bias), True
                continue
        if fresh and type(child) is nn.ReLU and untouched(child):
            torch.relu_(input)
            continue
        input, fresh = child(input), False
    return input


def _weight_of(child: nn.Module) -> Tensor | None:
    return child._parameters.get("weight")


def _like(children: Iterable[nn.Module], input: Tensor) -> Tensor:
    """What the backend is chosen by: of integers that a child dequantizes, what they become."""
    if input.dtype in INTEGERS:
        for child in children:
            if type(child) is Dequantize:
                return child.scale
    return input
