"""What kernels ran, how long, and how near to what the device can do.

``session``   `profile`, the context manager
``trace``     the kernels of what torch's profiler exports
``launches``  what a launch of our kernels takes
``aten``      what one of torch's own ops takes
``doors``     a note of every launch
``naming``    ranges by the layers' names
``rows``      the table
``memory``    who holds memory
``ceilings``  what the device reaches
"""

from fastmlp.costs.ceilings import Ceilings, ceilings_of, measure_ceilings
from fastmlp.profiling.rows import Row
from fastmlp.profiling.session import profile

__all__ = ["Ceilings", "Row", "ceilings_of", "measure_ceilings", "profile"]
