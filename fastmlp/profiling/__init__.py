"""What kernels ran, how long, and how near to what the device can do.

``session``   `profile`, the context manager
``trace``     the kernels of what torch's profiler exports
``naming``    ranges by the layers' names, a note of every launch
``rows``      the table
``memory``    who holds memory
"""

from fastmlp.costs.ceilings import Ceilings, ceilings_of, measure_ceilings
from fastmlp.profiling.rows import Row
from fastmlp.profiling.session import profile

__all__ = ["Ceilings", "Row", "ceilings_of", "measure_ceilings", "profile"]
