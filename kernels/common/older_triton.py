"""What named tuples lack as arguments in Triton before 3.8, whose front end is mended here.

Nothing here changes what compiled before: each of these cases raised, or lost a constant.
"""

from __future__ import annotations

from typing import Any

from triton.compiler.code_generator import ASTFunction, CodeGenerator
from triton.language import core
from triton.runtime import jit


def mend() -> None:
    """Let kernels compare a tuple with None, pass on a constexpr tuple's members, and find a nested one's.

    And, before 3.6, let hooks be told of kernels with constants in their tuples.
    """
    visit_attribute, deserialize = CodeGenerator.visit_Attribute, ASTFunction.deserialize
    serialize = jit.serialize_specialization_data

    def constant_attribute(self: Any, node: Any) -> Any:
        found = visit_attribute(self, node)
        plain = isinstance(found, (int, float, str, tuple)) and node.attr != "value"
        return core.constexpr(found) if plain else found

    def typed_arguments(self: Any, function: Any) -> Any:
        values = deserialize(self, function)
        _retype(values)
        return values

    def serialized_constants(name: Any, signature: Any, constants: dict[Any, Any], *rest: Any) -> str:
        plain = {
            k: {"constexpr": v.value} if isinstance(v, core.constexpr) else v for k, v in constants.items()
        }
        return serialize(name, signature, plain, *rest)

    core._type_for_tuple_values = _type_for_tuple_values
    jit.serialize_specialization_data = serialized_constants
    CodeGenerator.visit_Attribute = constant_attribute
    ASTFunction.deserialize = typed_arguments


def _type_for_tuple_values(values: Any, fields: Any = None) -> Any:
    """With names and None, which `is None` unwraps, as constants."""
    return core.tuple_type([v.type if hasattr(v, "type") else core.constexpr_type(v) for v in values], fields)


def _retype(values: Any) -> None:
    """An outer tuple's type was made before the constants of those in it were known."""
    for value in values.values:
        if isinstance(value, core.tuple):
            _retype(value)
    values.type = _type_for_tuple_values(values.values, getattr(values.type, "fields", None))
