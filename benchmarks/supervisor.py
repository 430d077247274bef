"""Keeps a report going that runs unattended: a kernel that hangs or breaks the CUDA context costs its row.

The measuring process says in report.json which row it is at. When it dies, or nothing in its folder
changes for long, that row is recorded as an error, and a fresh process goes on with the next.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from .store import Store

#: The exit code of a measuring process that recorded an error and cannot go on: a CUDA error is for good.
BROKEN = 3


def supervise(command: Sequence[str], store: Store, out: Path, call: float, patience: float) -> int:
    """Run ``command`` until it ends by itself; its exit code, which is 1 if any row went wrong.

    Args:
        command: the measuring process; it skips what was measured in this ``call``.
        store: of ``out``.
        out: its folder.
        call: names this call in the rows.
        patience: seconds without a change in ``out`` after which the process hangs.
    """
    while True:
        # A session of its own, so that what it started ends with it.
        process = subprocess.Popen(list(command), start_new_session=True)
        try:
            hung = _watch(process, out, patience)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        if not hung and code in (0, 1):
            return code
        store.reload()
        now = store.report.get("now")
        if now is not None:
            why = f"nothing happened for {patience:.0f} s" if hung else f"the process ended with code {code}"
            store.put(now["part"], failed(now["key"], why) | {"call": call})
        elif code != BROKEN:  # it died outside of any row, so it would again
            return 1


def failed(key: str, why: str) -> dict[str, object]:
    """The row of a case that cost its process."""
    group, _, label = key.partition(", ")
    empty = {"seconds": {}, "missing": {}, "dtype": key.rpartition(", ")[2]}
    return {"key": key, "group": group, "label": label.rpartition(", ")[0], "error": why, **empty}


def _watch(process: subprocess.Popen[bytes], out: Path, patience: float) -> bool:
    """Wait for the end; True if it will not come."""
    began = time.time()
    while process.poll() is None:
        time.sleep(0.2)
        newest = max((path.stat().st_mtime for path in out.iterdir() if path.exists()), default=began)
        if time.time() - max(newest, began) > patience:
            return True
    return False
