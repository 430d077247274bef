"""The training engine: a network, its loss and its optimizer as one.

``network``     is a model a chain that can run as a whole?
``snapshot``    is it still that?
``rules``       can an optimizer run in a kernel's epilogue?
``autograd``    a step of anything, by autograd
``cpu``         a step with preallocated buffers and folded updates
``fused``       a step in 2L - 1 launches of Triton kernels
``step_loop``   an epoch, step by step
``whole_loop``  what epochs that run as a whole have in common
``graph``       an epoch as one CUDA graph
``persistent``  an epoch as one cooperative launch
``choose``      which of these runs
``step``        `TrainStep`
"""

from fastmlp.engine.base import Executor, Loop
from fastmlp.engine.step import TrainStep

__all__ = ["Executor", "Loop", "TrainStep"]
