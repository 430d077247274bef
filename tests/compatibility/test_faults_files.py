"""Checkpoint files that cannot be written, or should not be read."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import files as atomic
from fastmlp.training import (
    CheckpointWarning,
    Epoch,
    History,
    checkpoint,
    fit,
    load,
    load_into,
    position,
)
from tests.compatibility.page import Refusal
from tests.untouched import untouched


def net(width: int = 6) -> fastmlp.Sequential:
    torch.manual_seed(0)
    return fastmlp.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 5, generator=generator), torch.randint(3, (40,), generator=generator)


def run(
    path: Path, device: str, epochs: int = 3, model: nn.Module | None = None, **options: object
) -> History:
    """A short run; the model is a fresh one unless one is given."""
    options = {"batch_size": 8, "device": device, "checkpoint": path, **options}
    return fit(model or net(), data(), epochs=epochs, **options)  # type: ignore[arg-type]


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """A file system of one page at ``path``."""
    path.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(path)], capture_output=True
        ).returncode
    ):
        pytest.skip("no right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.feature("Faults", "full disk: a warning, training goes on", kernels=False)
def test_full_disk(tmp_path: Path, device: str) -> None:
    """A real one: nothing half-written stays on it, and training gives what it gives."""
    with small_disk(tmp_path / "disk"):
        model = net()
        with pytest.warns(
            CheckpointWarning, match="No space left on device; training goes on; no checkpoint was"
        ):
            run(tmp_path / "disk" / "run", device, model=model)
        assert os.listdir(tmp_path / "disk") == []
    expected = net()
    run(tmp_path / "run", device, model=expected)
    assert all(map(torch.equal, model.parameters(), expected.parameters()))


@pytest.mark.feature("Faults", "full disk: a warning, training goes on", kernels=False)
def test_a_disk_that_fills_up(tmp_path: Path, device: str) -> None:
    """The kernel refuses to write on in epoch 2; epoch 1's checkpoint stays, and later ones replace it."""
    path = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen: list[int] = []

    def fill(epoch: Epoch) -> None:
        if epoch.number == 3:
            seen.append(position(path).epoch)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000 if epoch.number == 2 else limits[0], limits[1]))

    try:
        with pytest.warns(CheckpointWarning, match=r"epoch 2: File too large; .*is of the end of epoch 1"):
            run(path, device, on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert seen == [1]
    assert position(path).epoch == 3
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.feature("Faults", "read-only directory: said before the training", kernels=False)
def test_read_only_directory(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch, refuses: Refusal
) -> None:
    """Root may write anywhere, so the error is made; a directory that cannot be made is real."""
    open_file = Path.open

    def refuse(self: Path, mode: str = "r", *rest: object, **options: object) -> object:
        if "x" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return open_file(self, mode, *rest, **options)  # type: ignore[call-overload]

    model = net()
    (tmp_path / "file").touch()
    with untouched(model), pytest.raises(OSError, match=r"Not a directory|File exists"):
        run(tmp_path / "file" / "run", device, model=model)
    monkeypatch.setattr(Path, "open", refuse)
    with untouched(model), refuses(OSError, "Read-only file system"):
        run(tmp_path / "run", device, model=model)


@pytest.mark.feature("Faults", "read-only directory: said before the training", kernels=False)
def test_it_becomes_read_only(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    replace = os.replace

    def failing(source: Path, target: Path) -> None:
        if path.exists():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.warns(CheckpointWarning, match="Read-only file system"):
        history = run(path, device)
    assert len(history.epochs) == 3
    assert position(path).epoch == 1


@pytest.mark.feature("Faults", "the checkpoint's directory vanishes: made again", kernels=False)
def test_vanished_directory(tmp_path: Path, device: str) -> None:
    path = tmp_path / "deep" / "run"
    run(path, device, on_epoch=lambda epoch: shutil.rmtree(path.parent))
    assert position(path).epoch == 3


def damages() -> dict[str, Callable[[bytes], bytes]]:
    def flip(where: float) -> Callable[[bytes], bytes]:
        def flipped(data: bytes) -> bytes:
            at = int(where * (len(data) - 1))
            return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

        return flipped

    found = {f"a bit flipped at {where:.0%}": flip(where) for where in (0, 0.003, 0.05, 0.5, 0.9, 1)}
    found |= {
        f"cut to {part:.1%}": (lambda p: lambda data: data[: int(p * len(data))])(part)
        for part in (0, 0.001, 0.1, 0.999)
    }
    found["bytes added"] = lambda data: data + b"\0"
    found["another kind of file"] = lambda data: b"\x80\x04pickle" * 10
    found["a number changed"] = lambda data: data.replace(b'\\"seed\\": 0', b'\\"seed\\": 1')
    return found


@pytest.mark.feature("Faults", "truncated or tampered checkpoint", kernels=False)
@pytest.mark.parametrize("damage", damages())
def test_damaged_checkpoint(damage: str, tmp_path: Path, device: str, refuses: Refusal) -> None:
    """Of a run or of a net: named, and nothing of it is loaded."""
    run(path := tmp_path / "run", device, epochs=1)
    checkpoint.save(net(), bare := tmp_path / "net")
    for file in (path, bare):
        content = damages()[damage](file.read_bytes())
        if damage != "a number changed" or file == path:
            assert content != file.read_bytes()
            file.write_bytes(content)
            with refuses(ValueError, f"{re.escape(str(file))}: expected a safetensors checkpoint"):
                load(file)
    model = net().to(device)
    with untouched(model), refuses(ValueError, f"{re.escape(str(path))}: expected a safetensors checkpoint"):
        run(path, device, model=model, resume=True)


@pytest.mark.feature("Faults", "truncated or tampered checkpoint", kernels=False)
def test_every_bit_is_guarded(tmp_path: Path, refuses: Refusal) -> None:
    checkpoint.save(nn.Linear(1, 1), path := tmp_path / "net", {"a": "b"})
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with refuses(ValueError, "expected a safetensors checkpoint"):
            load(path)


@pytest.mark.feature("Faults", "wrong-model checkpoint: says what differs, writes nothing", kernels=False)
def test_wrong_model(tmp_path: Path, device: str, refuses: Refusal) -> None:
    run(path := tmp_path / "run", device, epochs=1)
    for other, said in (
        (net(7), r"0\.weight is \(6, 5\) float32, here \(7, 5\) float32; 0\.bias is"),
        (net().double(), r"0\.weight is \(6, 5\) float32, here \(6, 5\) float64"),
        (net()[:1], r"2\.weight is unknown here; 2\.bias is unknown here"),
        (nn.Sequential(*net(), nn.Linear(3, 3)), r"3\.weight is missing; 3\.bias is missing"),
    ):
        other = other.to(device)
        if len(other) > 1 and other[0].weight.dtype == torch.float32:  # else the data does not fit either
            with untouched(other), refuses(ValueError, said):
                run(path, device, model=other, resume=True)
        with untouched(other), refuses(ValueError, said):
            load_into(other, path)


@pytest.mark.feature("Faults", "another run's checkpoint: refused by name", kernels=False)
def test_another_run(tmp_path: Path, device: str, refuses: Refusal) -> None:
    """Everything that decides on the bits, and nothing else."""
    run(path := tmp_path / "run", device, epochs=2)
    x, y = data()
    leaky = net()
    leaky[1] = nn.LeakyReLU(0.2)
    for options, said in (
        ({"lr": 0.2}, "lr was 0.1 and is 0.2"),
        ({"batch_size": 10}, "batch_size was 8 and is 10"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"dtype": torch.bfloat16}, "dtype was torch.float32 and is torch.bfloat16"),
        ({"engine": "eager"}, "engine was .* and is eager"),
        ({"model": nn.Sequential(*net())}, "net itself type was fastmlp.Sequential and is torch.Sequential"),
        (
            {"model": leaky},
            "net 1 type was torch.ReLU and is torch.LeakyReLU; net 1 negative_slope was None and is",
        ),
        ({"loss": fastmlp.CrossEntropyLoss(label_smoothing=0.1)}, "label_smoothing was 0.0 and is 0.1"),
        ({"loss": fastmlp.CrossEntropyLoss(torch.ones(3))}, "another run: loss"),
        ({"epochs": 1}, "epochs: it is of the end of epoch 2, and all are 1"),
        ({"schedule": "cosine"}, "schedule: the learning rates of the steps that are done were others"),
    ):
        with refuses(ValueError, said):
            run(path, device, resume=True, **options)  # type: ignore[arg-type]
    for other in ((x + 1, y), (x, y.flip(0)), (x[:39], y[:39])):
        with refuses(ValueError, "data"):
            fit(net(), other, epochs=3, batch_size=8, device=device, checkpoint=path, resume=True)
    model = net().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    with refuses(ValueError, "momentum was 0 and is 0.5"):
        run(path, device, model=model, resume=True, optimizer=optimizer)
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    with refuses(ValueError, "optimizer was torch.optim.sgd.SGD and is torch.optim.adam.Adam"):
        run(path, device, model=model, resume=True, optimizer=adam)
    part = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with refuses(ValueError, "parameters was"):
        run(path, device, model=model, resume=True, optimizer=part)
    with refuses(ValueError, "found a net alone"):
        checkpoint.save(net(), tmp_path / "net")
        run(tmp_path / "net", device, resume=True)


@pytest.mark.feature(
    "Faults", "a killed writer's leftovers are removed, a living one's are not", kernels=False
)
def test_leftovers(tmp_path: Path) -> None:
    (dead := tmp_path / "run.0123abcd.part").touch()
    (others := tmp_path / "run.notes.part").touch()
    with (living := tmp_path / "run.89abcdef.part").open("xb") as file:
        atomic._lock(file)
        atomic.prepare(tmp_path / "run")
    assert not dead.exists()
    assert living.exists()
    assert others.exists()
