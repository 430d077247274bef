"""The test suite, natively: as much of it as there is time for, kernels first."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ..measure import Row, new_row
from . import pytest_plugin as plugin
from .worker import Bench

_ROOT = Path(__file__).resolve().parents[2]
_REHEARSED = ("tests/kernels/training/test_optimizers.py", "tests/kernels/tiles/test_cache.py")
_PATIENCE = 90  # seconds that one test may take
_STOPPING = 12.0  # seconds that pytest may take to stop
_EVERY = 1.0  # seconds between two writes of what is known
_COLLECTING = 240.0  # seconds that pytest may be silent at the beginning
_TEXT = 6000, 400  # characters kept of a failure, and once all have `_MOST`
_MOST = 4 << 20
_UNPRINTABLE = re.compile(r"[^\t\n\r -\ud7ff\ue000-\ufffd]")
OUTCOMES = "tests.json"


def run(bench: Bench) -> None:
    """The stage: one row, and the outcome of each test beside it."""
    bench.row("tests", lambda: _tests(bench))


def _tests(bench: Bench) -> Row:
    row = new_row("tests")
    if not (_ROOT / "tests").is_dir():
        return row | {"skipped": "the tests are in a clone of the project, and this is installed"}
    if importlib.util.find_spec("pytest") is None:
        return row | {"error": "pytest is not installed"}
    found = _known(bench.out) if bench.resumed else {}
    ended = _session(bench, found)
    while ended.complete and ended.culprit and bench.left() > 2 * _STOPPING:
        ended = _session(bench, found)  # without it, and what is known
    code, complete = ended.code, ended.complete and not ended.culprit
    bench.keep(OUTCOMES, json.dumps(found, indent=1))
    bench.keep("tests.xml", junit(found))
    counts = Counter(one["outcome"] for one in found.values())
    bench.note(text := _counted(counts))
    bad = [test for test, one in found.items() if one["outcome"] in ("failed", "error")]
    row |= {"counts": dict(counts), "failures": bad[:200], "unfinished": not complete}
    if not complete:
        bench.left_out("tests: the rest of the suite")
    if bad or (complete and code not in (0, 5)):
        return row | {"error": f"{text or 'no outcome'}; pytest ended with code {code}: {(bad or ['-'])[0]}"}
    return row | {"summary": text}


def _counted(counts: Counter[str]) -> str:
    kinds = ("passed", "failed", "error", "skipped")
    return ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])


def _known(out: Path) -> dict[str, dict[str, Any]]:
    """Outcomes of the run that is resumed, by test."""
    try:
        stored = json.loads((out / OUTCOMES).read_text())
        return {test: one for test, one in stored.items() if one.keys() == {"outcome", "text", "took"}}
    except (OSError, ValueError, AttributeError):
        return {}


class Ended(NamedTuple):
    """How pytest ended."""

    code: int
    complete: bool  # it did not run out of time
    culprit: str  # the test that crashed it, if there is no xdist


def _session(bench: Bench, found: dict[str, dict[str, Any]]) -> Ended:
    """Run pytest on what is not known, and add the outcomes to ``found``."""
    ours, theirs = os.pipe()
    with tempfile.NamedTemporaryFile("w", suffix=".json") as known:
        json.dump([*found], known)
        known.flush()
        environment = os.environ | {
            plugin.PIPE: str(theirs), plugin.KNOWN: known.name, plugin.PATIENCE: str(_PATIENCE),
        }  # fmt: skip
        environment.pop("FASTMLP_BACKEND", None)  # each test says what it is about
        process = subprocess.Popen(command(bench.toy), cwd=_ROOT, env=environment, pass_fds=[theirs])
        os.close(theirs)
        os.set_blocking(ours, False)
        complete, begun = _follow(bench, process, ours, found)
        os.close(ours)
    code = process.returncode
    culprit = begun if complete and begun not in found else ""
    if culprit:
        text = f"took pytest along, which ended with code {code}"
        found[culprit] = {"outcome": "failed", "text": text, "took": 0.0}
    return Ended(code, complete, culprit)


def _follow(
    bench: Bench, process: subprocess.Popen[bytes], pipe: int, found: dict[str, dict[str, Any]]
) -> tuple[bool, str]:
    """Follow it to its end: whether that came by itself, and the test that it was at, if not in order."""
    partial, complete, begun, running = b"", True, "", True
    began = told = time.time()
    kill_at = float("inf")
    while running:
        running = process.poll() is None
        *lines, partial = (partial + _read(pipe)).split(b"\n")
        begun = _add(found, lines, begun)
        now = time.time()
        if now - told > _EVERY and (lines or now - began < _COLLECTING):
            bench.note(f"{len(found)} tests" if begun or found else "collecting")
            if lines:
                bench.keep(OUTCOMES, json.dumps(found, indent=1))
            told = now
        if complete and running and bench.left() < _STOPPING:
            complete, kill_at = False, now + _STOPPING - 2
            process.send_signal(signal.SIGINT)  # it then still says what failed
        if now > kill_at:
            process.kill()
        time.sleep(0.1)
    return complete, begun


def _add(found: dict[str, dict[str, Any]], lines: Iterable[bytes], begun: str = "") -> str:
    """Add the plugin's outcomes, bounded in size, as a broken GPU fails all; the test that it is at."""
    for line in lines:
        told = json.loads(line)
        if "begun" in told:
            begun = told["begun"]
            continue
        told["text"] = told["text"][-_TEXT[_size(found) > _MOST] :]
        found[told.pop("test")] = told
    return begun


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
        words += ["-n", "2" if toy else str(min(16, len(os.sched_getaffinity(0))))]
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
            text = _UNPRINTABLE.sub("?", one["text"])  # XML cannot contain these characters
            ElementTree.SubElement(case, kind, message=text[-200:]).text = text
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
