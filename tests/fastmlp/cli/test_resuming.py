"""What is at a checkpoint's path when a run begins."""

from __future__ import annotations

import os
from pathlib import Path

from fastmlp.cli import resuming


def test_what_is_no_file_stays(tmp_path: Path) -> None:
    """A device or a pipe is no earlier run's checkpoint, to be put aside."""
    os.mkfifo(path := tmp_path / "pipe")
    assert resuming.place(path) is None
    resuming.put_aside(path)
    assert os.listdir(tmp_path) == ["pipe"]
    assert path.is_fifo()
