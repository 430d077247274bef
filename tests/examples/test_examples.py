"""The book's two versions train, and the Poisson problem is solved."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastmlp.data import synthetic

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module, on a small synthetic set."""
    spec = importlib.util.spec_from_file_location(name, _EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "load"):
        monkeypatch.setattr(module, "load", lambda data, say: synthetic(train=600, test=100))
    return module


@pytest.mark.parametrize("name", ["from_scratch", "concise"])
def test_it_trains(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example(name, monkeypatch).main(data=None, epochs=2, batch_size=256, lr=0.1, seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch   1  train loss 2.3")


def test_the_poisson_problem_is_solved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To 0.5 %, in two seconds on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a net takes twenty times as long with threads that others share
    example("poisson", monkeypatch).main()
    torch.set_num_threads(threads)
    *_, last = capsys.readouterr().out.splitlines()
    assert float(last.removeprefix("relative error ")) < 5e-3
