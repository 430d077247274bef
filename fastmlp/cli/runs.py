"""The files of runs: what they are called, what a run leaves beside its net, what is at their places already.

A run that was given no name is runs/DATASET-N.safetensors, where N is its alone.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fastmlp.cli import config
from fastmlp.cli.common import errors_of, fail, one_of, warn, writable
from fastmlp.cli.options import Optimizer, Settings
from fastmlp.training import Epoch, History, Position, checkpoint, distributed, position, save, schedules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path("runs")
#: What may differ between a run and what goes on from it: where it is put, how long it takes.
_FREE = ("out", "history", "tensorboard", "epochs", "every")
#: The options that --changed may name; the last two are not of Adam.
_CHANGEABLE = ("lr", "weight-decay", "schedule", "batch-size", "clip", "patience", "momentum", "nesterov")


def beside(out: Path, ending: str) -> Path:
    """The file of the run ``out`` with that ending in the place of its own; .5 of v1.5 is none."""
    name = out.name if re.fullmatch(r"\.\d.*", out.suffix) else out.stem
    return out.parent / f"{name}{ending}"


def vacant(path: Path) -> Path:
    """``path`` if nothing is there, else the first of NAME-2, NAME-3, ... of which that is true."""
    others = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
    return next(found for found in itertools.chain([path], others) if not found.exists())


@contextmanager
def named(settings: Settings, resume: bool, changed: Collection[str]) -> Iterator[Path]:
    """Where this run's net goes if --out does not say it: the same in all processes.

    A new run takes the next number, by an empty file of its options, which is removed if it never begins. One
    that is resumed has its own: the last of the same options that is not done, else the last one.
    """
    out = distributed.first(_find, settings, resume, changed)
    try:
        yield out
    finally:
        claim = beside(out, ".toml")
        with contextlib.suppress(OSError):
            if settings.out is None and distributed.rank() == 0 and claim.stat().st_size == 0:
                claim.unlink()


def _find(settings: Settings, resume: bool, changed: Collection[str]) -> Path:
    if settings.out is not None:
        return settings.out
    name = settings.dataset.value
    earlier = [_path(name, number) for number in sorted(_numbers(name))]
    return (_resumed(settings, earlier, changed) if resume else None) or _claimed(name)


def _path(name: str, number: int) -> Path:
    return FOLDER / f"{name}-{number}.safetensors"


def _numbers(name: str) -> set[int]:
    pattern = re.compile(rf"{re.escape(name)}-(\d+)\..+")
    try:
        found = [pattern.fullmatch(path.name) for path in FOLDER.iterdir()]
    except OSError:  # none yet
        return set()
    return {int(match[1]) for match in found if match}


def _claimed(name: str) -> Path:
    """The next number's, now taken from all others."""
    try:
        FOLDER.mkdir(exist_ok=True)
        for number in itertools.count(max(_numbers(name), default=0) + 1):
            path = _path(name, number)
            with contextlib.suppress(FileExistsError), beside(path, ".toml").open("x"):
                return path
    except OSError as error:
        fail(f"{FOLDER}: {error.strerror or error}; --out FILE puts the run elsewhere")
    raise AssertionError("numbers do not end")


def _resumed(settings: Settings, earlier: list[Path], changed: Collection[str]) -> Path | None:
    """Which of these runs, from the first to the last, is to go on; None where none has a checkpoint."""
    free = {*_FREE, *(name.replace("_", "-").replace("clip-norm", "clip") for name in changed)}
    kept = {path: settings.checkpoint or beside(path, ".ckpt.safetensors") for path in earlier}
    found = [path for path in reversed(earlier) if kept[path].exists()]
    same = [path for path in found if _options(path, free) == _without(settings.plain(), free)] or found
    return next((path for path in same if _is_left(kept[path], settings.epochs)), same[0] if same else None)


def _options(path: Path, free: Collection[str]) -> dict[str, Any] | None:
    """Those that the run recorded."""
    try:
        return _without(tomllib.loads(beside(path, ".toml").read_text()), free)
    except (OSError, ValueError):
        return None


def _without(options: dict[str, Any], free: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in free}


def _is_left(kept: Path, epochs: int) -> bool:
    """Whether a run has epochs to go; one whose checkpoint is damaged is not passed over."""
    try:
        return position(kept).epoch < epochs
    except (OSError, ValueError):
        return True


def fields_of(changed: Collection[str], optimizer: Optimizer) -> list[str]:
    """What --changed names, as options or as `fit` calls them, by the names that `fit` has for it."""
    names = _CHANGEABLE[: -2 if optimizer in (Optimizer.adam, Optimizer.adamw) else None]
    for name in changed:
        option = name.replace("_", "-")
        one_of(names, "clip" if option == "clip-norm" else option, "--changed")
    return ["clip_norm" if name == "clip" else name.replace("-", "_") for name in changed]


def place(path: Path) -> Position | None:
    """How far the run is that ``path`` is a checkpoint of; None where there is none yet."""
    if not os.path.isfile(path):  # nothing is kept in a device or a pipe
        return None
    try:
        with errors_of(f"--checkpoint {path}"):
            return position(path)
    except ValueError as error:
        fail(f"--checkpoint {error}")


def put_aside(path: Path) -> None:
    """Make room for a new run's checkpoint.

    A finished run's is replaced. An unfinished one's is kept under another name, as --resume may have been
    forgotten; and so is anything else that is a file.
    """
    if not os.path.isfile(path):  # a device stays where it is
        return
    try:
        found = position(path)
        if found.finished:
            return
        what = f"{path} is of an unfinished run: {found} of {found.epochs}"
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        what = str(error)
    aside = vacant(path.with_name(f"{path.name}.previous"))
    os.replace(path, aside)
    warn(f"{what}; moved to {aside}")


def is_of(history: Path, kept: Path) -> bool:
    """Whether the run whose checkpoint is ``kept`` goes on from the one that left ``history``.

    Its epochs begin with those, down to the seconds that each of them took.
    """
    try:
        before = json.loads(history.read_text())["epochs"]
        now = checkpoint.read(kept)[1]["epochs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(before) and now[: len(before)] == before


class Record:
    """The files of a run, written by the first process alone, and none before the first step is done.

    ``paths`` has where: "net", "config", "history", and where there are such "checkpoint", "tensorboard".

    Args:
        settings: the run's.
        out: where its net goes.
        overwrite: whether that may replace another.
    """

    def __init__(self, settings: Settings, out: Path, overwrite: bool) -> None:
        self.settings = replace(settings, out=out)
        self._overwrite = overwrite
        self._board: TensorBoard | None = None
        self._begun = distributed.rank() > 0
        self.paths: dict[str, Path] = {
            "net": out,
            "config": beside(out, ".toml"),
            "history": settings.history or beside(out, ".history.json"),
        }
        if distributed.size() == 1:
            self.paths["checkpoint"] = settings.checkpoint or beside(out, ".ckpt.safetensors")
        if settings.tensorboard:
            self.paths["tensorboard"] = settings.tensorboard

    def check(self, resumed: bool) -> None:
        """Say before the training what cannot be written, two that are one file, or what would be lost.

        Args:
            resumed: whether the run goes on from its checkpoint, so that its net may be there already.
        """
        out = self.paths["net"]
        # Of a device, what goes beside the net would land in /dev; a directory is said below.
        if os.path.exists(out) and not (os.path.isfile(out) or os.path.isdir(out)):
            fail(f"--out {out}: no file; expected one, or a name that is free")
        self._check_writable()
        if resumed and is_of(self.paths["history"], self.paths["checkpoint"]):
            self._overwrite = True
        if not self._overwrite:
            self._check_nothing_lost()
        if self.settings.tensorboard:
            check_tensorboard(self.settings.tensorboard)

    def _check_writable(self) -> None:
        options = {"net": "--out", "config": "--out's .toml"}
        seen: dict[Path, str] = {}
        for name, path in self.paths.items():
            option = options.get(name, f"--{name}")
            if path in seen:
                fail(f"{option} {path}: expected another file than {seen[path]}'s", 2)
            seen[path] = option
        for path, option in seen.items():
            if option != "--tensorboard":
                writable(path, option, over_nets=option in ("--out", "--checkpoint"))

    def _check_nothing_lost(self) -> None:
        net, recorded, history = self.paths["net"], self.paths["config"], self.settings.history
        if net.is_file():
            fail(f"--out {net}: it is there already; another name keeps it, --overwrite replaces it")
        if recorded.is_file() and not config.is_record(recorded):
            fail(f"--out {net}: its options go to {recorded}, which holds others; expected another name")
        if history is not None and history.is_file():
            fail(f"--history {history}: it is there already; another name keeps it, --overwrite replaces it")

    def begin(self, epochs: int, steps: int) -> None:
        """Of the first call: write the options, and open the logs.

        Args:
            epochs: that were done before.
            steps: of an epoch.
        """
        if self._begun:
            return
        self._begun = True
        try:
            config.write(self.paths["config"], self.settings)
            if self.settings.tensorboard:
                plain = self.settings.plain()
                self._board = TensorBoard(self.settings.tensorboard, plain, epochs, steps)
        except OSError as error:
            fail(f"{error.filename or self.paths['config']}: {error.strerror or error}")

    def on_epoch(self, epoch: Epoch) -> None:
        """Log it."""
        if self._board is not None:
            self._board.on_epoch(epoch)

    def close(self, net: nn.Module, about: dict[str, Any], history: History) -> Path:
        """Write the net and the history; the net's path is another where one came there meanwhile.

        Raises:
            OSError: they cannot be written.
        """
        if self._board is not None:
            self._board.close()
        out = self.paths["net"]
        if not self._overwrite and out.is_file():
            self.paths["net"] = vacant(out)
            warn(f"{out}: another run has put its net there meanwhile")
        save(net, self.paths["net"], about)
        history.save(self.paths["history"])
        return self.paths["net"]


class TensorBoard:
    """Scalars an epoch, and the run's options as TensorBoard's hparams.

    A run that is resumed goes on where it was; a new one in the same directory takes the old one's place.
    """

    def __init__(self, folder: Path, options: dict[str, Any], epochs: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # What a killed run has logged of the epochs that now come, TensorBoard does not show.
        self._writer = SummaryWriter(str(folder), purge_step=epochs + 1)
        # SummaryWriter.add_hparams would put these into a directory of their own.
        metrics = dict.fromkeys(("loss/train", "loss/test", "accuracy/train", "accuracy/test"))
        for summary in hparams(options, metrics):
            self._writer._get_file_writer().add_summary(summary)
        factors = schedules.factors(options["schedule"], options["epochs"] * steps)
        self._rates = (factors[steps - 1 :: steps] * options["lr"]).tolist()

    def on_epoch(self, epoch: Epoch) -> None:
        """Its scalars; the learning rate is the last step's."""
        scalars = {
            "loss/train": epoch.train_loss,
            "loss/test": epoch.test_loss,
            "accuracy/train": epoch.train_accuracy,
            "accuracy/test": epoch.test_accuracy,
            "lr": self._rates[epoch.number - 1],
            "examples per second": epoch.examples_per_second,
        }
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, epoch.number)
        self._writer.flush()

    def close(self) -> None:
        """Nothing comes any more."""
        self._writer.close()


def check_tensorboard(folder: Path) -> None:
    """Say before the training that TensorBoard is missing, or its directory not to be written."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        fail(f"--tensorboard: it cannot be imported ({error}): pip install 'fastmlp[tensorboard]'")
    writable(folder / "events", "--tensorboard")
