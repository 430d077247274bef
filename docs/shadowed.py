"""For mkdocstrings: `fastmlp.fit` is the function, though a module of that name lies where it comes from.

A package that imports a function from its module of the same name has the function. Griffe, which reads the
source without importing it, then sees the module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import griffe


class Shadowed(griffe.Extension):
    """Puts what a package imports in the place of the modules of the same names."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called when a package is read."""
        packages = [pkg, *_modules(pkg)]
        uncovered = set()
        for module in packages:
            for inner in list(_modules(module, deep=False)):
                name = inner.name
                if module.imports.get(name) == f"{inner.path}.{name}" and name in inner.members:
                    module.members[name] = griffe.Alias(name, inner.members[name], parent=module)
                    uncovered.add(inner.path)
        for module in packages:
            for member in module.members.values():
                if isinstance(member, griffe.Alias) and member.target_path in uncovered:
                    member.resolve_target()  # once more: it was the module


def _modules(module: griffe.Module, deep: bool = True) -> Iterator[griffe.Module]:
    for member in module.members.values():
        if isinstance(member, griffe.Module):
            yield member
            if deep:
                yield from _modules(member)
