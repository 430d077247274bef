"""The test suite, natively: as much of it as there is time for, kernels first."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..measure import Row
from . import pytest_plugin as plugin
from .worker import Bench

_ROOT = Path(__file__).resolve().parents[2]
_REHEARSED = ("tests/kernels/test_optimizers.py", "tests/kernels/test_cache.py")
_PATIENCE = 90  # seconds that one test may take
_STOPPING = 12.0  # seconds that pytest may take to stop
_EVERY = 1.0  # seconds between two writings of what is known
_TEXT = 6000, 400  # characters of a failure that are kept, and after `_MOST` of all
_MOST = 4 << 20
_UNPRINTABLE = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd]")
OUTCOMES = "tests.json"


def run(bench: Bench) -> None:
    """The stage: one row, and the outcome of each test beside it."""
    bench.row("tests", lambda: _tests(bench))


def _tests(bench: Bench) -> Row:
    row: Row = {"group": "tests", "label": "", "dtype": "", "seconds": {}, "missing": {}}
    if not (_ROOT / "tests").is_dir():
        return row | {"skipped": "the tests are in a clone of the project, and this is installed"}
    found = _known(bench.out) if bench.resumed else {}
    code, complete = _session(bench, found)
    bench.keep(OUTCOMES, json.dumps(found, indent=1))
    bench.keep("tests.xml", junit(found))
    counts = Counter(one["outcome"] for one in found.values())
    text = ", ".join(
        f"{counts[name]} {name}" for name in ("passed", "failed", "error", "skipped") if counts[name]
    )
    bad = [test for test, one in found.items() if one["outcome"] in ("failed", "error")]
    row |= {"counts": dict(counts), "failures": bad[:200], "unfinished": not complete}
    if not complete:
        bench.left_out("tests: the rest of the suite")
    if bad or (complete and code not in (0, 5)):
        return row | {"error": f"{text or 'no outcome'}; pytest ended with code {code}: {(bad or ['-'])[0]}"}
    return row | {"summary": text}


def _known(out: Path) -> dict[str, dict[str, Any]]:
    """Outcomes of the run that is resumed, by test."""
    with suppress(OSError, ValueError):
        return dict(json.loads((out / OUTCOMES).read_text()))
    return {}


def _session(bench: Bench, found: dict[str, dict[str, Any]]) -> tuple[int, bool]:
    """Run pytest, add the outcomes to ``found``: its exit code, and whether it came to its end."""
    ours, theirs = os.pipe()
    environment = os.environ | {
        plugin.PIPE: str(theirs), plugin.KNOWN: str(bench.out / OUTCOMES) if found else "",
        plugin.PATIENCE: str(_PATIENCE),
    }  # fmt: skip
    environment.pop("FASTMLP_BACKEND", None)  # each test says what it is about
    process = subprocess.Popen(command(bench.toy), cwd=_ROOT, env=environment, pass_fds=[theirs])
    os.close(theirs)
    os.set_blocking(ours, False)
    partial, written, complete, kill_at = b"", 0.0, True, float("inf")
    while process.poll() is None:
        partial += _read(ours)
        *lines, partial = partial.split(b"\n")
        _add(found, lines)
        if lines and time.time() - written > _EVERY:
            bench.keep(OUTCOMES, json.dumps(found, indent=1))
            bench.note(f"{len(found)} tests")
            written = time.time()
        if complete and bench.left() < _STOPPING:
            complete, kill_at = False, time.time() + _STOPPING - 2
            process.send_signal(signal.SIGINT)  # it then still says what failed
        if time.time() > kill_at:
            process.kill()
        time.sleep(0.1)
    _add(found, (partial + _read(ours)).splitlines())
    os.close(ours)
    return process.returncode, complete


def _add(found: dict[str, dict[str, Any]], lines: Iterable[bytes]) -> None:
    """Outcomes as the plugin tells them: a GPU that breaks for good must not fill the disk."""
    for line in lines:
        told = json.loads(line)
        told["text"] = told["text"][-_TEXT[_size(found) > _MOST] :]
        found[told.pop("test")] = told


def _size(found: dict[str, dict[str, Any]]) -> int:
    return sum(len(one["text"]) for one in found.values())


def _read(pipe: int) -> bytes:
    data = b""
    with suppress(BlockingIOError):
        while more := os.read(pipe, 1 << 16):
            data += more
    return data


def command(toy: bool) -> list[str]:
    """pytest, with what a bare machine has: xdist if it is there, no other plugin."""
    words = [sys.executable, "-m", "pytest", "-q", "-p", plugin.__name__, "--continue-on-collection-errors"]
    words += ["-p", "no:cacheprovider", "--tb=long", "-o", "addopts=--strict-markers --import-mode=importlib"]
    if importlib.util.find_spec("xdist") is not None:
        words += ["-n", "2" if toy else "auto"]
    return [*words, *(_REHEARSED if toy else ("tests",))]


def junit(found: dict[str, dict[str, Any]]) -> str:
    """The outcomes as JUnit's XML."""
    counts = Counter(one["outcome"] for one in found.values())
    suite = ElementTree.Element(
        "testsuite", name="fastmlp on a GPU", tests=str(len(found)), failures=str(counts["failed"]),
        errors=str(counts["error"]), skipped=str(counts["skipped"]),
    )  # fmt: skip
    for test, one in found.items():
        place, _, name = _UNPRINTABLE.sub("?", test).partition("::")
        case = ElementTree.SubElement(
            suite, "testcase", classname=place, name=name, time=f"{one['took']:.3f}"
        )
        kind = {"failed": "failure", "error": "error", "skipped": "skipped"}.get(one["outcome"])
        if kind:
            text = _UNPRINTABLE.sub("?", one["text"])  # which XML has no way to write
            ElementTree.SubElement(case, kind, message=text[-200:]).text = text
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
