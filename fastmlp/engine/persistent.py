"""An epoch as one cooperative launch; see `fastmlp.kernels.training.epoch`."""

from __future__ import annotations

import torch

from fastmlp.engine.base import Job
from fastmlp.engine.fused import FusedExecutor
from fastmlp.engine.network import Network
from fastmlp.engine.whole_loop import WholeLoop
from fastmlp.kernels.launch import INTERPRETED, arch_of, cdiv, num_sms
from fastmlp.kernels.loss.head import targets
from fastmlp.kernels.training.epoch import epoch, runs_on
from fastmlp.kernels.training.update import Accumulators

# Few in the interpreter, so that each takes several tiles.
_INTERPRETED_PROGRAMS = 3


def problem(network: Network) -> str | None:
    """Why one kernel cannot run all layers, or None if it can."""
    if len({(act.name, act.slope) for act in network.acts[:-1]}) > 1:
        return "the hidden activations differ"
    if len({layer.bias is None for layer in network.layers}) > 1:
        return "some layers have a bias and others none"
    if network.shift is not None or (network.scale is not None and network.scale.numel() > 1):
        return "the model dequantizes with a shift or a scale for each feature"
    if not runs_on(arch_of(network.layers[0].weight)):
        return "its barrier is for NVIDIA GPUs"
    return None


class PersistentLoop(WholeLoop):
    """Three launches an epoch, whatever its length: the permutation, two fills, and the epoch."""

    name = "persistent"

    def __init__(self, executor: FusedExecutor, job: Job) -> None:
        super().__init__(executor, job)
        self._barrier = torch.zeros((), device=self.y.device, dtype=torch.int64)
        self._loss = torch.zeros((), device=self.y.device, dtype=torch.float32)

    def _run(self, new: bool) -> None:
        executor = self.executor
        torch.randperm(len(self.y), generator=self.generator, out=self.order)
        executor.sums.zero_()
        self._barrier.zero_()
        epoch(
            executor.memory,
            executor.recipe,
            executor.source(self.x, self.order),
            targets(self.y, self.order),
            self.batch,
            self.schedule.rows,
            Accumulators(executor.partial, self._loss, executor.sums, self._barrier),
            executor.tile,
            self._programs(),
        )

    def _programs(self) -> int:
        """As many as the widest phase has tiles, at most one per multiprocessor."""
        if INTERPRETED:
            return _INTERPRETED_PROGRAMS
        tile, widths = self.executor.tile, self.executor.network.widths[1:-1]
        forward = max(cdiv(self.batch, tile.BLOCK_M) * cdiv(n, tile.BLOCK_N) for n in widths)
        return min(num_sms(self.y.device.index or 0), max(forward, self.executor.memory.tiles))
