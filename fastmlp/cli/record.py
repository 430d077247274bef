"""What a run leaves beside its net: its options as TOML, its history as JSON, TensorBoard's logs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fastmlp.cli import config, resuming
from fastmlp.cli.common import fail, warn, writable
from fastmlp.cli.options import Settings
from fastmlp.cli.runs import beside, vacant
from fastmlp.training import Epoch, History, distributed, save, schedules


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
        options = {"net": "--out", "config": "--out's .toml", "tensorboard": "--tensorboard"}
        seen: dict[Path, str] = {}
        out = self.paths["net"]
        # Of a device, what goes beside the net would land in /dev; a directory is said below.
        if os.path.exists(out) and not (os.path.isfile(out) or os.path.isdir(out)):
            fail(f"--out {out}: no file; expected one, or a name that is free")
        for name, path in self.paths.items():
            option = options.get(name, f"--{name}")
            if path in seen:
                fail(f"{option} {path}: expected another file than {seen[path]}'s", 2)
            seen[path] = option
        for path, option in seen.items():
            if option != "--tensorboard":
                writable(path, option, over_nets=option in ("--out", "--checkpoint"))
        net, recorded = self.paths["net"], self.paths["config"]
        if resumed and resuming.is_of(self.paths["history"], self.paths["checkpoint"]):
            self._overwrite = True
        if not self._overwrite and net.is_file():
            fail(f"--out {net}: it is there already; another name keeps it, --overwrite replaces it")
        if not self._overwrite and recorded.is_file() and not config.is_record(recorded):
            fail(f"--out {net}: its options go to {recorded}, which holds others; expected another name")
        history = self.settings.history
        if not self._overwrite and history is not None and history.is_file():
            fail(f"--history {history}: it is there already; another name keeps it, --overwrite replaces it")
        if self.settings.tensorboard:
            check_tensorboard(self.settings.tensorboard)

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
