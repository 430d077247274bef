"""A run's whole state in one file: a run that ends anywhere goes on to the bits of one that did not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastmlp import files
from fastmlp.engine import Loop
from fastmlp.engine.step_loop import StepLoop
from fastmlp.training import checkpoint, contents, identity, restorable
from fastmlp.training.contents import Position, Saved
from fastmlp.training.history import History, TrainingError
from fastmlp.training.identity import Run
from fastmlp.training.interrupt import Interrupted, Signals
from fastmlp.training.tree import flatten

_FORMAT = 1
#: What may be another besides the optimizer's numbers, if it is named.
_CHANGEABLE = ("schedule", "batch_size", "clip_norm", "patience")


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written; training goes on."""


def position(path: Path | str) -> Position:
    """How far the run is whose checkpoint ``path`` is.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is no checkpoint of a run, or damaged.
    """
    return _read(Path(path)).position


class Keeper:
    """Saves a run's state in a file as it goes, and takes it up from there.

    While it is entered, a first Ctrl-C or SIGTERM stops the run at the next step, or after the epoch where
    one runs as a whole: its state is saved, and `Interrupted` raised.

    Args:
        path: of the file.
        every: so many epochs, and after the last one; 0 for none.
        every_steps: and so many steps; 0 for none.
        resume: go on from the file, if there is one.
        changed: names of `identity.hyperparameters` and `_CHANGEABLE`: what may be another now.

    Raises:
        OSError: the file's directory cannot be written.
        ValueError: numbers or names that make no sense; a file that is no checkpoint.
    """

    def __init__(
        self, path: Path, every: int, every_steps: int, resume: bool, changed: Collection[str]
    ) -> None:
        for name, value in (("every", every), ("every_steps", every_steps)):
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        self.path, self.every, self.every_steps = path, every, every_steps
        self.changed = {changed} if isinstance(changed, str) else set(changed)
        self._seconds = 0.0  # of the epoch that is resumed, before that
        self.signals = Signals()
        self._saved: Position | None = None  # what the file holds of this run
        files.prepare(path)
        self._found = _read(path) if resume and path.is_file() else None
        if resume and self._found is None:
            warnings.warn(f"{path}: no checkpoint to go on from; this run starts anew", stacklevel=3)

    def engine(self, asked: str) -> str:
        """``asked``, or instead of "auto" the engine that the checkpoint's run had."""
        if asked != "auto" or self._found is None:
            return asked
        engine = self._found.run["engine"]
        return "fused" if engine == "cpu" else engine

    def start(self, run: Run, loop: Loop, factors: Tensor, history: History) -> None:
        """Say what runs, and go on from the checkpoint if it is to be.

        Raises:
            ValueError: it is another run's, with what differs; nothing is written then.
        """
        self._run, self._loop, self._factors, self._history = run, loop, factors, history
        self._steps = -(-run.examples // run.batch)
        if self.every_steps and not isinstance(loop, StepLoop):
            raise ValueError(f"every_steps: engine {loop.name!r} runs whole epochs, expected 0")
        self._described = identity.describe(run, loop.name)
        known = {*identity.hyperparameters(run.optimizer.param_groups), *_CHANGEABLE}
        if self.changed - known:
            raise ValueError(
                f"changed: expected names of {sorted(known)}, got {sorted(self.changed - known)}"
            )
        if self._found is not None:
            self._resume(self._found)
            self._found = None

    def __enter__(self) -> Keeper:
        self.signals.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.signals.__exit__(kind, error, trace)

    def spent(self) -> float:
        """Seconds that the epoch which now begins had before it was left."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def after_step(self, seconds: float) -> None:
        """Save where that is due, ``seconds`` into the epoch."""
        if not self._loop.done:  # an epoch that ran as a whole: `after_epoch` comes next
            return
        if self.signals.received is not None:
            self._stop(seconds)
        done = self._position()
        if self.every_steps and (done.epoch * self._steps + done.step) % self.every_steps == 0:
            self._try(seconds)

    def after_epoch(self, last: bool) -> None:
        """Save where that is due; ``last``: none comes after it."""
        done = self._position()
        if self.signals.received is not None:
            self._stop(0.0)
        if self.every and (done.epoch % self.every == 0 or last):
            self._try(0.0)

    def left(self) -> str:
        """What there is to go on from."""
        if self._saved is None:
            return "no checkpoint was saved before"
        return f"the last good checkpoint, {self.path}, is of {self._saved}"

    def save(self, seconds: float = 0.0) -> None:
        """Save the run's state, ``seconds`` into an epoch.

        Raises:
            OSError: the file cannot be written; what was there is there still.
            TrainingError: a parameter is not finite; what was there is there still.
            TypeError: the state holds something that a checkpoint cannot.
        """
        run, done = self._run, self._position()
        bad = restorable.not_finite(run, dict(run.model.named_parameters()))
        if bad is not None:
            raise TrainingError(f"{bad} is not finite at {done}; a smaller lr may help; {self.left()}")
        tensors: dict[str, Tensor] = {}
        state = {
            "net": run.model.state_dict(),
            "loss": run.loss.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "loop": self._loop.state(),
            "random": _random_state(run.device),
        }
        content = {
            "format": _FORMAT,
            "metadata": done._asdict(),
            "made by": identity.environment(run.device),
            "run": self._described,
            "factors": identity.factors_digest(self._done_factors(done)),
            "epochs": [asdict(epoch) for epoch in self._history.epochs],
            "seconds": [self._history.seconds, seconds],
            "state": flatten(state, "", tensors),
        }
        checkpoint.write(self.path, tensors, content)
        self._saved = done

    def _position(self) -> Position:
        epochs = len(self._factors) // self._steps
        stopped = self._history.stopped != ""
        return Position(len(self._history.epochs), self._loop.done, epochs, self._steps, stopped)

    def _done_factors(self, done: Position) -> Tensor:
        return self._factors[: done.epoch * self._steps + done.step]

    def _try(self, seconds: float) -> None:
        try:
            self.save(seconds)
        except OSError as error:
            warnings.warn(
                f"checkpoint {self.path} of {self._position()}: {error.strerror or error}; training goes on; "
                f"{self.left()}",
                CheckpointWarning,
                stacklevel=4,
            )

    def _stop(self, seconds: float) -> NoReturn:
        assert self.signals.received is not None
        try:
            self.save(seconds)
        except OSError as error:
            outcome = f"it could not be saved: {error.strerror or error}; {self.left()}"
        else:
            outcome = f"saved to {self.path}"
        raise Interrupted(f"interrupted after {self._position()}; {outcome}", self.signals.received)

    def _resume(self, saved: Saved) -> None:
        run, state = self._run, saved.state
        checkpoint.check(run.model, state["net"], str(self.path))
        with contents.expected(self.path):
            problems = self._problems(saved)
        if problems:
            raise ValueError(f"{self.path}: the checkpoint of another run: {'; '.join(problems)}")
        checkpoint.check(run.loss, state["loss"], f"{self.path}: loss")
        with contents.expected(self.path):
            restorable.check(saved, run, self._loop, self.changed)
            other = identity.differences(saved.environment, identity.environment(run.device))
        if other:
            warnings.warn(f"{self.path}: the bits may be others now: {'; '.join(other)}", stacklevel=4)
        with contents.expected(self.path):
            self._load_optimizer(state["optimizer"])  # one that is not torch's may still refuse it
        checkpoint.put(run.model, state["net"])
        checkpoint.put(run.loss, state["loss"])
        self._loop.load_state(state["loop"])
        self._history.epochs[:] = saved.epochs
        before, self._seconds = saved.seconds
        self._history.seconds = before + self._seconds
        self._saved = saved.position
        _set_random_state(state["random"], run.device)

    def _problems(self, saved: Saved) -> list[str]:
        """The checkpoint's run against this one."""
        there, before = saved.position, saved.run
        own = identity.hyperparameters(self._run.optimizer.param_groups)
        groups = saved.state["optimizer"]["param_groups"]
        # Somebody may have set a rate while it ran: the optimizer may be as that run began, or as it was.
        if json.dumps(own) == json.dumps(identity.hyperparameters(groups)):
            before = before | own
        problems = identity.differences(before, self._described, self.changed)
        here = self._position()
        if there.epoch + bool(there.step) > here.epochs:
            problems.append(f"epochs: it is of {there}, and all are {here.epochs}")
        elif there.step and before.get("batch_size") != self._described["batch_size"]:
            problems.append(f"batch_size: it is of {there}, and within an epoch it cannot change")
        elif not problems and "batch_size" not in self.changed:
            done = self._done_factors(there)
            if there.steps != here.steps:
                problems.append(f"steps: they were {there.steps} an epoch and are {here.steps}")
            elif "schedule" not in self.changed and saved.factors != identity.factors_digest(done):
                problems.append("schedule: the learning rates of the steps that are done were others")
        return problems

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        optimizer = self._run.optimizer
        chosen = [{name: group[name] for name in self.changed & {*group}} for group in optimizer.param_groups]
        optimizer.load_state_dict(state)
        for group, own in zip(optimizer.param_groups, chosen):
            group.update(own)
        # torch casts a state to its parameter's dtype, also where the optimizer keeps another.
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for i, saved in state["state"].items():
            mine = optimizer.state[parameters[i]]
            for name, value in saved.items():
                if isinstance(value, Tensor) and mine[name].dtype != value.dtype:
                    mine[name] = value.to(mine[name].device)


def _read(path: Path) -> Saved:
    tensors, content = checkpoint.read(path)
    if "run" not in content:
        raise ValueError(f"{path}: expected a training checkpoint, found a net alone")
    if content.get("format") != _FORMAT:
        found = identity.short(content.get("format"))
        raise ValueError(f"{path}: expected format {_FORMAT} of a training checkpoint, got {found}")
    with contents.expected(path):
        return contents.parse(content, tensors)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
