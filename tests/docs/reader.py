"""Does what a reader of a page does: commands in a shell, Python in one session, in the order of the page.

A script, run in a clone by the Python that the reader has: takes pages of steps as JSON on stdin, says of
each page what its steps led to. All is run in forks of this process: importing torch takes longer than most.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

# What the commands import
import matplotlib.pyplot
import sklearn.datasets
import torchvision

import fastmlp.benchmarks.report
import fastmlp.cli

_WARM = (matplotlib, sklearn, torchvision, fastmlp)


def command(line: str) -> tuple[int, str]:
    """Exit status and output of a line of shell."""
    words = shlex.split(line)
    script = words[0] == "python" and words[1].endswith(".py")
    if words[0] != "fastmlp" and not script:
        done = subprocess.run(
            ["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280
        )
        return done.returncode, done.stdout
    read, write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.argv = words[1:] if script else words
        status = 1
        try:
            if script:
                runpy.run_path(words[1], run_name="__main__")
            else:
                runpy.run_module("fastmlp", run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as output:
        said = output.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), said


def session(pipe: Connection) -> None:
    """A Python session: runs what comes, until nothing does."""
    names: dict[str, object] = {"__name__": "__main__"}
    while True:
        try:
            place, code = pipe.recv()
        except EOFError:
            return
        try:
            exec(compile(code, place, "exec"), names)
            pipe.send((0, ""))
        except BaseException:
            pipe.send((1, traceback.format_exc()))


def read(page: list[tuple[str, str, str]]) -> Iterator[tuple[int, str]]:
    """What each step of a page leads to; its Python steps share a session."""
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe()
    python = fork.Process(target=session, args=(there,), daemon=True)
    python.start()
    there.close()
    for language, place, text in page:
        if language == "python":
            here.send((place, text))
            yield here.recv()
        else:
            yield command(text)
    python.terminate()


def main() -> None:
    """Page after page; what one leaves in the clone is gone before the next."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Python blocks print is no answer
    own = set(Path().iterdir())
    for page in json.load(sys.stdin):
        print(json.dumps(list(read(page))), file=answers, flush=True)
        for left in set(Path().iterdir()) - own:
            shutil.rmtree(left) if left.is_dir() else left.unlink()


if __name__ == "__main__":
    main()
