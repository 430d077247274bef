"""nn.Sequential, with its linear layers and activations run together."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastmlp import ranges
from fastmlp.backends import choose, onednn, requested
from fastmlp.backends.base import LossOptions, SquaredError
from fastmlp.functional.chain_loss import chain_cross_entropy, chain_mse_loss
from fastmlp.functional.linear import chain
from fastmlp.functional.quantized import INTEGERS
from fastmlp.modules.dequantize import Dequantize
from fastmlp.modules.loss import CrossEntropyLoss, MSELoss
from fastmlp.modules.plan import FORWARDS, Dequantized, is_identity, layer_of, plan, untouched, written


@written
class Sequential(nn.Sequential):
    """An ``nn.Sequential`` in which each run of ``nn.Linear`` and activation is one fused chain.

    It holds the very modules it is given: ``state_dict``, ``apply``, indexing, slicing, hooks,
    optimizers, pickling and ``repr`` are torch's. Source: ``torch.nn.Sequential``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Run the children in order; see `plan` for what is fused."""
        if torch.jit.is_scripting():  # torch's own loop
            for module in self:
                input = module(input)
            return input
        else:  # said aloud: what TorchScript is to leave out has to be a branch
            return run(self._modules.values(), input)  # type: ignore[arg-type]

    def __add__(self, other: nn.Sequential) -> Sequential:
        """The children of both, as torch's, still fused."""
        return Sequential(*super().__add__(other))

    def __mul__(self, other: int) -> Sequential:
        """The same children so many times, as torch's, still fused; ``__rmul__`` calls this."""
        return Sequential(*super().__mul__(other))

    def cross_entropy(
        self, input: Tensor, target: Tensor, loss: CrossEntropyLoss
    ) -> tuple[Tensor, Tensor] | None:
        """``loss(self(input), target)`` with the last layer and the loss in one kernel, and the logits.

        The logits have no gradient. None where the kernels do not run here, or the children do not
        end in a chain that the head could close: then call the two modules.
        """
        return self._closed(input, target, loss) if type(loss) is CrossEntropyLoss else None

    def mse_loss(self, input: Tensor, target: Tensor, loss: MSELoss) -> tuple[Tensor, Tensor] | None:
        """As `cross_entropy`, for the squared error and the predictions."""
        return self._closed(input, target, loss) if type(loss) is MSELoss else None

    def _closed(
        self, input: Tensor, target: Tensor, loss: CrossEntropyLoss | MSELoss
    ) -> tuple[Tensor, Tensor] | None:
        """The children and then ``loss``; None also where the forward is not just the children in order."""
        return closed(self, input, target, loss) if type(self).forward is FORWARDS[Sequential] else None


_OPENED = (nn.Sequential, Sequential)


def closed(
    net: Sequential, input: Tensor, target: Tensor, loss: CrossEntropyLoss | MSELoss
) -> tuple[Tensor, Tensor] | None:
    """`Sequential.cross_entropy` or `mse_loss`, where the forward is known to be the children in order."""
    if not isinstance(input, Tensor) or choose(_like(net, input)).backend is None:
        return None
    if not (untouched(net) and untouched(loss)) or (isinstance(loss, CrossEntropyLoss) and loss.inplace):
        return None
    stages = plan(net, _OPENED)
    if not stages:
        return None
    *before, last = stages
    if not isinstance(last, list | Dequantized):
        return None
    layers = last if isinstance(last, list) else last.layers
    if isinstance(loss, MSELoss) and target.shape != (len(input), layers[-1].weight.shape[0]):
        return None  # whether to broadcast is the caller's to say
    for stage in before:
        input = chain(input, stage) if isinstance(stage, list) else stage(input)
    source = input if isinstance(last, list) else last.source(input)
    if isinstance(loss, MSELoss):
        value, output = chain_mse_loss(source, layers, target, SquaredError(loss.reduction), with_output=True)
    else:
        options = LossOptions(loss.ignore_index, loss.reduction, loss.label_smoothing, loss.z_loss)
        value, output = chain_cross_entropy(source, layers, target, loss.weight, options, with_logits=True)
    assert output is not None
    return value, output


def run(children: Iterable[nn.Module], input: Tensor) -> Tensor:
    """The output of ``children``, which may be gone through more than once, one after another."""
    if onednn.applies(input) and requested() == "auto":
        return _infer(children, input)
    # Modules may pass on anything, as in torch's; the kernels take tensors.
    if not isinstance(input, Tensor) or choose(_like(children, input)).backend is None:
        for child in children:  # nn.Sequential's own loop: nothing is to be planned
            if not (is_identity(child) and isinstance(input, Tensor)):
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
        if is_identity(child) and isinstance(input, Tensor):
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
