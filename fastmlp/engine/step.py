"""One training step as a function."""

from __future__ import annotations

from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from fastmlp import backends
from fastmlp.engine import choose, network
from fastmlp.engine.autograd import AutogradExecutor, products
from fastmlp.engine.base import Executor
from fastmlp.engine.checks import batch_problem, check_optimizer, check_parts
from fastmlp.engine.network import Network
from fastmlp.engine.snapshot import Snapshot


class TrainStep:
    """``step(x, y)``: forward, backward and update of a net, as fast as the device allows.

    A chain of linear layers and activations with a `CrossEntropyLoss` or an `MSELoss` and SGD, Adam or AdamW
    runs as a whole: 2L - 1 launches on a GPU, the optimizer in the last one's epilogue; preallocated
    buffers on a CPU. Neither fills a ``.grad``, and those that were there are dropped. Anything else
    runs by autograd, as

        optimizer.zero_grad(); value = loss(model(x), y); value.backward(); optimizer.step()

    or with these in a closure for an optimizer that wants one, such as LBFGS. Parameters and optimizer state
    are torch's own: both ways can be mixed, ``state_dict`` included. Threads that share one take turns.

    Args:
        model: maps (B, ...) to logits (B, classes), or to predictions (B, outputs).
        loss: of (logits, labels), or of (predictions, targets).
        optimizer: over parameters of the model, and perhaps others; read at every step, so that schedulers
            work.
        dtype: of the matrix products; parameters stay as they are. float32 obeys torch's TF32 setting, and
            gives way to an enclosing ``torch.autocast``; another holds within one, too.

    Raises:
        ValueError: model, loss or optimizer is something else, such as a class; ``dtype`` is not float32,
            bfloat16 or float16, or is float16 for an optimizer that wants a closure; or none of the
            optimizer's parameters is the model's or the loss's.
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
        check_parts(model, loss, optimizer)
        check_optimizer(model, loss, optimizer, dtype)
        self.model, self.loss, self.optimizer, self.dtype = model, loss, optimizer, dtype
        self._lock = RLock()  # an executor's buffers are one step's at a time
        self._forget()

    def _forget(self) -> None:
        self._parts: tuple[object, ...] = (self.model, self.loss, self.optimizer, self.dtype)
        self._network: Network | None = None  # the last one that was found, and what the engine of it runs in
        self._products = self.dtype
        self._snapshot: Snapshot | None = None  # of model and loss then
        self._requested = ""  # and the backend
        self._fast: Executor | None = None
        self._eager: AutogradExecutor | None = None
        self._engine = "not known before the first step"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = RLock()
        self._forget()

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """One step on features x (B, ...) and class indices y (B,), for an `MSELoss` targets (B, outputs).

        Or on whatever else model and loss take, such as class probabilities, by autograd. uint8 features
        stand for x / 255, unless the model begins with a `fastmlp.Dequantize`.

        Returns:
            The loss before the update, a scalar without a gradient, on the device.

        Raises:
            ValueError, TypeError, RuntimeError: a batch that does not fit, before anything is written.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        with self._lock:
            loss = self._of(x, y).step(x, y, count=False)
        if self._products != self.dtype:  # an enclosing autocast keeps copies of what was just changed
            torch.clear_autocast_cache()
        return loss

    def __repr__(self) -> str:
        parts = ", ".join(type(part).__name__ for part in (self.model, self.loss, self.optimizer))
        return f"<TrainStep: {parts}, {str(self.dtype).removeprefix('torch.')}; engine: {self.engine}>"

    @property
    def engine(self) -> str:
        """What runs the steps, and if it is autograd, why; known after the first one."""
        return self._engine

    def _of(self, x: Tensor, y: Tensor) -> Executor:
        # Looked at anew at every step, as a forward does: children, hooks and modes can change at any time.
        if self._parts != (self.model, self.loss, self.optimizer, self.dtype):
            check_parts(self.model, self.loss, self.optimizer)
            check_optimizer(self.model, self.loss, self.optimizer, self.dtype)
            self._forget()
        found = self._find(x, y)
        if isinstance(found, Network):
            if self._fast is None:
                check_optimizer(self.model, self.loss, self.optimizer, self.dtype)  # the net may be another
                self._fast = choose.of_network(found, self.optimizer, self._products)
            self._engine = self._fast.name
            return self._fast
        if self._eager is None or self._eager.device != x.device:
            self._eager = AutogradExecutor(self.model, self.loss, self.optimizer, x.device, self.dtype)
        self._engine = f"{self._eager.name}: {found}"
        return self._eager

    def _find(self, x: Tensor, y: Tensor) -> Network | str:
        """The network, the known one if it is the same, or why there is none."""
        if x.shape[:1] == (0,):
            return "the batch is empty"
        dtype, requested = products(x.device, self.dtype), backends.requested()
        found: Network | str | None = self._network
        same = self._snapshot is not None and self._snapshot.of(self.model, self.loss)
        if found is None or not same or requested != self._requested or dtype != self._products:
            found = network.recognise(self.model, self.loss)
            self._network = found if isinstance(found, Network) else None
            self._snapshot = Snapshot(self.model, self.loss) if self._network else None
            self._fast, self._requested, self._products = None, requested, dtype
        if isinstance(found, str):
            return found
        problem = choose.step_problem(found, self.optimizer, dtype, self._fast)
        return problem or batch_problem(found, x, y) or found
