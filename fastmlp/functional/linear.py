"""Linear layers with their activations: one layer, or a chain of them."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function

from fastmlp import backends, ops, ranges
from fastmlp.activations import Act, resolve
from fastmlp.autograd.chain import (
    FIRST_PARAM,
    Decided,
    Drops,
    Numbers,
    chain_route,
    layers_of,
    pack,
    unpack,
)
from fastmlp.autograd.node import Node, Route
from fastmlp.autograd.whole import whole_route
from fastmlp.backends import Traced, onednn
from fastmlp.backends.base import Quantized
from fastmlp.backends.route import Last, Routes
from fastmlp.errors import ArgumentError, DtypeError
from fastmlp.functional import whole
from fastmlp.functional.layer import Layer, Layers
from fastmlp.functional.quantized import is_constant, stand_in
from fastmlp.functional.traced import is_stand_in
from fastmlp.functional.whole import PLANS
from fastmlp.ops.chain import as_matrix


def linear_act(
    input: Tensor | Quantized,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | nn.Module | None = "relu",
) -> Tensor:
    """activation(input weightᵀ + bias), as ``torch.nn.functional.linear`` and then the activation.

    Args:
        input: (..., K), float; integers and complex numbers are left to torch's own ops. Or a `Quantized`
            of 8-bit integers (..., K), or of a data set (N, K) whose rows ``index`` (M,) are the input: on
            a GPU the layer's kernels gather and dequantize them as they are loaded. Index entries are rows
            from 0 to N - 1, which is checked on the CPU and with ``FASTMLP_DEBUG=1``. There is no gradient
            of integers.
        weight: (N, K), of the input's dtype (autocast apart).
        bias: (N,).
        activation: a name of `fastmlp.activations.NAMES`, an instance of its ``nn.Module`` (which
            carries a slope or an approximation), or None.

    Returns:
        (..., N).

    Raises:
        ValueError: an unknown activation; shapes that do not fit (a RuntimeError too, as torch's).
        TypeError: dtypes that are mixed (a RuntimeError too); quantized values of another dtype.
        IndexError: with ``FASTMLP_DEBUG=1`` an index that is no row.
        RuntimeError: tensors on different devices.
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    key = None
    if type(activation) in _NAMES and not backends.off_gpu(input):
        way, key = _WAYS.find(activation, tensors, _LAST)  # type: ignore[arg-type]
        if way is not None:
            return way(tensors)  # type: ignore[arg-type]
    given = (input, weight, bias)
    if any(map(is_stand_in, given)):
        return handle_torch_function(linear_act, given, input, weight, bias, activation)
    layers = [Layer(weight, bias, resolve(activation))]
    return chain(input, layers) if key is None else _first(key, input, Layers(layers), "auto")


#: What a route can be found by.
_NAMES = (str, type(None))


def mlp(
    input: Tensor | Quantized,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    activation: str | nn.Module | None = "relu",
    *,
    output_activation: str | nn.Module | None = None,
    plan: str = "auto",
) -> Tensor:
    """Linear layers with ``activation`` between them, and ``output_activation`` after the last.

    On a GPU a net whose hidden layers are narrow may run whole, in one kernel; see docs/whole_nets.md.

    Args:
        input: (..., K), or a `Quantized`; see `linear_act`.
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
    given = (input, *weights, *(biases or ()))
    if any(map(is_stand_in, given)):
        return handle_torch_function(
            mlp, given, input, weights, biases, activation, output_activation=output_activation, plan=plan
        )
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


def chain(input: Tensor | Quantized, layers: Sequence[Layer], plan: str = "auto") -> Tensor:
    """The layers one after another: on a GPU one kernel each or one for all, and one autograd node.

    A layer's ``dropout`` is active always: leave it 0 in evaluation. The kernels draw it from one seed a
    call, which torch's generator of the device gives.

    Args:
        input: (..., K) of the first layer, or a `Quantized`; see `linear_act`.
        layers: at least one.
        plan: see `mlp`.

    Raises:
        ValueError, TypeError, RuntimeError, IndexError: as `linear_act` and `mlp`.
    """
    if plan not in PLANS:
        raise ValueError(f"plan: {plan!r} is not one of {', '.join(PLANS)}")
    if backends.off_gpu(input) and isinstance(input, Tensor):
        check_chain(input, layers)
        return aten_chain(input, layers)
    if type(layers) is not Layers:
        layers = Layers(layers)
    tensors, numbers = flat(input, layers)
    way, key = _WAYS.find((plan, numbers, layers.what), tensors, layers.last)
    return _first(key, input, layers, plan) if way is None else way(tensors)


def again(input: Tensor, layers: Layers) -> Tensor | None:
    """The chain, if its kernels are known to run for such an input; else None."""
    tensors = (input, *layers.there)
    way, _ = _WAYS.find(("auto", None, layers.what), tensors, layers.last)
    return way(tensors) if isinstance(way, _Kernels) else None


def _first(key: Hashable | None, input: Tensor | Quantized, layers: Layers, plan: str) -> Tensor:
    """A call whose way is not known: it is decided, and kept if there is a ``key``.

    Raises:
        ValueError, TypeError, RuntimeError, IndexError: as `chain`.
    """
    x = like(input, layers)
    backend = backends.choose(x).backend
    check_chain(x, layers)
    traced = isinstance(backend, Traced)
    if backend is None or not fits_kernels(x, layers) or not _is_plain(input, traced):
        if key is not None:
            source, numbers = pack(input)
            there = [t is not None for t in (*source, *layers.params)]
            dropouts = [layer.dropout for layer in layers]
            _WAYS.keep(key, _Torch(split_layers(layers)[0], dropouts, numbers, there))
        return aten_chain(input if isinstance(input, Tensor) else input.dense(x.dtype), layers)
    dtype, acts = backends.compute_dtype(x), split_layers(layers)[0]
    probabilities = tuple([layer.dropout for layer in layers])
    plan = whole.choose(backend, x, isinstance(input, Quantized), layers, dtype, plan)
    if isinstance(backend, Traced):
        return _by_ops(x, layers.params, acts, dtype, plan, probabilities)
    source, numbers = pack(input)
    all_ = (*source, *layers.params)
    decided = Decided.of(backend, dtype, acts, probabilities, numbers, all_, recompute=plan == "recompute")
    route, node = (chain_route if plan == "layers" else whole_route)(decided, _WAYS.patience(key))
    seeded, leading = x.device if any(probabilities) else None, None if x.dim() == 2 else x.shape[:-1]
    way = _Kernels(route, None if decided.first is None else node, seeded, leading)
    return _WAYS.keep(key, way)(flat(input, layers)[0])


class _Kernels(NamedTuple):
    """A chain by the kernels."""

    route: Route[Decided]
    node: type[Node] | None  # None where no backward follows
    device: torch.device | None  # where its dropouts' seed is drawn, if it has any
    leading: torch.Size | None  # of the input, if it is no matrix

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        if self.leading is not None:
            tensors = (as_matrix(tensors[0]), *tensors[1:])
        if self.device is not None:
            tensors = (draw_seed(self.device), *tensors)
        if self.node is None:
            y = self.route.forward(None, tensors)[0]
        else:
            y = self.node.record(self.route, *tensors)
        return y if self.leading is None else y.view(*self.leading, y.shape[1])


class _Torch(NamedTuple):
    """A chain by torch's own ops."""

    acts: list[Act]
    dropouts: list[float]
    numbers: Numbers
    there: list[bool]  # which of the input's and the layers' tensors there are

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        found = iter(tensors)
        every = [next(found) if there else None for there in self.there]
        input, params = unpack(every[:FIRST_PARAM], self.numbers), layers_of(every[FIRST_PARAM:])
        layers = [
            Layer(w, b, a._replace(weight=s), d) for (w, b, s), a, d in zip(params, self.acts, self.dropouts)
        ]
        return aten_chain(input if isinstance(input, Tensor) else input.dense(layers[0].weight.dtype), layers)


#: By what a chain goes, its tensors being as `flat` gives them.
_WAYS: Routes[_Kernels | _Torch] = Routes()
#: The last layer of `linear_act`.
_LAST: Last[_Kernels | _Torch] = Last()


def _by_ops(
    x: Tensor,
    params: Sequence[Tensor | None],
    acts: list[Act],
    dtype: torch.dtype,
    plan: str,
    probabilities: tuple[float, ...],
) -> Tensor:
    """The chain as ops that torch.compile keeps whole."""
    if plan == "layers":
        drops = Drops(probabilities, draw_seed(x.device) if any(probabilities) else None)
        return ops.chain(x, params, acts, dtype, drops)
    return ops.whole_net(x, params, acts, dtype, plan == "recompute")


def flat(input: Tensor | Quantized, layers: Layers) -> tuple[tuple[Tensor, ...], Hashable]:
    """The tensors that there are, the input's and then the layers'; and of a quantized input the rest."""
    if isinstance(input, Tensor):
        return (input, *layers.there), None
    source, numbers = pack(input)
    there = [t for t in source if t is not None]
    return (*there, *layers.there), (numbers, *(t is None for t in source))


def like(input: Tensor | Quantized, layers: Sequence[Layer]) -> Tensor:
    """The input, or where it is quantized what stands for it in the checks."""
    return input if isinstance(input, Tensor) else stand_in(input, layers[0].weight)


def _is_plain(input: Tensor | Quantized, traced: bool) -> bool:
    """Whether the kernels take it: the ops of a trace know no integers, which Inductor dequantizes."""
    return isinstance(input, Tensor) or (is_constant(input) and not traced)


def aten_chain(input: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The chain by ATen's ops with ATen's autograd, or without one by oneDNN's."""
    # oneDNN adds in another order than what is behind F.linear: not where torch's own sums are asked for.
    linear = onednn.linear if backends.requested() == "auto" and onednn.applies(input) else F.linear
    for weight, bias, act, dropout in ranges.each(layers, _WEIGHT):
        # The fresh 2-D result of addmm may be overwritten; of more dimensions it is a view. The sigmoid of
        # integers is no integer. Of leaky_relu autograd keeps the input: the output is the caller's.
        z = linear(input, weight, bias)
        own = z.dim() == 2 and z.is_floating_point() and not (z.requires_grad and act.name == "leaky_relu")
        input = act.write_over(z) if own else act(z)
        if dropout:
            input = F.dropout(input, dropout)
    return input


_WEIGHT = operator.attrgetter("weight")


def draw_seed(device: torch.device) -> Tensor:
    """A fresh seed for dropouts from torch's generator of ``device``; nothing waits for it.

    So ``torch.manual_seed``, checkpointing and CUDA graphs do with it what they do with torch's own.
    """
    return torch.randint(2**63 - 1, (1,), device=device)


def split_layers(layers: Sequence[Layer]) -> tuple[list[Act], list[Tensor | None]]:
    """Activations without tensors, and all tensors flat: weight, bias, PReLU's weight a layer."""
    acts = [layer.act._replace(weight=None) for layer in layers]
    return acts, [t for weight, bias, act, _ in layers for t in (weight, bias, act.weight)]


def fits_kernels(input: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether the kernels do this. What they do not goes to torch's own ops."""
    if input.numel() == 0 or any(layer.weight.numel() == 0 or layer.dropout == 1 for layer in layers):
        return False
    for weight, bias, act, _ in layers:
        if not all(t is None or backends.readable(t) for t in (weight, bias, act.weight)):
            return False
    # PReLU's slopes lie along dimension 1, which is that of the features for a matrix alone.
    return input.dim() == 2 or all(a.weight is None or a.weight.numel() == 1 for _, _, a, _ in layers)


def check_chain(input: Tensor, layers: Sequence[Layer]) -> None:
    """Raise an error that names the argument, its shape and what was expected."""
    if input.dim() == 0:
        raise ArgumentError("input: expected (..., features), got a scalar")
    features = input.shape[-1]
    for i, (weight, bias, act, dropout) in enumerate(layers):
        name = "weight" if len(layers) == 1 else f"weight of layer {i}"
        if weight.dim() != 2 or weight.shape[1] != features:
            source = f"input {tuple(input.shape)}" if i == 0 else f"layer {i - 1}, {features} features"
            raise ArgumentError(
                f"{name}: expected (N, {features}) to fit {source}, got {tuple(weight.shape)}"
            )
        features = weight.shape[0]
        if bias is not None and bias.shape != (features,):
            raise ArgumentError(
                f"{name.replace('weight', 'bias')}: expected ({features},), got {tuple(bias.shape)}"
            )
        if act.weight is not None and act.weight.numel() not in (1, features) and input.dim() == 2:
            raise ArgumentError(
                f"activation: PReLU's weight has {act.weight.numel()} slopes for {features} features"
            )
        if act.weight is not None and act.weight.dim() > 1:
            raise ArgumentError(
                f"activation: PReLU's weight: expected () or (slopes,), got {tuple(act.weight.shape)}"
            )
        if not 0 <= dropout <= 1:
            raise ArgumentError(f"dropout of layer {i}: expected a probability in [0, 1], got {dropout}")
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
    if tensor.dtype == input.dtype:  # torch's own ops take, or refuse, what does not float
        return
    if not (tensor.is_floating_point() and input.is_floating_point()):
        raise DtypeError(f"input and {name}: expected floating dtypes, got {input.dtype} and {tensor.dtype}")
    # Autocast leaves float64 alone, so beside another dtype it is a mistake there too, as torch's.
    double = torch.float64 in (tensor.dtype, input.dtype)
    if double or not backends.is_autocast(input):
        raise DtypeError(f"{name}: expected {input.dtype} as the input, got {tensor.dtype}")
