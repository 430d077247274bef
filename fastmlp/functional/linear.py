"""Linear layers with their activations: one layer, or a chain of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.overrides import handle_torch_function

from fastmlp import backends
from fastmlp.activations import resolve
from fastmlp.backends.base import Quantized
from fastmlp.backends.route import Last
from fastmlp.costs.choice import PLANS
from fastmlp.functional.checks import check_chain
from fastmlp.functional.layer import Layer, Layers, flat
from fastmlp.functional.traced import any_stand_in
from fastmlp.functional.ways import WAYS, Kernels, Way, aten_chain, decide


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
        IndexError: with ``FASTMLP_DEBUG=1`` an index that is not a row.
        RuntimeError: tensors on different devices.
    """
    key = None
    if type(activation) in _NAMES and not backends.off_gpu(input):
        tensors = (input, weight) if bias is None else (input, weight, bias)
        way, key = WAYS.find(activation, tensors, _LAST)  # type: ignore[arg-type]
        if way is not None:
            return way(tensors)  # type: ignore[arg-type]
    given = (input, weight, bias)
    if any_stand_in(given):
        return handle_torch_function(linear_act, given, input, weight, bias, activation)
    layers = [Layer(weight, bias, resolve(activation))]
    if key is None:
        return chain(input, layers)
    return decide(key, input, Layers(layers), "auto")(tensors)  # type: ignore[arg-type]


#: What a route can be found by; and the last one.
_NAMES = (str, type(None))
_LAST: Last[Way] = Last()


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
    if any_stand_in(given):
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
    way, key = WAYS.find((plan, numbers, layers.what), tensors, layers.last)
    if way is None:
        way = decide(key, input, layers, plan)
    return way(tensors)


def again(input: Tensor, layers: Layers) -> Tensor | None:
    """The chain, if its kernels are known to run for such an input; else None."""
    tensors = (input, *layers.there)
    way, _ = WAYS.find(("auto", None, layers.what), tensors, layers.last)
    return way(tensors) if isinstance(way, Kernels) else None
