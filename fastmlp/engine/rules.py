"""Can an optimizer run in a kernel's epilogue, and with which numbers in each step?

The optimizer's own state is used and kept as torch would: its ``state_dict`` says the same after steps
by the engine as after ordinary ones, and the two can be mixed.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

#: Numbers per parameter group and step; the kernels' `apply` says which.
HYPERS = 8


class Rule:
    """SGD, Adam or AdamW over a network's parameters."""

    def __init__(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        self.optimizer = optimizer
        self.parameters = list(parameters)
        #: One of the kernels' RULES, and the group of every parameter.
        self.kind, self.groups = layout(optimizer, parameters)
        state = optimizer.state.get(parameters[0]) or {}
        #: Whether a momentum buffer is still to be started with the first gradient.
        self._fresh = self.kind in ("momentum", "nesterov") and state.get("momentum_buffer") is None
        #: How many steps Adam has made.
        self.steps = 0
        self._step_version = -1
        self.refresh()

    def refresh(self) -> None:
        """Take over the number of steps if somebody else has made some."""
        step = (self.optimizer.state.get(self.parameters[0]) or {}).get("step")
        if step is not None and step._version != self._step_version:
            self.steps, self._step_version = int(step), step._version

    def state(self, parameter: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The parameter's momentum, or first and second moment: torch's own, made if it is not there."""
        state = self.optimizer.state[parameter]
        if self.kind == "adam":
            if not state:
                at = next(i for i, p in enumerate(self.parameters) if p is parameter)
                state.update(_adam_state(parameter, self.optimizer.param_groups[self.groups[at]]))
            return state["exp_avg"], state["exp_avg_sq"]
        if self.kind == "sgd":
            return None, None
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"], None

    def rows(self, factors: Tensor) -> Tensor:
        """The numbers of the next steps, (steps, groups, HYPERS) float32 on the CPU.

        Args:
            factors: (steps,) float64, what each step's learning rates are multiplied by.
        """
        steps = len(factors)
        table = torch.zeros(
            steps, len(self.optimizer.param_groups), HYPERS, dtype=torch.float64, device="cpu"
        )
        for i, group in enumerate(self.optimizer.param_groups):
            lr = factors * group["lr"]
            if self.kind == "adam":
                _adam_rows(table[:, i], lr, group, self.steps)
            else:
                table[:, i, 0] = lr
                table[:, i, 1] = group["weight_decay"]
                table[:, i, 2] = group["momentum"]
                table[:, i, 3] = 1 - group["dampening"]
                if self._fresh and steps:
                    table[0, i, 3] = 1.0  # torch starts a buffer with the gradient itself
        return table.float()

    def settings(self) -> tuple[object, ...]:
        """What `rows` depends on besides the factors and the number of steps."""
        names = ("lr", "weight_decay", "momentum", "dampening", "betas", "eps")
        groups = self.optimizer.param_groups
        return (*(group.get(name) for group in groups for name in names), self._fresh)

    def advance(self, steps: int) -> None:
        """Record that so many steps were done."""
        if not steps:
            return
        self._fresh = False
        self.steps += steps
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # what lr_scheduler looks at
        if self.kind == "adam":
            counts = self.counts()
            torch._foreach_add_(counts, steps)
            self._step_version = counts[0]._version

    def counts(self) -> list[Tensor]:
        """Adam's own counts of the steps, which torch has as tensors, one for each parameter."""
        return [self.optimizer.state[p]["step"] for p in self.parameters] if self.kind == "adam" else []


def layout(optimizer: Optimizer, parameters: Sequence[Tensor]) -> tuple[str, list[int]]:
    """The kind of rule, which a kernel is compiled for, and the group of each parameter."""
    groups = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return _kind(optimizer.param_groups[0]), [groups[id(p)] for p in parameters]


def _adam_state(parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    dtype = torch.get_default_dtype() if torch.get_default_dtype() == torch.float64 else torch.float32
    on_device = bool(group.get("capturable") or group.get("fused"))
    return {
        "step": torch.zeros((), dtype=dtype, device=parameter.device if on_device else "cpu"),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def _adam_rows(table: Tensor, lr: Tensor, group: dict[str, Any], done: int) -> None:
    beta1, beta2 = group["betas"]
    t = torch.arange(done + 1, done + len(lr) + 1, dtype=torch.float64, device="cpu")
    decoupled = group["decoupled_weight_decay"]
    table[:, 0] = lr / (1 - beta1**t)
    table[:, 1] = 0.0 if decoupled else group["weight_decay"]
    table[:, 2] = 1 - lr * group["weight_decay"] if decoupled else 1.0
    table[:, 3] = 1 - beta1
    table[:, 4] = beta2
    table[:, 5] = 1 - beta2
    table[:, 6] = group["eps"]
    table[:, 7] = (1 - beta2**t).sqrt()


def facts(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[object]:
    """What `recognise` and `layout` look at, except Adam's counts; the same facts have the same answers."""
    found: list[object] = [type(optimizer), is_plain(optimizer)]
    for group in optimizer.param_groups:
        found += map(group.get, _ASKED)
        found += (type(group["lr"]), *map(type, group.get("betas", ())), *map(id, group["params"]))
    states = optimizer.state
    for parameter in parameters:
        found.append(parameter.data_ptr())
        for name, value in (states.get(parameter) or {}).items():
            if isinstance(value, Tensor):
                found += (name, id(value), value.data_ptr(), value.dtype, value.is_contiguous())
    return found


_ASKED = ("momentum", "nesterov", "maximize", "amsgrad", "differentiable")


def recognise(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Rule | str:
    """The rule that ``optimizer`` is for ``parameters``, or why no kernel can run it."""
    kind = type(optimizer)
    if kind not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        return f"{kind.__name__} is not among SGD, Adam, AdamW"
    if not is_plain(optimizer):
        return "the optimizer has hooks or a step of its own"
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if known != {id(p) for p in parameters}:
        return "the optimizer's parameters are not just the network's"
    kinds = {_kind(group) for group in optimizer.param_groups}
    if len(kinds) != 1:
        return "the optimizer's groups differ in kind"
    problem = _problem(optimizer, parameters)
    return problem or Rule(optimizer, parameters)


def _kind(group: dict[str, Any]) -> str:
    if "betas" in group:
        return "adam"
    if group["momentum"] == 0:
        return "sgd"
    return "nesterov" if group["nesterov"] else "momentum"


def _problem(optimizer: Optimizer, parameters: Sequence[Tensor]) -> str | None:
    for group in optimizer.param_groups:
        for name in ("maximize", "amsgrad", "differentiable"):
            if group.get(name):
                return f"the optimizer's {name} is on"
        if isinstance(group["lr"], Tensor) or any(isinstance(b, Tensor) for b in group.get("betas", ())):
            return "the optimizer's lr or betas are tensors"
    states = [optimizer.state.get(p) or {} for p in parameters]
    names = ("momentum_buffer", "exp_avg")
    if len({tuple(state.get(name) is not None for name in names) for state in states}) > 1:
        return "some parameters have a state and others none"
    if len({float(state["step"]) for state in states if "step" in state}) > 1:
        return "the parameters have not made the same number of steps"
    for state, parameter in zip(states, parameters):
        for name in (*names, "exp_avg_sq"):
            tensor = state.get(name)
            if tensor is not None and not (
                tensor.dtype == torch.float32 and tensor.is_contiguous() and tensor.device == parameter.device
            ):
                return f"{name} is not float32 and contiguous beside its parameter"
    return None


def is_plain(optimizer: Optimizer) -> bool:
    """Whether a step of ``optimizer``, which is one of torch's, runs torch's code alone."""
    kind = type(optimizer)
    if _STEPS.get(kind) is not kind.step:
        if not _is_torchs(kind.step):
            return False
        _STEPS[kind] = kind.step
    step = optimizer.__dict__.get("step")  # schedulers put a wrapper there
    return not (
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or (step is not None and not _is_torchs(step))
    )


#: The step of a class when it was last looked at: torch wraps it as the first optimizer is made.
_STEPS: dict[type[Optimizer], Any] = {}


def _is_torchs(step: Any) -> bool:
    """Whether ``step`` and all that it wraps are torch's; ``functools.wraps`` copies marks, not globals."""
    while step is not None:
        module = getattr(step, "__globals__", {}).get("__name__", "")
        if not module.startswith("torch.optim."):
            return False
        step = getattr(step, "__wrapped__", None)
    return True


def wants_closure(optimizer: Optimizer) -> bool:
    """Whether ``optimizer``'s steps evaluate the loss themselves, as LBFGS' do: ``step(closure)``."""
    kind: Any = type(optimizer)
    return _takes_closure(kind)


@lru_cache(maxsize=32)
def _takes_closure(kind: Any) -> bool:
    arguments = list(inspect.signature(kind.step).parameters.values())[1:2]
    return any(
        a.default is a.empty and a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) for a in arguments
    )


def drop_gradients(optimizer: Optimizer) -> None:
    """``optimizer.zero_grad()``, also for parameters that are not the network's; torch's own takes 10 µs."""
    if type(optimizer).zero_grad is not Optimizer.zero_grad or "zero_grad" in vars(optimizer):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
