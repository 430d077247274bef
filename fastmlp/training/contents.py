"""What stands in a run's checkpoint, checked before any of it is used: it may be anybody's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from fastmlp.training.history import Epoch, epochs_of, is_number
from fastmlp.training.identity import short
from fastmlp.training.tree import unflatten

#: Engines that a run can have had, as `identity.describe` names them.
_ENGINES = ("cpu", "eager", "fused", "graph", "persistent")
_KINDS = {
    **dict.fromkeys(("metadata", "made by", "run", "state"), dict),
    **dict.fromkeys(("epochs", "seconds"), list),
    "factors": str,
}
_STATE = ("net", "loss", "optimizer", "loop", "random")
_MOST = 2**53  # that is counted


class Position(NamedTuple):
    """How far a run is."""

    epoch: int  # how many are done
    step: int  # done in the one after
    epochs: int  # of the whole run
    steps: int  # an epoch
    stopped: bool = False  # early, as it got no better

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


def parse(content: dict[str, Any], tensors: dict[str, Tensor]) -> Saved:
    """What `Keeper.save` wrote.

    Raises:
        ValueError: it is something else; the message goes on from "expected ..., but".
    """
    for name, kind in _KINDS.items():
        require(isinstance(content.get(name), kind), name, content.get(name))
    position = _position(content["metadata"])
    engine = content["run"].get("engine")
    require(engine in _ENGINES, "the run's engine", engine)
    epochs = epochs_of(content["epochs"])
    for number, epoch in enumerate(epochs, 1):
        numbers = epoch.train_loss, epoch.seconds, epoch.examples_per_second
        shares = [share for share in (epoch.train_accuracy, epoch.test_accuracy) if share is not None]
        fine = epoch.number == number and all(map(math.isfinite, numbers)) and min(numbers[1:]) >= 0
        require(fine and all(0 <= share <= 1 for share in shares), f"epoch {number}", epoch)
    require(len(epochs) == position.epoch, "the number of epochs", len(epochs))
    seconds = content["seconds"]
    fine = len(seconds) == 2 and all(is_number(one) and 0 <= one < math.inf for one in seconds)
    require(fine, "seconds", seconds)
    run, environment, factors = content["run"], content["made by"], content["factors"]
    state = state_of(content["state"], tensors)
    return Saved(position, run, environment, factors, epochs, tuple(seconds), state)


@contextmanager
def expected(path: Path | str) -> Iterator[None]:
    """Say of ``path`` what `parse` and others find wrong."""
    try:
        yield
    except ValueError as error:
        problem = str(error)
    except RecursionError:
        problem = "it is nested too deeply"
    else:
        return
    raise ValueError(f"{path}: expected a training checkpoint as fit writes it, but {problem}")


def require(fine: bool, name: str, value: object) -> None:
    """Refuse ``value`` unless it is fine."""
    if not fine:
        raise ValueError(f"{name} is {short(value)}")


def is_count(value: object) -> bool:
    """Whether it is an int that something can be as often."""
    return type(value) is int and 0 <= value <= _MOST


def _position(found: dict[str, Any]) -> Position:
    required = {*Position._fields} - {*Position._field_defaults}
    require(required <= {*found} <= {*Position._fields}, "metadata", found)
    position = Position(**found)
    fine = all(map(is_count, position[:4])) and isinstance(position.stopped, bool)
    require(fine, "metadata", found)
    within = position.step <= position.steps  # all of them, where the epoch's results are still to come
    require(within and position.epoch + bool(position.step) <= position.epochs, "metadata", found)
    return position


def state_of(tree: Any, tensors: dict[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The state of `parse`, also where nothing else of it is.

    Raises:
        ValueError: as `parse`.
    """
    state = unflatten(tree, tensors)
    require(isinstance(state, dict) and {*state} == {*_STATE}, "state", tree)
    for name in _STATE:
        require(_is_named(state[name]), name, state[name])
    optimizer = state["optimizer"]
    fine = {*optimizer} == {"state", "param_groups"} and isinstance(optimizer["state"], dict)
    require(fine and isinstance(optimizer["param_groups"], list), "optimizer", optimizer)
    for group in optimizer["param_groups"]:
        require(_is_named(group) and isinstance(group.get("params"), list), "a group of the optimizer", group)
    for i, entry in optimizer["state"].items():
        require(is_count(i) and _is_named(entry), f"the optimizer's state of parameter {short(i)}", entry)
    return state


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value)
