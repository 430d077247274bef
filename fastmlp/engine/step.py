"""One training step as a function."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmlp import backends
from fastmlp.engine import choose
from fastmlp.engine.autograd import AutogradExecutor
from fastmlp.engine.base import Executor
from fastmlp.engine.network import Network
from fastmlp.engine.snapshot import Snapshot


class TrainStep:
    """``step(x, y)``: forward, backward and update of a net, as fast as the device allows.

    A chain of linear layers and activations with a `CrossEntropyLoss` or an `MSELoss` and SGD, Adam or AdamW
    runs as a whole: 2L - 1 launches on a GPU, the optimizer in the last one's epilogue; preallocated
    buffers on a CPU. There ``.grad`` is neither read nor filled. Anything else runs by autograd, as

        optimizer.zero_grad(); value = loss(model(x), y); value.backward(); optimizer.step()

    Parameters and optimizer state are torch's own: both ways can be mixed, ``state_dict`` included.

    Args:
        model: maps (B, ...) to logits (B, classes), or to predictions (B, outputs).
        loss: of (logits, labels), or of (predictions, targets).
        optimizer: over the model's parameters; read at every step, so that schedulers work.
        dtype: of the matrix products; parameters stay as they are. float32 obeys torch's TF32 setting.

    Raises:
        ValueError: ``dtype`` is none of float32, bfloat16, float16.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype not in choose.DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(map(str, choose.DTYPES))}, got {dtype}")
        self.model, self.loss, self.optimizer, self.dtype = model, loss, optimizer, dtype
        self._network: Network | str | None = None
        self._snapshot: Snapshot | None = None  # of model and loss where they are a network
        self._requested = ""  # backend then
        self._executor: Executor | None = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on features x (B, ...) and class indices y (B,), for an `MSELoss` targets (B, outputs).

        uint8 features stand for x / 255, unless the model begins with a `fastmlp.Dequantize`.

        Returns:
            The loss before the update, a scalar without a gradient, on the device.

        Raises:
            ValueError, TypeError, RuntimeError: a batch that does not fit, before anything is written.
        """
        return self._of(x).step(x, y, count=False)

    def __repr__(self) -> str:
        parts = ", ".join(type(part).__name__ for part in (self.model, self.loss, self.optimizer))
        return f"<TrainStep: {parts}, {str(self.dtype).removeprefix('torch.')}; engine: {self.engine}>"

    @property
    def engine(self) -> str:
        """What runs the steps, and why where it is autograd; known after the first one."""
        if self._executor is None:
            return "not known before the first step"
        reason = f": {self._network}" if isinstance(self._network, str) else ""
        return self._executor.name + reason

    def _of(self, x: Tensor) -> Executor:
        # Looked at anew at every step, as a forward does: children, hooks and modes can change at any time.
        known, found = self._network, self._find(x)
        if self._executor is not None and (found is known or (isinstance(found, str) and found == known)):
            return self._executor
        self._network = found
        if isinstance(found, Network):
            self._executor = choose.of_network(found, self.optimizer, self.dtype)
        else:
            self._executor = AutogradExecutor(self.model, self.loss, self.optimizer, x.device, self.dtype)
        return self._executor

    def _find(self, x: Tensor) -> Network | str:
        """The network, the known one where it is the same, or why there is none."""
        if len(x) == 0:
            return "the batch is empty"
        known, requested = self._network, backends.requested()
        same = self._snapshot is not None and self._snapshot.holds(self.model, self.loss)
        if same and isinstance(known, Network) and requested == self._requested:
            return choose.step_problem(known, self.optimizer, self.dtype) or known
        found = choose.recognise(self.model, self.loss, self.optimizer, self.dtype)
        self._snapshot = Snapshot(self.model, self.loss) if isinstance(found, Network) else None
        self._requested = requested
        return found
