"""Every test here is a cell of docs/compatibility.md: a feature, on a backend, in a dtype.

`pytest tests/compatibility --compatibility docs/compatibility.md` writes that page from the results.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastmlp import backends
from fastmlp.backends import onednn
from fastmlp.kernels import launch
from tests.compatibility.page import DTYPES, Refusal


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Who computes: torch's own ops, or the kernels."""
    with backends.use(request.param):
        yield request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Of the parameters and the input."""
    return getattr(torch, request.param)


@pytest.fixture
def refuses(request: pytest.FixtureRequest) -> Refusal:
    """As ``pytest.raises`` in a ``with``; the page then says "refused"."""
    return Refusal(request.node)


@pytest.fixture
def ways_of_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" does of its own on a CPU it does for large inputs; here for these."""
    monkeypatch.setattr("fastmlp.functional.loss._CPU_ELEMENTS", 1)
    monkeypatch.setattr("fastmlp.functional.loss._CPU_CLASSES", 5)
    monkeypatch.setattr("fastmlp.functional.loss._MANY_ROWS", 4)
    monkeypatch.setattr("fastmlp.functional.linear_loss._CPU_ELEMENTS", 1)
    monkeypatch.setattr("fastmlp.backends.onednn.LEAST_WORK", dict.fromkeys(onednn.LEAST_WORK, 1))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors are tiny here: threads beside other workers' took fifty times as long as they saved."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give the test its cell, before a mark may skip it."""
    marker = item.get_closest_marker("feature")
    if marker is None:
        return
    group, name = marker.args
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    cell = {
        "group": group,
        "feature": name,
        "backend": _column(str(parameters.get("backend", marker.kwargs.get("backend", "any")))),
        "dtype": str(parameters.get("dtype", marker.kwargs.get("dtype", "any"))).removeprefix("torch."),
        "kernels": False,
        "refused": False,
    }
    item.user_properties.append(("compatibility", cell))


@pytest.fixture(autouse=True)
def _cell(request: pytest.FixtureRequest) -> Iterator[None]:
    """Note what this test proves.

    Of a subprocess nobody counts launches: its marker says ``kernels=``, or its test sets
    ``request.node.kernels``.
    """
    marker = request.node.get_closest_marker("feature")
    if marker is None:
        yield
        return
    cell = dict(request.node.user_properties)["compatibility"]
    with launch.record_launches() as launches:
        yield
    cell["kernels"] = marker.kwargs.get("kernels", bool(launches) or getattr(request.node, "kernels", False))
    cell["refused"] = getattr(request.node, "refused", False)


def _column(backend: str) -> str:
    """The page's backend: what "auto" would take here, if the kernels do it."""
    return {"auto": "triton" if torch.cuda.is_available() else "torch"}.get(backend, backend)
