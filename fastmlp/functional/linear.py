"""Linear layers with their activations: one layer, or a chain of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmlp import backends
from fastmlp.activations import NONE, Act, resolve
from fastmlp.autograd.chain import Chain
from fastmlp.autograd.whole import WholeNet
from fastmlp.backends import onednn
from fastmlp.functional import whole
from fastmlp.functional.whole import PLANS


class Layer(NamedTuple):
    """One layer of a chain: Y = act(X weightᵀ + bias)."""

    weight: Tensor  # (N, K)
    bias: Tensor | None  # (N,)
    act: Act = NONE


def linear_act(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | nn.Module | None = "relu"
) -> Tensor:
    """activation(input weightᵀ + bias), as ``torch.nn.functional.linear`` and then the activation.

    Args:
        input: (..., K), float.
        weight: (N, K), of the input's dtype (autocast apart).
        bias: (N,).
        activation: a name of `fastmlp.activations.NAMES`, an instance of its ``nn.Module`` (which
            carries a slope or an approximation), or None.

    Returns:
        (..., N).

    Raises:
        ValueError: an unknown activation, or shapes that do not fit.
        TypeError: dtypes that are mixed or not floating.
        RuntimeError: tensors on different devices.
    """
    return chain(input, [Layer(weight, bias, resolve(activation))])


def mlp(
    input: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    activation: str | nn.Module | None = "relu",
    *,
    output_activation: str | nn.Module | None = None,
    plan: str = "auto",
) -> Tensor:
    """Linear layers with ``activation`` between them, and ``output_activation`` after the last.

    On a GPU a net whose hidden layers are at most 256 wide may run whole, in one kernel; see docs/whole_nets.md.

    Args:
        input: (..., K).
        weights: one (N_i, N_{i-1}) a layer, N_0 = K.
        biases: one (N_i,) or None a layer; None for no biases at all.
        activation: see `linear_act`.
        output_activation: the same, after the last layer.
        plan: what runs it on a GPU: "layers" is a kernel a layer, "whole" one for all of them, "recompute"
            the same that keeps nothing for the backward and runs the forward again there; "auto" takes the
            one that `fastmlp.cost` expects to be the fastest. torch's own ops have no plans.

    Returns:
        (..., N) of the last layer.

    Raises:
        ValueError: as `linear_act`; ``weights`` and ``biases`` of different lengths; an unknown plan, or one
            that these layers do not fit.
    """
    return chain(input, mlp_layers(weights, biases, activation, output_activation), plan)


def mlp_layers(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None,
    activation: str | nn.Module | None,
    output_activation: str | nn.Module | None = None,
) -> list[Layer]:
    """The layers that `mlp` runs."""
    biases = [None] * len(weights) if biases is None else biases
    if not weights or len(weights) != len(biases):
        raise ValueError(
            f"weights, biases: expected one of each a layer, got {len(weights)} and {len(biases)}"
        )
    act, out = resolve(activation), resolve(output_activation)
    last = len(weights) - 1
    return [Layer(w, b, act if i < last else out) for i, (w, b) in enumerate(zip(weights, biases))]


def chain(input: Tensor, layers: Sequence[Layer], plan: str = "auto") -> Tensor:
    """The layers one after another: on a GPU one kernel each or one for all, and one autograd node.

    Args:
        input: (..., K) of the first layer.
        layers: at least one.
        plan: see `mlp`.

    Raises:
        ValueError, TypeError, RuntimeError: as `linear_act` and `mlp`.
    """
    if plan not in PLANS:
        raise ValueError(f"plan: {plan!r} is not one of {', '.join(PLANS)}")
    backend = backends.choose(input).backend
    check_chain(input, layers)
    if backend is None or not fits_kernels(input, layers):
        return aten_chain(input, layers)
    rows = input.reshape(-1, input.shape[-1])
    acts, params = split_layers(layers)
    dtype = backends.compute_dtype(input)
    plan = whole.choose(backend, rows, layers, dtype, plan)
    if plan == "layers":
        output = Chain.apply(backend, dtype, acts, rows, *params)
    else:
        output = WholeNet.apply(backend, dtype, acts, plan == "recompute", rows, *params)
    return output.view(*input.shape[:-1], layers[-1].weight.shape[0])


def aten_chain(input: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The chain by ATen's ops with ATen's autograd, or without one by oneDNN's."""
    linear = onednn.linear if onednn.applies(input) else F.linear
    for weight, bias, act in layers:
        # The fresh 2-D result of addmm may be overwritten; of more dimensions it is a view.
        z = linear(input, weight, bias)
        input = act.write_over(z) if z.dim() == 2 else act(z)
    return input


def split_layers(layers: Sequence[Layer]) -> tuple[list[Act], list[Tensor | None]]:
    """Activations without tensors, and all tensors flat: weight, bias, PReLU's weight a layer."""
    acts = [layer.act._replace(weight=None) for layer in layers]
    return acts, [t for weight, bias, act in layers for t in (weight, bias, act.weight)]


def fits_kernels(input: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether the kernels do this. What they do not goes to torch's own ops."""
    if input.numel() == 0 or any(layer.weight.numel() == 0 for layer in layers):
        return False
    # PReLU's slopes lie along dimension 1, which is that of the features for a matrix alone.
    return input.dim() == 2 or all(a.weight is None or a.weight.numel() == 1 for _, _, a in layers)


def check_chain(input: Tensor, layers: Sequence[Layer]) -> None:
    """Raise an error that names the argument, its shape and what was expected."""
    if input.dim() == 0:
        raise ValueError("input: expected (..., features), got a scalar")
    features = input.shape[-1]
    for i, (weight, bias, act) in enumerate(layers):
        name = "weight" if len(layers) == 1 else f"weight of layer {i}"
        if weight.dim() != 2 or weight.shape[1] != features:
            source = f"input {tuple(input.shape)}" if i == 0 else f"layer {i - 1}, {features} features"
            raise ValueError(f"{name}: expected (N, {features}) to fit {source}, got {tuple(weight.shape)}")
        features = weight.shape[0]
        if bias is not None and bias.shape != (features,):
            raise ValueError(
                f"{name.replace('weight', 'bias')}: expected ({features},), got {tuple(bias.shape)}"
            )
        if act.weight is not None and act.weight.numel() not in (1, features) and input.dim() == 2:
            raise ValueError(
                f"activation: PReLU's weight has {act.weight.numel()} slopes for {features} features"
            )
        for tensor, which in (
            (weight, name),
            (bias, name.replace("weight", "bias")),
            (act.weight, "PReLU's weight"),
        ):
            if tensor is not None:
                _check_kind(tensor, which, input)


def _check_kind(tensor: Tensor, name: str, input: Tensor) -> None:
    if tensor.device != input.device:
        raise RuntimeError(f"{name}: expected on {input.device} as the input, got {tensor.device}")
    if tensor.dtype == input.dtype and tensor.is_floating_point():
        return
    if not (tensor.is_floating_point() and input.is_floating_point()):
        raise TypeError(f"input and {name}: expected floating dtypes, got {input.dtype} and {tensor.dtype}")
    if not torch.is_autocast_enabled(input.device.type):
        raise TypeError(f"{name}: expected {input.dtype} as the input, got {tensor.dtype}")
