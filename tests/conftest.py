"""Kernels run natively where there is a GPU, and in Triton's interpreter where there is none."""

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton

import pytest

from tests import selection
from tests.interpreter import hasten

hasten()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compatibility", type=Path, help="write docs/compatibility.md from the results here")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--compatibility")
    if path is not None:
        config.option.markexpr = ""  # the page has a cell of every case
    if path is not None and not hasattr(config, "workerinput"):  # xdist's workers report to one process
        from tests.compatibility.page import Page

        config.pluginmanager.register(Page(path))
    workers = getattr(config, "workerinput", {}).get("workercount")
    if workers:  # threads of several workers on few cores wait for each other longer than they compute
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job is deaf to Ctrl-C, and so is what it starts: some tests send it.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in selection.deep(items):
        item.add_marker(pytest.mark.deep)


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is full of NaN, so that an element which no kernel wrote shows."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))


@pytest.fixture
def interleaved() -> Callable[[int], AbstractContextManager[None]]:
    """A context, of a seed, in which the programs of a launch run side by side and a race is an error."""
    if torch.cuda.is_available():
        pytest.skip("the interpreter interleaves programs; a GPU does as it likes")
    from tests.interleaved import interleaved

    return interleaved
