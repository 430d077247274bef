"""A run as its checkpoint holds it, checked before any of it is used: it may come from anybody."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastmlp.training import checkpoint
from fastmlp.training.checkpoint import is_named, require
from fastmlp.training.history import Epoch, epochs_of, is_number
from fastmlp.training.identity import short

FORMAT = 1
#: Engines that a run can have had, as `identity.describe` names them.
_ENGINES = ("cpu", "eager", "fused", "graph", "persistent")
_KINDS = {
    **dict.fromkeys(("metadata", "made by", "run", "state"), dict),
    **dict.fromkeys(("epochs", "seconds"), list),
    "factors": str,
}
_STATE = ("net", "loss", "optimizer", "loop", "random")
_MOST = 2**53  # the largest count


class Position(NamedTuple):
    """How far a run has got."""

    epoch: int  # how many are done
    step: int  # done in the one after
    epochs: int  # of the whole run
    steps: int  # an epoch
    stopped: bool = False  # early, as it no longer improved

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.stopped or self.epoch == self.epochs

    def __str__(self) -> str:
        if self.step:
            return f"epoch {self.epoch + 1}, step {self.step} of {self.steps}"
        return f"the end of epoch {self.epoch}"


class Saved(NamedTuple):
    """A run as it was left."""

    position: Position
    run: dict[str, Any]  # as `identity.describe` gives it
    environment: dict[str, Any]  # as `identity.environment` does
    factors: str  # their digest
    epochs: list[Epoch]
    seconds: tuple[float, float]  # of all of it, and of the epoch that is not done
    state: dict[str, dict[str, Any]]  # of `_STATE`


def position(path: Path | str) -> Position:
    """How far the run has got whose checkpoint is ``path``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not the checkpoint of a run, or damaged.
    """
    return read(path).position


def read(path: Path | str) -> Saved:
    """What `Checkpointer.save` wrote; raises as `position`."""
    tensors, content = checkpoint.read(path)
    if "run" not in content:
        raise ValueError(f"{path}: expected a training checkpoint, found a net alone")
    if content.get("format") != FORMAT:
        found = short(content.get("format"))
        raise ValueError(f"{path}: expected format {FORMAT} of a training checkpoint, got {found}")
    with checkpoint.of_a_run(path):
        return _parsed(content, tensors)


def _parsed(content: dict[str, Any], tensors: dict[str, Tensor]) -> Saved:
    for name, kind in _KINDS.items():
        require(isinstance(content.get(name), kind), name, content.get(name))
    position = _position(content["metadata"])
    engine = content["run"].get("engine")
    require(engine in _ENGINES, "the run's engine", engine)
    seconds = content["seconds"]
    fine = len(seconds) == 2 and all(is_number(one) and 0 <= one < math.inf for one in seconds)
    require(fine, "seconds", seconds)
    return Saved(
        position,
        run=content["run"],
        environment=content["made by"],
        factors=content["factors"],
        epochs=_epochs(content["epochs"], position.epoch),
        seconds=tuple(seconds),
        state=_state(content["state"], tensors),
    )


def _position(found: dict[str, Any]) -> Position:
    required = {*Position._fields} - {*Position._field_defaults}
    require(required <= {*found} <= {*Position._fields}, "metadata", found)
    position = Position(**found)
    fine = all(map(is_count, position[:4])) and isinstance(position.stopped, bool)
    require(fine, "metadata", found)
    within = position.step <= position.steps  # all of them, where the epoch's results are still to come
    require(within and position.epoch + bool(position.step) <= position.epochs, "metadata", found)
    return position


def _epochs(found: list[Any], count: int) -> list[Epoch]:
    epochs = epochs_of(found)
    for number, epoch in enumerate(epochs, 1):
        numbers = epoch.train_loss, epoch.seconds, epoch.examples_per_second
        shares = [share for share in (epoch.train_accuracy, epoch.test_accuracy) if share is not None]
        fine = epoch.number == number and all(map(math.isfinite, numbers)) and min(numbers[1:]) >= 0
        require(fine and all(0 <= share <= 1 for share in shares), f"epoch {number}", epoch)
    require(len(epochs) == count, "the number of epochs", len(epochs))
    return epochs


def _state(tree: Any, tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    state = checkpoint.unflatten(tree, tensors)
    require(isinstance(state, dict) and {*state} == {*_STATE}, "state", tree)
    for name in _STATE:
        require(is_named(state[name]), name, state[name])
    optimizer = state["optimizer"]
    fine = {*optimizer} == {"state", "param_groups"} and isinstance(optimizer["state"], dict)
    require(fine and isinstance(optimizer["param_groups"], list), "optimizer", optimizer)
    for group in optimizer["param_groups"]:
        require(is_named(group) and isinstance(group.get("params"), list), "a group of the optimizer", group)
    for i, entry in optimizer["state"].items():
        require(is_count(i) and is_named(entry), f"the optimizer's state of parameter {short(i)}", entry)
    return state


def is_count(value: object) -> bool:
    """Whether it is an int that can count something."""
    return type(value) is int and 0 <= value <= _MOST
