"""A run's whole state in one file: wherever it stops, it can go on to the bits of an unbroken run."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from fastmlp import files
from fastmlp.engine import Loop
from fastmlp.engine.step_loop import StepLoop
from fastmlp.training import checkpoint, identity, run_state
from fastmlp.training.errors import Interrupted, Signals, TrainingError
from fastmlp.training.history import History
from fastmlp.training.identity import Run
from fastmlp.training.resume import Live, not_finite, random_state, resume
from fastmlp.training.run_state import Position

#: What may be changed, if it is named, besides the optimizer's numbers.
_CHANGEABLE = ("schedule", "batch_size", "clip_norm", "patience")


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written; training goes on."""


class Checkpointer:
    """Saves a run's state in a file as it goes, and resumes it from there.

    While its `signals` are entered, a first Ctrl-C or SIGTERM stops the run at the next step, or after the
    epoch where one runs as a whole: its state is saved, and `Interrupted` raised.

    Args:
        path: of the file.
        every: save after so many epochs, and after the last one; 0 for never.
        every_steps: and after so many steps; 0 for never.
        resume: go on from the file, if there is one.
        changed: names of `identity.hyperparameters` and `_CHANGEABLE` that may differ now.

    Raises:
        OSError: the file's directory cannot be written.
        ValueError: the file is not a checkpoint.
    """

    def __init__(
        self, path: Path, every: int, every_steps: int, resume: bool, changed: Collection[str]
    ) -> None:
        self.path, self.every, self.every_steps = path, every, every_steps
        self.changed = {changed} if isinstance(changed, str) else set(changed)
        self.signals = Signals()
        self._seconds = 0.0  # of the resumed epoch, before it was interrupted
        self._saved: Position | None = None  # what the file holds of this run
        files.prepare(path)
        self._found = run_state.read(path) if resume and path.is_file() else None
        if resume and self._found is None:
            warnings.warn(f"{path}: no checkpoint to go on from; this run starts anew", stacklevel=4)

    def engine(self, asked: str) -> str:
        """``asked``, or for "auto" the engine of the checkpoint's run."""
        if asked != "auto" or self._found is None:
            return asked
        engine = self._found.run["engine"]
        return "fused" if engine == "cpu" else engine

    def start(self, run: Run, loop: Loop, factors: Tensor, history: History) -> None:
        """Note what runs, and go on from the checkpoint if one was read.

        Raises:
            ValueError: it is another run's, with what differs; nothing is written then.
        """
        if self.every_steps and not isinstance(loop, StepLoop):
            raise ValueError(f"every_steps: engine {loop.name!r} runs whole epochs, expected 0")
        self._live = Live(run, identity.describe(run, loop.name), loop, factors, history)
        known = {*identity.hyperparameters(run.optimizer.param_groups), *_CHANGEABLE}
        if self.changed - known:
            raise ValueError(
                f"changed: expected names of {sorted(known)}, got {sorted(self.changed - known)}"
            )
        if self._found is not None:
            resume(self._live, self._found, self.path, self.changed)
            self._saved, self._seconds = self._found.position, self._found.seconds[1]
            self._found = None

    def spent(self) -> float:
        """Seconds that the epoch which now begins took before it was interrupted."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def after_step(self, seconds: float) -> None:
        """Save if that is due, ``seconds`` into the epoch."""
        done = self._live.position
        if not done.step:  # an epoch that ran as a whole: `after_epoch` comes next
            return
        if self.signals.received is not None:
            self._stop(seconds)
        if self.every_steps and (done.epoch * done.steps + done.step) % self.every_steps == 0:
            self._try(seconds)

    def after_epoch(self, last: bool) -> None:
        """Save if that is due; ``last``: no epoch follows."""
        if self.signals.received is not None:
            self._stop(0.0)
        if self.every and (self._live.position.epoch % self.every == 0 or last):
            self._try(0.0)

    def saved(self) -> str:
        """What there is to go on from."""
        if self._saved is None:
            return "no checkpoint was saved before"
        return f"the last good checkpoint, {self.path}, is of {self._saved}"

    def save(self, seconds: float = 0.0) -> None:
        """Save the run's state, ``seconds`` into an epoch.

        Raises:
            OSError: the file cannot be written; what was there remains.
            TrainingError: a parameter is not finite; what was there remains.
            TypeError: the state holds something that a checkpoint cannot.
        """
        run, described, loop, _, history = self._live
        done = self._live.position
        bad = not_finite(run, dict(run.model.named_parameters()))
        if bad is not None:
            raise TrainingError(f"{bad} is not finite at {done}; a smaller lr may help; {self.saved()}")
        tensors: dict[str, Tensor] = {}
        state = {
            "net": run.model.state_dict(),
            "loss": run.loss.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "loop": loop.state(),
            "random": random_state(run.device),
        }
        content = {
            "format": run_state.FORMAT,
            "metadata": done._asdict(),
            "made by": identity.environment(run.device),
            "run": described,
            "factors": self._live.done_factors(done),
            "epochs": [asdict(epoch) for epoch in history.epochs],
            "seconds": [history.seconds, seconds],
            "state": checkpoint.flatten(state, "", tensors),
        }
        checkpoint.write(self.path, tensors, content)
        self._saved = done

    def _try(self, seconds: float) -> None:
        try:
            self.save(seconds)
        except OSError as error:
            warnings.warn(
                f"checkpoint {self.path} of {self._live.position}: {error.strerror or error}; "
                f"training goes on; {self.saved()}",
                CheckpointWarning,
                stacklevel=4,
            )

    def _stop(self, seconds: float) -> NoReturn:
        assert self.signals.received is not None
        try:
            self.save(seconds)
        except OSError as error:
            outcome = f"it could not be saved: {error.strerror or error}; {self.saved()}"
        else:
            outcome = f"saved to {self.path}"
        raise Interrupted(f"interrupted after {self._live.position}; {outcome}", self.signals.received)
