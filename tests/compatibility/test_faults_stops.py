"""Runs that cannot go on: a loss that is not finite, no memory left."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import fastmlp
from fastmlp import cli, data
from fastmlp.training import Epoch, History, OutOfMemoryError, TrainingError, fit, load_into, position
from tests.commands import synthetic
from tests.processes import output_of


class Fails(nn.Module):
    """Passes on its input, until it is called that often in training."""

    def __init__(self, call: int, error: BaseException | None) -> None:
        super().__init__()
        self._calls, self._call, self._error = 0, call, error

    def forward(self, x: Tensor) -> Tensor:
        self._calls += self.training
        if self._calls != self._call or not self.training:
            return x
        if self._error is None:
            return x * float("nan")
        raise self._error


def net(*last: nn.Module) -> fastmlp.Sequential:
    torch.manual_seed(0)
    return fastmlp.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3), *last)


def run(model: nn.Module, device: str, **options: object) -> tuple[History, torch.optim.Optimizer]:
    """Four epochs of three steps with Adam."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 6, generator=generator), torch.randint(3, (24,), generator=generator)
    optimizer = torch.optim.Adam(model.to(device).parameters(), lr=0.01)
    options = {"epochs": 4, "batch_size": 8, "device": device, "optimizer": optimizer, **options}
    return fit(model, (x, y), **options), optimizer  # type: ignore[arg-type]


def is_same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[k].cpu(), other[k].cpu()) for k in state)


@pytest.mark.feature(
    "Faults", "NaN loss: stops, says where, keeps the last good checkpoint", backend="torch", dtype="float32"
)
def test_a_loss_that_is_not_finite(backend: str, device: str, tmp_path: Path) -> None:
    """In epoch 3's second step; on a GPU, where a look costs, it is known at the end of that epoch."""
    path = tmp_path / "run"
    step = ", step 2 of 3" if device == "cpu" else ""
    message = (
        f"the loss is nan in epoch 3{step}; a smaller lr may help; the last good checkpoint, {path}, is of"
    )
    with pytest.raises(TrainingError, match=f"{message} the end of epoch 2"):
        run(net(Fails(8, None)), device, checkpoint=path)
    run(good := net(Fails(0, None)), device, epochs=2)
    load_into(restored := net(Fails(0, None)), path)
    assert is_same(restored.state_dict(), good.state_dict())
    run(net(Fails(0, None)), device, checkpoint=path, resume=True)  # and it goes on
    assert position(path).epoch == 4


@pytest.mark.feature(
    "Faults", "NaN loss: stops, says where, keeps the last good checkpoint", backend="torch", dtype="float32"
)
def test_parameters_that_are_not_finite_are_not_saved(device: str, tmp_path: Path) -> None:
    """The last step of an epoch may ruin them after a loss that was fine."""
    model = net()

    def ruin(epoch: Epoch) -> None:
        if epoch.number == 2:
            with torch.no_grad():
                model[2].weight[1, 1] = float("inf")

    with pytest.raises(TrainingError, match=r"2\.weight is not finite at the end of epoch 2.* epoch 1$"):
        run(model, device, checkpoint=tmp_path / "run", on_epoch=ruin)
    assert position(tmp_path / "run").epoch == 1


def train(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["train", "--dataset", "synthetic", "--device", "cpu", *arguments])


@pytest.mark.feature(
    "Faults",
    "NaN loss: fastmlp train exits with 1 and names the checkpoint",
    backend="torch",
    dtype="float32",
)
def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it says how to go on works."""
    monkeypatch.setattr(data, "named", synthetic(600, 100))
    base = ["--hidden", "8", "--epochs", "4", "--out", str(tmp_path / "net")]
    kept = tmp_path / "net.ckpt.safetensors"
    assert train(*base[:3], "2", *base[4:]).exit_code == 0
    blown = train(*base, "--resume", "--lr", "1e30", "--changed", "lr")
    assert blown.exit_code == 1
    line = blown.output.splitlines()[-1]
    assert "error: the loss is nan in epoch 3, step 2 of 3; a smaller lr may help; the last good" in line
    assert line.endswith(
        f"{kept}, is of the end of epoch 2; --resume --lr LR --changed lr goes on from there"
    )
    refused = train(*base, "--resume", "--lr", "0.05")
    assert (refused.exit_code, "lr was 0.1 and is 0.05" in refused.output) == (2, True)
    assert train(*base, "--resume", "--lr", "0.05", "--changed", "lr").exit_code == 0
    assert position(kept).epoch == 4
    assert train(*base, "--resume", "--lr", "0.05").exit_code == 0  # that is the run's lr from now on


@pytest.mark.few(2)
@pytest.mark.feature(
    "Faults", "out of memory: says the batch size, state intact", backend="torch", dtype="float32"
)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 40000000000 bytes."),
        MemoryError(),
    ],
    ids=["GPU", "CPU", "Python"],
)
def test_out_of_memory(error: BaseException, backend: str, device: str, tmp_path: Path) -> None:
    """In the second step of the second epoch: parameters and optimizer are as the step before left them."""
    seen: list[tuple[dict[str, Tensor], list[Tensor]]] = []
    model = net(Fails(5, error))
    optimizer = torch.optim.Adam(model.to(device).parameters(), lr=0.01)

    def states() -> list[Tensor]:
        return [t.clone() for state in optimizer.state.values() for t in state.values()]

    def note(_: int) -> None:
        seen.append(({name: t.clone() for name, t in model.state_dict().items()}, states()))

    message = (
        r"out of memory in epoch 2, step 2 at batch size 8 \(.*\); a smaller batch size takes less; "
        r"parameters and optimizer state are as the step before left them; "
        r"the last good checkpoint, .*, is of the end of epoch 1$"
    )
    path = tmp_path / "run"
    with pytest.raises(OutOfMemoryError, match=message) as info:
        run(model, device, optimizer=optimizer, checkpoint=path, on_batch=note)
    assert isinstance(info.value, torch.OutOfMemoryError)
    assert len(seen) == 4
    assert is_same(model.state_dict(), seen[-1][0])
    assert all(map(torch.equal, states(), seen[-1][1]))
    run(net(Fails(0, None)), device, checkpoint=path, resume=True, batch_size=4, changed="batch_size")


@pytest.mark.feature(
    "Faults",
    "out of memory within an optimizer's step: says that it may have begun",
    backend="torch",
    dtype="float32",
)
def test_out_of_memory_in_the_update(device: str) -> None:
    class Hungry(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            raise torch.OutOfMemoryError("out of memory")

    model = net()
    with pytest.raises(
        OutOfMemoryError, match="the step had begun to update the parameters, so go on from a"
    ):
        run(model, device, optimizer=Hungry(model.to(device).parameters(), lr=0.1), engine="eager")


@pytest.mark.deep
@pytest.mark.feature(
    "Faults",
    "out of memory: a real one, under a limit of the address space",
    backend="torch",
    dtype="float32",
)
def test_real_out_of_memory() -> None:
    """A process of 300 MB more than it has after a small batch; a big one's activations are 2 GB."""
    printed = output_of(_HUNGRY, OMP_NUM_THREADS="1")
    assert printed.startswith("out of memory in epoch 1 at batch size 250000 (2,000,000,000 bytes asked for)")
    assert printed.strip().endswith("True True")


_HUNGRY = """
import copy, resource, torch, fastmlp
from torch import nn

net = fastmlp.Sequential(nn.Linear(4, 2000), nn.ReLU(), nn.Linear(2000, 2))
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
data = torch.randn(250000, 4), torch.randint(2, (250000,))
small = data[0][:64], data[1][:64]
fastmlp.fit(net, small, epochs=2, batch_size=32, optimizer=optimizer)
before = copy.deepcopy((net.state_dict(), optimizer.state_dict()["state"]))
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 300 * 2**20,) * 2)
try:
    fastmlp.fit(net, data, epochs=1, batch_size=250000, optimizer=optimizer)
except torch.OutOfMemoryError as error:
    print(error)
after = net.state_dict(), optimizer.state_dict()["state"]
print(all(torch.equal(before[0][k], after[0][k]) for k in after[0]), end=" ")
print(all(torch.equal(before[1][i]["momentum_buffer"], s["momentum_buffer"]) for i, s in after[1].items()))
"""
