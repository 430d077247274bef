"""Faults planted one at a time: does the README's test command find each of them?

``python tests/mutants.py`` makes a clone of the tree for each fault of `tests/faults.py`, and runs there
what the test command runs: first the tests of the fault's room, then, if those find nothing, all. It says
by which test each was found, and fails if one slips through. ``--match WORD`` takes only some, ``--list``
plants nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.faults import FAULTS, Fault
from tests.installs import ROOT, clone


class Outcome(NamedTuple):
    """What became of a fault."""

    fault: Fault
    found_by: str  # a test's id; "" if none found it
    seconds: float


def plant(fault: Fault, folder: Path) -> None:
    """Write the fault into the tree in ``folder``.

    Raises:
        ValueError: the line that it changes is not there, or more than once.
    """
    file = folder / fault.file
    source = file.read_text()
    if source.count(fault.right) != 1:
        raise ValueError(f"{fault.file}: {fault.right!r} is there {source.count(fault.right)} times")
    file.write_text(source.replace(fault.right, fault.wrong))


def nearest(fault: Fault) -> list[str]:
    """Where it is looked for first: its own tests, or those that mirror its file, then their folder's."""
    path = Path(fault.file)
    folder = Path("tests") / path.parent
    mirrored = (folder / f"test_{path.name}", folder)
    return list(fault.tests) or [str(where) for where in mirrored if (ROOT / where).exists()]


def tried(fault: Fault, whole: Path) -> Outcome:
    """Plant it in a clone, and test that; a test that fails in the ``whole`` clone too has found nothing."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastmlp-mutant-") as name:
        folder = clone(Path(name))
        plant(fault, folder)
        for tests in (*([place] for place in nearest(fault)), []):  # together pytest sorts them
            found = failing(folder, tests)
            if found and ("::" not in found or not failing(whole, [found])):
                break
            found = ""
    return Outcome(fault, found, time.monotonic() - began)


def failing(folder: Path, tests: list[str]) -> str:
    """The first test that fails, or an error; "" where all pass."""
    environment = os.environ | {"PYTHONPATH": str(folder / ".src"), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["-q", "-x", "-n", "0" if tests else "2", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode in (0, 5):  # passed, or nothing to run
        return ""
    found = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - |$)", done.stdout, re.MULTILINE)
    return found.group(1) if found else f"pytest exited with {done.returncode}"


def main(argv: list[str] | None = None) -> int:
    """Plant them all; 1 if one was not found."""
    parser = argparse.ArgumentParser("tests/mutants.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--match", default="", help="only faults that have this in their file or description")
    parser.add_argument("--list", action="store_true", help="only say what they are")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    asked = parser.parse_args(argv)
    chosen = [fault for fault in FAULTS if asked.match in f"{fault.file} {fault.what}"]
    if asked.list:
        print("\n".join(f"{fault.file}: {fault.what}" for fault in chosen))
        return 0
    slipped = []
    with tempfile.TemporaryDirectory(prefix="fastmlp-whole-") as name, ThreadPoolExecutor(asked.jobs) as pool:
        for fault, found, seconds in pool.map(partial(tried, whole=clone(Path(name))), chosen):
            print(f"{seconds:5.0f} s  {fault.file}: {fault.what}: {found or 'NOT FOUND'}", flush=True)
            slipped += [] if found else [fault]
    print(f"{len(chosen) - len(slipped)} of {len(chosen)} found")
    return bool(slipped)


if __name__ == "__main__":
    sys.exit(main())
