"""An epoch as one CUDA graph: permutation, batches, steps and the tail, with no Python in between."""

from __future__ import annotations

import warnings

import torch

from fastmlp.engine.base import Job
from fastmlp.engine.fused import FusedExecutor
from fastmlp.engine.whole_loop import WholeLoop


class GraphLoop(WholeLoop):
    """Replays the 2L - 1 launches of every step of an epoch."""

    def __init__(self, executor: FusedExecutor, job: Job) -> None:
        super().__init__(executor, job)
        self.name = "graph+pdl" if executor.pdl else "graph"
        self._graph: torch.cuda.CUDAGraph | None = None

    def _run(self, new: bool) -> None:
        if new or self._graph is None:
            self._warm_up()
            self._graph = self._capture()
        self._graph.replay()

    def _step(self, step: int) -> None:
        rows = self.order[step * self.batch : (step + 1) * self.batch]
        self.executor.launch(self.x, self.y, rows, self.schedule.rows[step])

    def _warm_up(self) -> None:
        """Compile and load every kernel, which a capture cannot, by steps whose results are undone."""
        tensors = self.executor.written()
        before = [tensor.clone() for tensor in tensors]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for step in {0, self.steps - 1}:
                self._step(step)
        torch.cuda.current_stream().wait_stream(stream)
        torch._foreach_copy_(tensors, before)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer torch finds the generator by itself, and says so
            graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            self.executor.sums.zero_()
            torch.randperm(len(self.y), generator=self.generator, out=self.order)
            for step in range(self.steps):
                self._step(step)
        return graph
