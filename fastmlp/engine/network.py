"""Is a model a plain chain of linear layers with a loss, which an engine can run as a whole?"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastmlp.activations import Act
from fastmlp.backends import readable
from fastmlp.backends.base import Loss, LossOptions, SquaredError
from fastmlp.functional.layer import Layer, Layers
from fastmlp.modules import MLP, CrossEntropyLoss, MSELoss, Sequential
from fastmlp.modules.stages import FORWARDS, Dequantized, is_flatten, stages_of, untouched


class Network(NamedTuple):
    """A chain of linear layers that ends in a softmax cross-entropy or a squared error.

    The tensors are the model's own parameters, float32 and contiguous.
    """

    layers: Layers  # the last one without an activation
    options: Loss
    class_weight: Tensor | None  # (C,)
    flatten: bool  # the input is flattened from dimension 1 on; else it is (B, features)
    #: A `Dequantize` in front: integers are multiplied by scale, and shift is added; each () or (features,).
    scale: Tensor | None = None
    shift: Tensor | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias of each layer, if it has one."""
        return list(self.layers.there)

    @property
    def widths(self) -> tuple[int, ...]:
        """Features of the input and of every layer."""
        return (self.layers[0].weight.shape[1], *(layer.weight.shape[0] for layer in self.layers))

    @property
    def acts(self) -> tuple[Act, ...]:
        """The activation of every layer."""
        return tuple(layer.act for layer in self.layers)


def recognise(model: nn.Module, loss: nn.Module) -> Network | str:
    """The network that ``model`` and ``loss`` are, or why they are not one."""
    options = _options(loss)
    if isinstance(options, str):
        return options
    if model._compiled_call_impl is not None or _is_compiled(model):  # nn.Module.compile, torch.compile
        return "the model is compiled"
    if not untouched(model):
        return "the model has hooks or a forward of its own"
    if type(model) not in (nn.Sequential, Sequential, MLP) and not _is_torchvision_mlp(model):
        return f"{type(model).__name__} is no Sequential or MLP"
    stages = stages_of(model, (nn.Sequential, Sequential))  # type: ignore[arg-type]
    flatten = getattr(model, "flatten", False) is True  # fastmlp.MLP's argument
    if stages and is_flatten(stages[0]):
        flatten, stages = True, stages[1:]
    scale = shift = None
    if stages and isinstance(stages[0], Dequantized):
        first = stages[0]
        scale, shift = first.module.scale, first.module.shift
        flatten, stages = flatten or first.flatten is not None, [first.layers, *stages[1:]]
    if len(stages) != 1 or not isinstance(stages[0], Layers):
        return "the model is no single chain of linear layers and known activations"
    layers = stages[0]
    problem = (
        _layers_problem(layers)
        or _parameters_problem(model, layers)
        or _numbers_problem(layers[0], scale, shift)
    )
    if problem:
        return problem
    class_weight = loss.weight if isinstance(loss, nn.CrossEntropyLoss) else None
    return Network(layers, options, class_weight, flatten, scale, shift)


def _options(loss: nn.Module) -> Loss | str:
    """The arguments of a loss that an engine knows, or why it knows none."""
    if not isinstance(loss, nn.CrossEntropyLoss | nn.MSELoss) or not untouched(loss):
        return "the loss is no plain CrossEntropyLoss or MSELoss"
    if type(loss) not in (nn.CrossEntropyLoss, CrossEntropyLoss, nn.MSELoss, MSELoss):
        known = "CrossEntropyLoss" if isinstance(loss, nn.CrossEntropyLoss) else "MSELoss"
        return f"{type(loss).__name__} may be another loss than {known}"
    if loss.reduction not in ("mean", "sum"):
        return f"the loss' reduction is {loss.reduction!r}"
    if isinstance(loss, nn.MSELoss):
        return SquaredError(loss.reduction)
    if loss.weight is not None and loss.weight.requires_grad:
        return "the class weights want a gradient"
    return LossOptions(loss.ignore_index, loss.reduction, loss.label_smoothing, getattr(loss, "z_loss", 0.0))


def _layers_problem(layers: Layers) -> str | None:
    if layers[-1].act.name != "none":
        return "the last layer has an activation"
    if any(layer.dropout for layer in layers):
        return "a dropout is active"
    if any(layer.act.weight is not None for layer in layers):
        return "a PReLU learns its slopes"
    return None


def _numbers_problem(first: Layer, *numbers: Tensor | None) -> str | None:
    for number in numbers:
        if number is None:
            continue
        if number.requires_grad or number.device != first.weight.device:
            return "the Dequantize wants a gradient, or is on another device"
        if number.numel() not in (1, first.weight.shape[1]):
            return "the Dequantize has another number of features than the first layer"
    return None


def _parameters_problem(model: nn.Module, layers: Layers) -> str | None:
    tensors = layers.there
    if len({id(t) for t in tensors}) != len(tensors):
        return "two layers share a parameter"
    if len({id(p) for p in model.parameters()} - {id(t) for t in tensors}):
        return "the model has parameters outside its linear layers"
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"the parameters are {tensor.dtype}, not float32"
        if not tensor.is_meta and not readable(tensor):
            return "a parameter is no ordinary tensor"
        if not tensor.requires_grad or not tensor.is_leaf:
            return "a parameter is frozen"
        if not tensor.is_contiguous() or tensor.numel() == 0:
            return "a parameter is empty or not contiguous"
        if tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None):
            return "a parameter has gradient hooks"
    for layer, following in itertools.pairwise(layers):
        if following.weight.shape[1] != layer.weight.shape[0]:
            return "the layers' widths do not fit each other"
    return None


def _is_torchvision_mlp(model: nn.Module) -> bool:
    kind = type(model)
    named = (kind.__module__, kind.__qualname__) == ("torchvision.ops.misc", "MLP")
    return named and kind.forward is FORWARDS[nn.Sequential]


def _is_compiled(model: nn.Module) -> bool:
    kind = type(model)  # by name: torch.compile's machinery takes seconds to import
    return (kind.__module__, kind.__qualname__) == ("torch._dynamo.eval_frame", "OptimizedModule")
