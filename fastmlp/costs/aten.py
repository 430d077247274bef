"""What one of torch's own ops takes, from what the profiler recorded of its arguments.

The op is run again on the meta device, which computes shapes alone: they say what it returns, and
torch's own counter (``torch.utils.flop_counter``) what its products are. An operand is read once, a result
written once. Where that is not known, nothing is said.
"""

from __future__ import annotations

import ast
import json
import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.costs.floors import Work, size

#: The profiler's names of dtypes.
_DTYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "c10::Half": torch.float16,
    "c10::BFloat16": torch.bfloat16,
    "long int": torch.int64,
    "long": torch.int64,
    "int": torch.int32,
    "short": torch.int16,
    "signed char": torch.int8,
    "unsigned char": torch.uint8,
    "bool": torch.bool,
}
#: Namespaces whose ops are kernels; ops of others may be Python that calls these.
_NAMESPACES = ("aten", "mkldnn", "onednn")
#: These write their first operand without reading it.
_WRITE_ONLY = frozenset({"copy_", "fill_", "zero_", "normal_", "uniform_", "random_"})
#: These read as much of their first operand as they return.
_PICK = frozenset({"index_select", "index", "gather", "embedding"})
#: These touch part of an operand, and the indices decide which.
_PART = frozenset(
    {"scatter_add_", "scatter_", "index_put_", "index_add_", "nll_loss_forward", "nll_loss_backward"}
)
#: These only take memory, or see it in another way: no kernel runs.
_NOTHING = (
    "empty",
    "resize_",
    "set_",
    "is_",
    "resolve_",
    "_local_scalar_dense",
    "item",
    "lift_fresh",
    "detach",
)


class Op(NamedTuple):
    """What is known of an op's call."""

    work: Work | None  # None: not known
    dtype: str  # of its first operand


def is_kernel(name: str, recorded: dict[str, Any]) -> bool:
    """Whether an op itself computes: it is not a view, an allocation or a composition of other ops.

    Args:
        name: such as "aten::addmm".
        recorded: a trace event's ``args``.
    """
    op = _overload(name, tuple(recorded.get("Input type", ())))
    return op is not None and not _is_view(op) and not _is_composition(op)


def count(name: str, recorded: dict[str, Any]) -> Op:
    """What a call of the op took."""
    fields = ("Input Dims", "Input Strides", "Input type", "Concrete Inputs")
    if any(field not in recorded for field in fields):
        return Op(None, "")
    return _count(name, json.dumps([recorded[field] for field in fields]))


@cache
def _overload(name: str, types: tuple[str, ...]) -> Any:
    """The overload called with arguments recorded as ``types``; None if it is not a kernel of torch's."""
    namespace, _, base = name.partition("::")
    if namespace not in _NAMESPACES or base.startswith(_NOTHING):
        return None
    packet = getattr(getattr(torch.ops, namespace), base, None)
    for overload in () if packet is None else packet.overloads():
        op = getattr(packet, overload)
        arguments = op._schema.arguments
        if len(arguments) == len(types) and all(map(_fits, arguments, types)):
            return op
    return None


def _is_view(op: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns)


def _is_composition(op: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")


@cache
def _count(name: str, key: str) -> Op:
    dims, strides, types, concrete = json.loads(key)
    dtype = next((str(_DTYPES[t]).removeprefix("torch.") for t in types if t in _DTYPES), "")
    op, base = _overload(name, tuple(types)), name.partition("::")[2]
    if op is None or base in _PART:
        return Op(None, dtype)
    try:
        arguments = op._schema.arguments
        given = [_value(*one) for one in zip(arguments, dims, strides, types, concrete)]
        return Op(_work(op, base, given), dtype)
    except Exception:  # an argument that the profiler does not spell out, an op without shapes
        return Op(None, dtype)


def _fits(argument: Any, kind: str) -> bool:
    """Whether an argument was recorded as what the schema says: a tensor or not."""
    text = str(argument.type)
    if text == "Tensor":
        return kind in _DTYPES
    return kind in ("", *_DTYPES) if text == "Optional[Tensor]" else kind not in _DTYPES


def _value(argument: Any, dims: Any, strides: Any, kind: str, concrete: str) -> Any:
    if kind in _DTYPES:
        return torch.empty_strided(dims, strides, dtype=_DTYPES[kind], device="meta")
    text = str(argument.type)
    if "Tensor" in text and kind:
        raise ValueError(f"{argument.name}: lists of tensors are recorded without their dtypes")
    if text == "str":
        return concrete or "none"
    if not concrete:
        return [] if text.startswith("List") else None
    return ast.literal_eval(concrete)


def _work(op: Any, base: str, given: list[Any]) -> Work:
    from torch.utils.flop_counter import FlopCounterMode

    arguments = op._schema.arguments
    positional = [value for value, a in zip(given, arguments) if not a.kwarg_only]
    named = {a.name: value for value, a in zip(given, arguments) if a.kwarg_only and value is not None}
    mapping: dict[Any, Any] = {torch.ops.aten.addmm_: _addmm}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        mapping[torch.ops.mkldnn._linear_pointwise] = _linear
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        results = op(*positional, **named)
    if not isinstance(results, tuple):
        results = (results,)
    fresh = [r for r, schema in zip(results, op._schema.returns) if schema.alias_info is None]
    written = sum(size(r) for r in fresh if isinstance(r, Tensor))
    moved = written
    for i, (value, argument) in enumerate(zip(given, arguments)):
        if not isinstance(value, Tensor):
            continue
        changed = argument.alias_info is not None and argument.alias_info.is_write
        if i == 0 and base in _PICK:
            moved += written or sum(size(v) for v, a in zip(given, arguments) if a.is_out)
        elif changed and not argument.kwarg_only and base not in _WRITE_ONLY:
            moved += 2 * size(value)
        else:
            moved += size(value)
    return Work(counter.get_total_flops(), moved, 1, moved)


def _addmm(self: Any, a: Any, b: Any, *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _linear(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * weight[0] * weight[1]
