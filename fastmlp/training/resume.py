"""Going on from a checkpoint: is it of this very run, and can all of its state be restored?

Both are checked before anything is written.
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmlp.engine import Loop
from fastmlp.engine.step_loop import StepLoop
from fastmlp.training import checkpoint, identity
from fastmlp.training.checkpoint import require
from fastmlp.training.history import History, is_number
from fastmlp.training.identity import Run
from fastmlp.training.run_state import Position, Saved, is_count

_MOST_STEPS = 2**40  # of Adam
_LARGEST_SCALE = torch.finfo(torch.float32).max
#: Options of how an optimizer computes, not what; parameters without memory allow none of them.
_WAYS = ("foreach", "fused", "capturable")


class Live(NamedTuple):
    """A run in progress."""

    run: Run
    described: dict[str, Any]  # by `identity.describe`
    loop: Loop
    factors: Tensor  # of all steps' learning rates
    history: History

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.run.examples // self.run.batch)

    @property
    def position(self) -> Position:
        """How far it has got."""
        epochs, stopped = len(self.factors) // self.steps, self.history.stopped != ""
        return Position(len(self.history.epochs), self.loop.done, epochs, self.steps, stopped)

    def done_factors(self, done: Position) -> str:
        """The digest of the factors of the steps before ``done``."""
        return identity.digest(self.factors[: done.epoch * self.steps + done.step])


def resume(live: Live, saved: Saved, path: Path, changed: Collection[str]) -> None:
    """Restore to ``live`` what ``path`` has ``saved``; what is named in ``changed`` may differ now.

    Raises:
        ValueError: it is another run's, or no state of this one, with what differs; nothing is written then.
    """
    run, state = live.run, saved.state
    checkpoint.check(run.model, state["net"], str(path))
    with checkpoint.of_a_run(path):
        problems = _problems(live, saved, changed)
    if problems:
        raise ValueError(f"{path}: the checkpoint of another run: {'; '.join(problems)}")
    checkpoint.check(run.loss, state["loss"], f"{path}: loss")
    with checkpoint.of_a_run(path):
        _check(saved, run, live.loop, changed)
        other = identity.differences(saved.environment, identity.environment(run.device))
    if other:
        warnings.warn(f"{path}: the bits may be others now: {'; '.join(other)}", stacklevel=5)
    with checkpoint.of_a_run(path):
        _load_optimizer(run.optimizer, state["optimizer"], changed)  # if not torch's it may still refuse
    checkpoint.put(run.model, state["net"])
    checkpoint.put(run.loss, state["loss"])
    live.loop.load_state(state["loop"])
    live.history.epochs[:] = saved.epochs
    live.history.seconds = sum(saved.seconds)
    set_random_state(state["random"], run.device)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's own generators that a run on ``device`` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on from what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def not_finite(run: Run, state: dict[str, Any]) -> str | None:
    """The name of a trained parameter with a NaN or an infinity in ``state``, the model's."""
    trained = {id(p) for group in run.optimizer.param_groups for p in group["params"]}
    named = [(name, state[name]) for name, p in run.model.named_parameters() if id(p) in trained]
    if not named:
        return None
    finite = torch.stack([torch.isfinite(p.detach()).all() for _, p in named]).tolist()
    return next((name for (name, _), fine in zip(named, finite) if not fine), None)


def _problems(live: Live, saved: Saved, changed: Collection[str]) -> list[str]:
    """How the checkpoint's run differs from this one."""
    there, before, here = saved.position, saved.run, live.position
    own = identity.hyperparameters(live.run.optimizer.param_groups)
    groups = saved.state["optimizer"]["param_groups"]
    # A rate may have been set while it ran: the optimizer may be as that run began, or as it was saved.
    if json.dumps(own) == json.dumps(identity.hyperparameters(groups)):
        before = before | own
    problems = identity.differences(before, live.described, changed)
    if there.epoch + bool(there.step) > here.epochs:
        problems.append(f"epochs: it is of {there}, and all are {here.epochs}")
    elif there.step and before.get("batch_size") != live.described["batch_size"]:
        problems.append(f"batch_size: it is of {there}, and within an epoch it cannot change")
    elif not problems and "batch_size" not in changed:
        if there.steps != here.steps:
            problems.append(f"steps: they were {there.steps} an epoch and are {here.steps}")
        elif "schedule" not in changed and saved.factors != live.done_factors(there):
            problems.append("schedule: the learning rates of the steps that are done were others")
    return problems


def _load_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[str, Any], changed: Collection[str]
) -> None:
    chosen = [{name: group[name] for name in {*changed} & {*group}} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, chosen):
        group.update(own)
    # torch casts a state to its parameter's dtype, also where the optimizer keeps another.
    parameters = _parameters(optimizer)
    for i, saved in state["state"].items():
        mine = optimizer.state[parameters[i]]
        for name, value in saved.items():
            if isinstance(value, Tensor) and mine[name].dtype != value.dtype:
                mine[name] = value.to(mine[name].device)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _check(saved: Saved, run: Run, loop: Loop, changed: Collection[str]) -> None:
    """Check that ``saved``'s optimizer, loop and generators are of this run, and its parameters finite."""
    state = saved.state
    bad = not_finite(run, state["net"])
    require(bad is None, f"the parameter {bad}", "not finite")
    _check_groups(run.optimizer, state["optimizer"]["param_groups"], changed)
    _check_entries(run.optimizer, state["optimizer"]["state"], loop.name not in ("eager", "cpu"))
    _check_loop(saved, run, loop)
    _require_alike(random_state(run.device), state["random"], "random")
    for kind, generator in state["random"].items():
        _check_generator(generator, run.device if kind == "cuda" else torch.device(kind), f"random.{kind}")


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


def _check_range(optimizer: torch.optim.Optimizer, own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Check that torch would take the optimizer's numbers, if they are not this run's."""
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
    count = len(_parameters(optimizer))
    require(all(i < count for i in state), "the last parameter with a state", max(state, default=0))
    for i, (always, after) in enumerate(_templates(optimizer)):
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
        entries = [state.get(i, {}) for i in range(count)]
        kinds = {tuple(sorted(n for n, v in entry.items() if v is not None)) for entry in entries}
        steps = {_number(entry["step"]) for entry in entries if "step" in entry}
        same = len(kinds) <= 1 and len(steps) <= 1
        require(same, "the optimizer's state", "another from parameter to parameter")


def _check_entry(like: Any, saved: Any, name: str, counts: bool) -> None:
    if counts:
        steps = _number(saved) if isinstance(saved, Tensor) == isinstance(like, Tensor) else None
        fine = steps is not None and 0 <= steps <= _MOST_STEPS
        require(fine and getattr(saved, "shape", ()) == getattr(like, "shape", ()), name, saved)
    elif isinstance(like, Tensor):
        require(_is_like(like, saved), name, _kind(saved))
    else:
        _require_alike(like, saved, name)


def _templates(optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each parameter's state as torch's optimizer begins with it, and after a step; without memory.

    Empty for optimizers that are not torch's, or that cannot step by themselves.
    """
    kind: Any = type(optimizer)
    if not _is_torchs(kind):
        return []
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
        return []
    return list(zip(before, (twin.state.get(p, {}) for p in parameters)))


def _is_torchs(kind: type) -> bool:
    return kind.__module__.startswith("torch.optim.")


def _check_loop(saved: Saved, run: Run, loop: Loop) -> None:
    own, there = loop.state(), saved.state["loop"]
    _require_alike(own, there, "loop")
    done, executor = there["done"], there["executor"]
    fine = is_count(done) and done == saved.position.step and (done == 0 or isinstance(loop, StepLoop))
    require(fine, "loop.done", done)
    _check_generator(there["order"], run.device, "loop.order")
    sums = executor["sums"]
    require(bool(sums.isfinite().all()), "loop.executor.sums", sums)
    require(0 <= sums[1] <= run.examples, "the number of right answers", sums[1])
    for name, value in own["executor"].get("scaler", {}).items():
        _check_scaler(name, value, executor["scaler"])


def _check_scaler(name: str, own: Any, scaler: dict[str, Any]) -> None:
    saved = scaler[name]
    if name == "scale":
        fine = isinstance(saved, float) and 0 < saved <= _LARGEST_SCALE
    elif name == "_growth_tracker":
        fine = is_count(saved) and saved < scaler["growth_interval"]
    else:
        fine = saved == own and type(saved) is type(own)
    require(fine, f"loop.executor.scaler.{name}", saved)


def _check_generator(state: Tensor, device: torch.device, name: str) -> None:
    try:
        torch.Generator(device).set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"of its {name} torch says: {error}") from None


def _require_alike(own: Any, saved: Any, name: str) -> None:
    """Require a finite number in place of a number, and all else to be as it is here."""
    number = _number(own)
    if number is not None:
        found = _number(saved)
        fine = found is not None and (math.isfinite(found) or not math.isfinite(number))
    elif isinstance(own, Tensor):
        fine = _is_like(own, saved)
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
    """``value`` as a float, also if it is a tensor such as a learning rate; None if it is not a number."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and value.is_floating_point() else None
    return float(value) if is_number(value) else None


def _is_like(own: Tensor, saved: Any) -> bool:
    return isinstance(saved, Tensor) and (saved.shape, saved.dtype) == (own.shape, own.dtype)


def _kind(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else identity.short(value)
