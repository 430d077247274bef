"""``python -m benchmarks.gpu --out DIR``: what a quarter of an hour on a GPU must answer, by one command.

``__main__``   the command
``stages``     their names, limits and order
``conductor``  runs each in a process of its own, and keeps what it says
``worker``     such a process, and what a stage is given there: `Bench`
``summary``    the one screen at the end

``facts``, ``smoke``, ``host``, ``engines``, ``headlines``, ``tune`` and ``tests`` are the stages: each
a function ``run(bench)``. Nothing here imports more than torch, Triton and what a checkout has.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class _Links:
    """Finds what `fastmlp.kernels` and `fastmlp.benchmarks` link to, in a copy that has lost its links."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, part = name.partition(".")
        if package != "fastmlp" or part not in ("kernels", "benchmarks"):
            return None
        folder = os.path.join(_ROOT, part)
        start = os.path.join(folder, "__init__.py")
        return importlib.util.spec_from_file_location(name, start, submodule_search_locations=[folder])


_IN_FASTMLP = os.path.join(_ROOT, "fastmlp")
if os.path.isdir(_IN_FASTMLP) and not os.path.isdir(os.path.join(_IN_FASTMLP, "kernels")):
    sys.meta_path.insert(0, _Links())  # before anything of fastmlp is imported
