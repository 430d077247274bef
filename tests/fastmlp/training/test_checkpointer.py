"""What fit's checkpoints take and refuse; for the bits see tests/compatibility/test_faults_*.py."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends
from fastmlp.training import History, checkpoint, fit, position


def run(path: Path | None, net: nn.Module | None = None, epochs: int = 4, **options: Any) -> History:
    torch.manual_seed(0)
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    net = net or fastmlp.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    return fit(net, (x, y), epochs=epochs, batch_size=8, checkpoint=path, **options)


def test_every(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By epochs, by steps, and both."""
    written: list[dict[str, int]] = []
    write = checkpoint.write

    def noted(path: Path, tensors: dict[str, Tensor], content: dict[str, Any]) -> None:
        written.append(content["metadata"])
        write(path, tensors, content)

    monkeypatch.setattr(checkpoint, "write", noted)
    for options, places in (
        ({"every": 3}, [(3, 0), (4, 0)]),
        ({"every": 0}, []),
        ({"every": 0, "every_steps": 5}, [(1, 2), (3, 1)]),
        ({"every": 2, "every_steps": 4}, [(1, 1), (2, 0), (2, 2), (3, 3), (4, 0)]),
    ):
        written.clear()
        run(tmp_path / "run", **options)
        assert [(place["epoch"], place["step"]) for place in written] == places


def test_more_epochs_of_a_finished_run(tmp_path: Path) -> None:
    """A constant schedule has no end that the past knows of; the history is whole."""
    run(tmp_path / "run", epochs=2)
    history = run(tmp_path / "run", resume=True)
    assert [epoch.number for epoch in history.epochs] == [1, 2, 3, 4]
    expected = run(None)
    assert [e.train_loss for e in history.epochs] == [e.train_loss for e in expected.epochs]
    assert history.seconds >= sum(epoch.seconds for epoch in history.epochs)


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no checkpoint to go on from; this run starts anew"):
        run(tmp_path / "run", resume=True)


def test_what_is_no_file(tmp_path: Path) -> None:
    """Is written to, and there is nothing in it to go on from."""
    os.mkfifo(path := tmp_path / "run")
    with ThreadPoolExecutor() as pool:
        reader = pool.submit(path.read_bytes)
        with pytest.warns(UserWarning, match="no checkpoint to go on from"):
            run(path, epochs=1, resume=True)
        (tmp_path / "copy").write_bytes(reader.result())
    assert path.is_fifo()
    assert position(tmp_path / "copy").epoch == 1


def test_a_changed_rate_and_schedule(tmp_path: Path) -> None:
    """From there on, and only what is named."""
    run(tmp_path / "run", epochs=2)
    nets = [fastmlp.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)) for _ in range(2)]
    run(tmp_path / "run", nets[0], epochs=2, resume=True)
    run(tmp_path / "run", nets[1], epochs=3, resume=True, lr=0.0, changed=("lr",))
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
    run(tmp_path / "run", epochs=4, resume=True, lr=0.0, schedule="linear", changed="schedule")
    with pytest.raises(
        ValueError, match=r"changed: expected names of \['batch_size', .*'lr', .*got \['seed'\]"
    ):
        run(tmp_path / "run", resume=True, changed=["seed"])


def test_a_rate_that_a_callback_sets(tmp_path: Path) -> None:
    """It is part of the state, and no other run's."""
    net = fastmlp.Sequential(nn.Linear(5, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def halve(_: object) -> None:
        optimizer.param_groups[0]["lr"] /= 2

    run(tmp_path / "run", net, epochs=2, optimizer=optimizer, on_epoch=halve)
    fresh = torch.optim.SGD(net.parameters(), lr=0.1)
    run(tmp_path / "run", net, epochs=3, optimizer=fresh, resume=True)
    assert fresh.param_groups[0]["lr"] == 0.025
    run(tmp_path / "run", net, epochs=4, optimizer=fresh, resume=True)  # the same one goes on too


class WideMomentum(torch.optim.Optimizer):
    """Keeps float64 beside float32 parameters."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["momentum"] = 0.9 * state.get("momentum", torch.zeros_like(p).double()) + p.grad.double()
            p -= (0.1 * state["momentum"]).float()


def test_an_optimizers_own_dtypes(tmp_path: Path) -> None:
    """torch's load_state_dict would round them to the parameters'."""
    nets = [fastmlp.Sequential(nn.Linear(5, 3)) for _ in range(3)]
    nets[1].load_state_dict(nets[0].state_dict())
    run(tmp_path / "whole", nets[0], optimizer=WideMomentum(nets[0].parameters()))
    run(tmp_path / "run", nets[1], epochs=2, optimizer=WideMomentum(nets[1].parameters()))
    run(tmp_path / "run", nets[2], optimizer=WideMomentum(nets[2].parameters()), resume=True)
    assert all(map(torch.equal, nets[0].parameters(), nets[2].parameters()))


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every: expected at least 0, got -1"):
        run(tmp_path / "run", every=-1)
    with pytest.raises(ValueError, match="every_steps: expected at least 0, got -2"):
        run(tmp_path / "run", every_steps=-2)
    with pytest.raises(IsADirectoryError, match="a directory"):
        run(tmp_path)
    with (
        backends.use("triton"),
        pytest.raises(ValueError, match="every_steps: engine 'persistent' runs whole"),
    ):
        run(tmp_path / "run", every_steps=2, engine="persistent")


def test_another_version_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "run", epochs=1)
    monkeypatch.setattr(torch, "__version__", "3.0")
    with pytest.warns(UserWarning, match=r"the bits may be others now: torch was .* and is 3\.0"):
        run(tmp_path / "run", resume=True)
