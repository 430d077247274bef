"""Where ours may differ from torch's, each with its reason. Everything else is a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastmlp import backends
from tests.stateful.judged import Outcome
from tests.stateful.losses import LossCall
from tests.stateful.nets import NetCall
from tests.stateful.steps import StepCall

#: Whether it is one of the differences that may be.
Rule = Callable[[Any, Outcome, Outcome], bool]


def _no_class(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """The kernels make the loss of such a row NaN, as docs/kernels.md says: no host waits for them."""
    return (
        isinstance(call, LossCall)
        and call.target == "out of range"
        and backends.requested() == "triton"
        and isinstance(torchs.error, IndexError)
        and ours.error is None
    )


def _fused_product(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """A mode that changes ``F.linear`` sees none in a loss that is one function with the layer before it."""
    fused = isinstance(call, LossCall) and call.kind == "linear_cross_entropy"
    return fused and "overriding mode" in call.contexts


def _diverged(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """Steps that lead nowhere: near the largest numbers each rounding is a matter of the order."""
    numbers = [t for t in torchs.found.values() if isinstance(t, Tensor) and t.is_floating_point()]
    return isinstance(call, StepCall) and any(not (t.abs() < 1e4).all() for t in numbers)


def _no_optimizer_of_it(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """`TrainStep` says that it would train nothing; the loop that it stands for trains nothing."""
    return isinstance(call, StepCall) and "optimizer: expected one over the net's parameters" in ours.said


def _kept_input(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """The kernels keep an input that wants a gradient, though the layer be frozen: a second one needs it."""
    written = isinstance(call, NetCall) and call.event == "input in place"
    return written and backends.requested() == "triton" and "by an inplace operation" in ours.said


def _recomputed(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """The plan that keeps nothing reads each parameter again in its backward: none may be written to."""
    written = isinstance(call, NetCall) and call.event in ("weight in place", "bias in place")
    return written and backends.requested() == "triton" and "by an inplace operation" in ours.said


def _own_copy(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """Of a target in bytes, or of strides apart, ours keeps a copy, which no write reaches."""
    written = isinstance(call, LossCall) and call.event == "target" and not ours.error
    return written and (call.target == "uint8" or (call.inner != () and call.target_layout != "contiguous"))


def _smoothed(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """torch smooths probabilities in a copy of its own; ours reads the target as it was given."""
    kept = isinstance(call, LossCall) and (call.target, call.event) == ("probabilities", "target")
    return kept and call.smoothing > 0 and "by an inplace operation" in ours.said


def _cast_within(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """Autocast makes an ordinary tensor of an inference tensor; the kernels keep the tensor itself."""
    kept = isinstance(call, NetCall) and call.kind == "inference" and "autocast" in call.contexts
    return kept and "Inference tensors cannot be saved" in ours.said


def _of_the_forward(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """torch's PReLU reads its slopes again in the backward, of any dtype by then; ours are the forward's."""
    cast = isinstance(call, NetCall) and call.event == "cast" and ours.error is None
    return cast and "Found dtype" in torchs.said


def _once_kept(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """A large loss on a CPU keeps one gradient, the kernels none; others are made from the logits."""
    written = isinstance(call, LossCall) and call.event == "input" and "by an inplace operation" in ours.said
    return written and (call.way in ("twice", "double", "threads") or backends.requested() == "triton")


def _made_anew(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """The kernels' gradients are differentiated by the chain run anew: no parameter may be written to before.

    Eager's layers save no weight whose input needs no gradient.
    """
    return (
        isinstance(call, NetCall)
        and call.way == "double"
        and any(text in ours.said for text in ("by an inplace operation: a parameter", "has other data than"))
    )


def _hidden(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """Within the backward of a tensor of a type of its own torch hides such types.

    So checkpoint's second forward, which runs there, finds plain tensors, and kernels run.
    """
    again = isinstance(call, NetCall) and call.way == "checkpoint" and backends.requested() == "triton"
    return again and "Recomputed values" in ours.said


RULES: tuple[Rule, ...] = (
    _no_class,
    _fused_product,
    _diverged,
    _no_optimizer_of_it,
    _made_anew,
    _kept_input,
    _recomputed,
    _own_copy,
    _smoothed,
    _cast_within,
    _of_the_forward,
    _once_kept,
    _hidden,
)


def allowed(call: Any, ours: Outcome, torchs: Outcome) -> bool:
    """Whether ``call`` may give what it gave."""
    return any(rule(call, ours, torchs) for rule in RULES)
