"""The least time a piece of work can take on this machine, from ceilings measured in the same run.

They are `fastmlp.profiling`'s own: the report's floors and the profiler's are the same.
"""

from __future__ import annotations

from fastmlp.costs.ceilings import Ceilings, measure_ceilings

__all__ = ["Ceilings", "measure_ceilings"]
