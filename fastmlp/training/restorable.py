"""Can a saved state be taken up by the run that is to go on from it? Asked before anything is written."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from fastmlp.engine import Loop
from fastmlp.engine.step_loop import StepLoop
from fastmlp.training import identity
from fastmlp.training.contents import Saved, is_count, require
from fastmlp.training.history import is_number
from fastmlp.training.identity import Run

_MOST_STEPS = 2**40  # of Adam
_LARGEST_SCALE = torch.finfo(torch.float32).max
#: What says how an optimizer computes, not what: parameters without memory allow none of it.
_WAYS = ("foreach", "fused", "capturable")


def check(saved: Saved, run: Run, loop: Loop, changed: Collection[str]) -> None:
    """See that ``saved``'s optimizer, loop and generators are of this run, and its parameters finite.

    Raises:
        ValueError: they are not; the message goes on from "expected ..., but".
    """
    bad = not_finite(run, saved.state["net"])
    require(bad is None, f"the parameter {bad}", "not finite")
    _check_groups(run.optimizer, saved.state["optimizer"]["param_groups"], changed)
    _check_entries(run.optimizer, saved.state["optimizer"]["state"], loop.name not in ("eager", "cpu"))
    _check_loop(saved, run, loop)
    names = {"cpu", run.device.type}
    require({*saved.state["random"]} == names, "random", saved.state["random"])
    for name in names:
        device = run.device if name == run.device.type else torch.device(name)
        _check_generator(saved.state["random"][name], device, f"random.{name}")


def not_finite(run: Run, state: dict[str, Any]) -> str | None:
    """The name of a trained parameter with a NaN or an infinity in ``state``, the model's."""
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    named = [(name, state[name]) for name, p in run.model.named_parameters() if id(p) in trained]
    if not named:
        return None
    finite = torch.stack([torch.isfinite(p.detach()).all() for _, p in named]).tolist()
    return next((name for (name, _), fine in zip(named, finite) if not fine), None)


def _check_groups(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], changed: Collection[str]
) -> None:
    own = optimizer.state_dict()["param_groups"]
    require(len(own) == len(groups), "the number of the optimizer's groups", len(groups))
    for here, there in zip(own, groups):
        used = {**there, **{name: here[name] for name in changed if name in here}}
        names = there.pop("param_names", [])
        require(isinstance(names, list) and all(isinstance(n, str) for n in names), "param_names", names)
        indices = there["params"]
        require(all(map(is_count, indices)) and indices == here["params"], "the optimizer's params", indices)
        for name, value in here.items():
            if name not in ("params", "param_names"):
                require(name in used, f"the optimizer's {name}", "missing")
                _require_alike(value, used[name], f"the optimizer's {name}")
        _check_range(optimizer, here, used)


def _require_alike(own: Any, saved: Any, name: str) -> None:
    """A number may be another finite one; all else is what it is here."""
    number = _number(own)
    if number is not None:
        fine = _number(saved) is not None and (
            math.isfinite(_number(saved) or 0) or not math.isfinite(number)
        )
    elif isinstance(own, Tensor):
        fine = isinstance(saved, Tensor) and (saved.shape, saved.dtype) == (own.shape, own.dtype)
    elif isinstance(own, (list, tuple)):
        fine = isinstance(saved, (list, tuple)) and len(saved) == len(own)
        for one, other in zip(own, saved if fine else ()):
            _require_alike(one, other, name)
    elif isinstance(own, dict):
        fine = isinstance(saved, dict) and {*saved} == {*own}
        for key in own if fine else ():
            _require_alike(own[key], saved[key], f"{name} {key}")
    else:
        fine = type(saved) is type(own) and saved == own
    require(fine, name, saved)


def _number(value: Any) -> float | None:
    """As a float, also that of a tensor such as a learning rate; None for what is none."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and value.is_floating_point() else None
    return float(value) if is_number(value) else None


def _check_range(optimizer: torch.optim.Optimizer, own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Numbers that somebody else than this run's optimizer holds are those that torch would take."""
    kind = type(optimizer)
    if _is_torchs(kind) and identity.hyperparameters([own]) != identity.hyperparameters([saved]):
        known = inspect.signature(kind).parameters
        numbers = {name: saved[name] for name in optimizer.defaults if name in known}
        try:
            kind([torch.zeros(1, device="cpu", dtype=torch.float32)], **numbers)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"of its optimizer {kind.__name__} says: {error}") from None


def _check_entries(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Any]], alike: bool) -> None:
    """The tensors of each parameter; ``alike``: a kernel runs all parameters by one number of steps."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    require(all(i < len(parameters) for i in state), "the last parameter with a state", max(state, default=0))
    expected = _expected(optimizer)
    for i, (always, after) in enumerate(expected or []):
        entry = state.get(i, {})
        for name, like in (after if entry else always).items():
            what = f"the optimizer's {name} of parameter {i}"
            require(name in entry, what, "missing")
            if entry[name] is not None or not isinstance(optimizer, torch.optim.SGD):
                _check_entry(like, entry[name], what, name == "step")
    for i, entry in state.items():
        for name, value in entry.items():
            nan = isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any())
            require(not nan, f"the optimizer's {name} of parameter {i}", "not a number")
    if alike:
        entries = [state.get(i, {}) for i in range(len(parameters))]
        kinds = {tuple(sorted(n for n, v in entry.items() if v is not None)) for entry in entries}
        steps = {_number(entry["step"]) for entry in entries if "step" in entry}
        require(
            len(kinds) <= 1 and len(steps) <= 1,
            "the optimizer's state",
            "another from parameter to parameter",
        )


def _check_entry(like: Any, saved: Any, name: str, counts: bool) -> None:
    if counts:
        steps = _number(saved) if isinstance(saved, Tensor) == isinstance(like, Tensor) else None
        fine = steps is not None and 0 <= steps <= _MOST_STEPS
        require(fine and getattr(saved, "shape", ()) == getattr(like, "shape", ()), name, saved)
    elif isinstance(like, Tensor):
        fine = isinstance(saved, Tensor) and (saved.shape, saved.dtype) == (like.shape, like.dtype)
        require(fine, name, _kind(saved))
    else:
        _require_alike(like, saved, name)


def _kind(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else identity.short(value)


def _expected(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], dict[str, Any]]] | None:
    """Each parameter's state as torch's optimizer begins with it, and after a step; without memory.

    None for optimizers that are not torch's, or do not step by themselves.
    """
    kind: Any = type(optimizer)
    if not _is_torchs(kind):
        return None
    groups, parameters = [], []
    for group in optimizer.param_groups:
        mine = [torch.empty_like(p, device="meta", requires_grad=True) for p in group["params"]]
        plain = {name: False for name in _WAYS if name in group}
        groups.append({**{n: v for n, v in group.items() if n != "param_names"}, **plain, "params": mine})
        parameters += mine
    try:
        twin = kind(groups)
        before = [dict(twin.state.get(p, {})) for p in parameters]
        for p in parameters:
            p.grad = torch.empty_like(p)
        twin.step()
    except Exception:
        return None
    return list(zip(before, (twin.state.get(p, {}) for p in parameters)))


def _is_torchs(kind: type) -> bool:
    return kind.__module__.startswith("torch.optim.")


def _check_loop(saved: Saved, run: Run, loop: Loop) -> None:
    own, there = loop.state(), saved.state["loop"]
    require({*own} == {*there}, "loop", there)
    done = there["done"]
    fine = is_count(done) and done == saved.position.step and (done == 0 or isinstance(loop, StepLoop))
    require(fine, "loop.done", done)
    _check_generator(there["order"], run.device, "loop.order")
    executor = there["executor"]
    require(isinstance(executor, dict) and {*executor} == {*own["executor"]}, "loop.executor", executor)
    sums, like = executor["sums"], own["executor"]["sums"]
    fine = isinstance(sums, Tensor) and (sums.shape, sums.dtype) == (like.shape, like.dtype)
    require(fine and bool(sums.isfinite().all()), "loop.executor.sums", sums)
    require(0 <= sums[1] <= run.examples, "the number of right answers", sums[1])
    if "scaler" in executor:
        _check_scaler(own["executor"]["scaler"], executor["scaler"])


def _check_scaler(own: dict[str, Any], saved: Any) -> None:
    require(isinstance(saved, dict) and {*saved} == {*own}, "loop.executor.scaler", saved)
    for name, value in own.items():
        fine = saved[name] == value and type(saved[name]) is type(value)
        if name == "scale":
            fine = isinstance(saved[name], float) and 0 < saved[name] <= _LARGEST_SCALE
        elif name == "_growth_tracker":
            fine = is_count(saved[name]) and saved[name] < own["growth_interval"]
        require(fine, f"loop.executor.scaler.{name}", saved[name])


def _check_generator(state: Any, device: torch.device, name: str) -> None:
    require(isinstance(state, Tensor), name, state)
    try:
        torch.Generator(device).set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"of its {name} torch says: {error}") from None
