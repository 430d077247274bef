"""How the suite runs unattended: the pytest plugin of the stage ``tests``.

Tests of what the machine lacks are skipped, with the reason. Kernels come first. A test that hangs, or that
breaks the CUDA context, costs its xdist worker. Outcomes go to a pipe as they come; tests whose outcome is
known already are left out.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Generator

import pytest

from .worker import end_with_parent

PIPE, KNOWN, PATIENCE = "FASTMLP_TESTS_PIPE", "FASTMLP_TESTS_KNOWN", "FASTMLP_TESTS_PATIENCE"
_FIRST = (
    "tests/kernels/",
    "tests/fastmlp/backends/",
    "tests/fastmlp/functional/",
    "tests/fastmlp/autograd/",
    "tests/fastmlp/engine/",
    "tests/fastmlp/modules/",
    "tests/fastmlp/",
    "tests/compatibility/",
)
_BROKEN = 70  # a worker's exit code
_OURS = ("fastmlp", "benchmarks", "tests", "kernels")


def pytest_configure(config: pytest.Config) -> None:
    """Only xdist's controller hears of all outcomes, and reports them; no process outlives its parent."""
    end_with_parent()
    if not hasattr(config, "workerinput") and PIPE in os.environ:
        config.pluginmanager.register(_Teller(int(os.environ[PIPE])))


class _Teller:
    def __init__(self, pipe: int) -> None:
        self._pipe = os.fdopen(pipe, "w")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tell(report.nodeid, "error", report)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._say({"begun": nodeid})

    def pytest_sessionfinish(self) -> None:
        self._say({"begun": ""})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":  # a worker's crash is at no stage of a test
            around = report.failed and report.when in ("setup", "teardown")
            self._tell(report.nodeid, "error" if around else report.outcome, report)

    def _tell(self, test: str, outcome: str, report: pytest.CollectReport | pytest.TestReport) -> None:
        text = report.longreprtext if outcome in ("failed", "error") else ""
        if outcome == "skipped" and isinstance(report.longrepr, tuple):
            text = report.longrepr[2]
        took = getattr(report, "duration", 0.0)
        self._say({"test": test, "outcome": outcome, "text": text, "took": took})

    def _say(self, message: dict[str, object]) -> None:
        self._pipe.write(json.dumps(message) + "\n")
        self._pipe.flush()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that needs a package which is not there is skipped, not broken."""
    report = yield
    missing = _missing(collector, report)
    if missing:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"needs {missing}, which is not installed")
    return report


def _missing(collector: pytest.Collector, report: pytest.CollectReport) -> str | None:
    error = getattr(report.call, "excinfo", None) if hasattr(report, "call") else None
    found = error.value if error is not None else None
    while found is not None:  # pytest's own error has it as its cause
        if isinstance(found, ModuleNotFoundError) and (found.name or "").partition(".")[0] not in _OURS:
            return found.name
        found = found.__cause__ or found.__context__
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What a GPU has to prove comes first; tests whose outcome is known are left out."""
    path = os.environ.get(KNOWN)
    known = set()
    if path and os.path.exists(path):
        with open(path) as file:
            known = set(json.load(file))
    items[:] = sorted((item for item in items if item.nodeid not in known), key=_place)


def _place(item: pytest.Item) -> int:
    return next((i for i, start in enumerate(_FIRST) if item.nodeid.startswith(start)), len(_FIRST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A kernel that hangs ends its worker, which xdist replaces."""
    patience = float(os.environ.get(PATIENCE, 0))
    if patience:
        faulthandler.dump_traceback_later(patience, exit=True)
    try:
        return (yield)
    finally:
        if patience:
            faulthandler.cancel_dump_traceback_later()


def pytest_runtest_logfinish() -> None:
    """After some CUDA errors nothing works in the process any more."""
    torch = sys.modules.get("torch")
    if "PYTEST_XDIST_WORKER" in os.environ and torch is not None and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(_BROKEN)
