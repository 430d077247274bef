"""For mkdocstrings: what a reader of the source sees, and Griffe, which reads without importing, does not.

`fastmlp.fit` is the function, though a module of that name lies where it comes from. A field's comment is its
docstring. Which modules a package is made of is no business of who uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe


class Reference(griffe.Extension):
    """Called by Griffe as it reads the package."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Take the comment at a field's end, or the ``#:`` above it, for a docstring."""
        if attr.docstring is not None or attr.lineno is None or not isinstance(attr.filepath, Path):
            return
        lines = attr.lines_collection[attr.filepath]
        if lines[attr.lineno - 1].lstrip().startswith("self."):  # such comments are for who reads the code
            return
        behind = re.search(r"\S  # (?!noqa|type:)(.+)$", lines[(attr.endlineno or attr.lineno) - 1])
        above = re.fullmatch(r"\s*#: (.+)", lines[attr.lineno - 2])
        found = behind or above
        if found is not None:
            attr.docstring = griffe.Docstring(found[1], parent=attr)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Put what a package imports in the place of the modules of the same names."""
        packages = [pkg, *_modules(pkg)]
        uncovered = set()
        for module in packages:
            if module.docstring is not None:
                module.docstring.value = module.docstring.value.split("\n\n")[0]
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
