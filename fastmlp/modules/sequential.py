"""nn.Sequential, with its linear layers and activations run together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmlp import profiler_ranges
from fastmlp.backends import choose, off_gpu, onednn
from fastmlp.backends.base import LossOptions, SquaredError
from fastmlp.functional.chain_loss import chain_cross_entropy, chain_mse_loss
from fastmlp.functional.layer import Layers
from fastmlp.functional.linear import again, chain
from fastmlp.functional.quantized import INTEGERS
from fastmlp.modules.dequantize import Dequantize
from fastmlp.modules.loss import CrossEntropyLoss, MSELoss
from fastmlp.modules.snapshot import Snapshot, hooked
from fastmlp.modules.stages import (
    FORWARDS,
    Dequantized,
    Stage,
    is_identity,
    layer_of,
    opened,
    stages_of,
    untouched,
    written,
)


class _Memory(NamedTuple):
    """What the children of a module were found to be."""

    children: list[tuple[str, nn.Module | None]]  # the owner's, in their order
    snapshot: Snapshot
    stages: list[Stage]


class Staged(nn.Module):
    """A module that runs its children as stages, and remembers them for as long as they are the same."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what is remembered: a copy or a pickle finds it anew."""
        state: dict[str, Any] = super().__getstate__()  # torch's, a copy without what is compiled
        state.pop("_memory", None)
        return state

    def _children_in_order(self) -> Iterable[nn.Module]:
        return self._modules.values()  # type: ignore[return-value]

    def _remembered(self) -> list[Stage] | None:
        """What the last call found to run, if the children are still the same; nothing in a trace."""
        memory: _Memory | None = None if torch.compiler.is_compiling() else self.__dict__.get("_memory")
        if memory is None or memory.children != [*self._modules.items()] or not memory.snapshot.holds():
            return None
        return memory.stages

    def _stages(self) -> list[Stage]:
        """What runs, see `stages_of`."""
        stages = self._remembered()
        if stages is not None:
            return stages
        found = stages_of(self._children_in_order(), _OPENED)
        below = [m for child in self._children_in_order() for m in opened(child, _OPENED)]
        if not torch.compiler.is_compiling() and not any(map(hooked, below)):
            snapshot = Snapshot(below)
            if all(t is None or t.grad_fn is None for t in snapshot.tensors):  # else its graph lived on here
                self.__dict__["_memory"] = _Memory([*self._modules.items()], snapshot, found)
        return found


@written
class Sequential(Staged, nn.Sequential):
    """An ``nn.Sequential`` in which each run of ``nn.Linear`` and activation is one fused chain.

    It holds the very modules it is given: ``state_dict``, ``apply``, indexing, slicing, hooks,
    optimizers, pickling and ``repr`` are torch's. Source: ``torch.nn.Sequential``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Run the children in order; see `stages_of` for what is fused."""
        if torch.jit.is_scripting():  # torch's own loop
            for module in self:
                input = module(input)
            return input
        else:  # said aloud: what TorchScript is to leave out has to be a branch
            return run(self, input)

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
    stages = net._stages()
    if not stages:
        return None
    *before, last = stages
    if not isinstance(last, Layers | Dequantized):
        return None
    layers = last if isinstance(last, Layers) else last.layers
    if isinstance(loss, MSELoss) and target.shape != (len(input), layers[-1].weight.shape[0]):
        return None  # whether to broadcast is the caller's to say
    for stage in before:
        input = chain(input, stage) if isinstance(stage, Layers) else stage(input)
    source = input if isinstance(last, Layers) else last.source(input)
    if isinstance(loss, MSELoss):
        value, output = chain_mse_loss(source, layers, target, SquaredError(loss.reduction), with_output=True)
    else:
        options = LossOptions(loss.ignore_index, loss.reduction, loss.label_smoothing, loss.z_loss)
        value, output = chain_cross_entropy(source, layers, target, loss.weight, options, with_logits=True)
    assert output is not None
    return value, output


def run(owner: Staged, input: Tensor) -> Tensor:
    """The output of the children of ``owner``, one after another."""
    children = owner._children_in_order()
    if off_gpu(input):
        return _infer(children, input) if onednn.applies(input) else _one_by_one(children, input)
    stages = owner._remembered()
    if stages is not None and len(stages) == 1 and type(stages[0]) is Layers:
        output = again(input, stages[0])
        if output is not None:
            return output
    # Modules may pass on anything, as in torch's; the kernels take tensors.
    if not isinstance(input, Tensor) or choose(_like(children, input)).backend is None:
        return _one_by_one(children, input)
    for stage in owner._stages():
        input = chain(input, stage) if isinstance(stage, Layers) else stage(input)
    return input


def _one_by_one(children: Iterable[nn.Module], input: Tensor) -> Tensor:
    """nn.Sequential's own loop: nothing is to be planned."""
    for child in children:
        if not (is_identity(child) and isinstance(input, Tensor)):
            input = child(input)
    return input


def _infer(children: Iterable[nn.Module], input: Tensor) -> Tensor:
    """The children on a CPU without autograd; at batch 1 finding stages would cost what it saves."""
    fresh = False  # whether the input is a linear layer's result, which nobody else holds
    for child in profiler_ranges.each(children, _weight_of):
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
