"""Data that stay on the host give the bits of the same data on the device, and take no memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import fastmlp
from fastmlp.training import History, TrainingError, evaluate, fit, inputs, load
from tests.processes import output_of
from tests.untouched import untouched

ROWS, TEST = 83, 30


def net(dropout: float = 0.0) -> fastmlp.Sequential:
    torch.manual_seed(0)
    return fastmlp.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Dropout(dropout), nn.Linear(9, 4))


def data(count: int = ROWS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(4, (count,), generator=generator)
    x = torch.randn(count, 12, generator=generator)
    return (x.clamp(0, 1) * 255).to(dtype) if dtype == torch.uint8 else x.to(dtype), y


class Listed(Dataset[Any]):
    """A map-style data set that knows how often it was read."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y, self.reads = x, y, 0

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        self.reads += 1
        return self.x[i].numpy(), int(self.y[i])


class Stream(IterableDataset[Any]):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __iter__(self) -> Any:
        return iter(list(zip(self.x, self.y)))


def run(train: Any, device: str, test: Any = None, dropout: float = 0.0, **options: Any) -> tuple[Any, ...]:
    """The parameters, and what each epoch gave."""
    model = net(dropout).to(device)
    options = {"engine": "fused" if not dropout else "eager", "epochs": 2, "batch_size": 16, **options}
    history = fit(model, train, test, device=device, schedule="cosine", seed=5, **options)
    return [p.detach().cpu() for p in model.parameters()], results(history)


def results(history: History) -> list[tuple[Any, ...]]:
    return [(e.train_loss, e.train_accuracy, e.test_loss, e.test_accuracy) for e in history.epochs]


def is_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[1] == other[1] and all(map(torch.equal, one[0], other[0]))


KINDS: dict[str, Callable[[Tensor, Tensor, Path], Any]] = {
    "arrays": lambda x, y, path: (x.numpy(), y.numpy().astype(np.int32)),
    "wide arrays": lambda x, y, path: (x.double().numpy(), y.numpy().astype(np.uint8)),
    "memmaps": lambda x, y, path: (mapped(x, path / f"x{len(y)}"), mapped(y, path / f"y{len(y)}")),
    "an array and a tensor": lambda x, y, path: (x.numpy(), y),
    "a TensorDataset": lambda x, y, path: TensorDataset(x, y),
    "a Dataset": lambda x, y, path: Listed(x, y),
}


def mapped(tensor: Tensor, path: Path) -> np.ndarray:
    np.save(path, tensor.numpy())
    return np.load(path.with_suffix(".npy"), mmap_mode="r")


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["streamed", "resident"])
@pytest.mark.parametrize("dropout", [0.0, 0.3], ids=["fused", "dropout"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_bits_of_tensors(
    kind: str, dropout: float, limit: int, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever holds the data and wherever it is; the test set too."""
    expected = run(data(), device, data(TEST), dropout)
    monkeypatch.setattr(inputs, "RESIDENT", limit)
    make = KINDS[kind]
    assert is_same(run(make(*data(), tmp_path), device, make(*data(TEST), tmp_path), dropout), expected)


def test_pixels(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """uint8 stays uint8 until the device."""
    x, y = data(dtype=torch.uint8)
    expected = run((x, y), device, (x, y))
    monkeypatch.setattr(inputs, "RESIDENT", 0)
    assert is_same(run((x.numpy(), y.numpy()), device, (x.numpy(), y.numpy())), expected)


def test_small_data_sets_are_read_once(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Listed(*data())
    run(listed, device, epochs=3)
    assert listed.reads < ROWS + 8
    monkeypatch.setattr(inputs, "RESIDENT", 0)
    run(listed, device, epochs=3)
    assert listed.reads > 4 * ROWS


def test_random_examples_are_drawn_anew(device: str) -> None:
    """A data set that augments is never kept, small as it is."""

    class Noisy(Listed):
        def __getitem__(self, i: int) -> tuple[Any, Any]:
            self.reads += 1
            return self.x[i] + torch.randn(12), int(self.y[i])

    noisy = Noisy(*data())
    run(noisy, device, epochs=3)
    assert noisy.reads >= 3 * ROWS
    with pytest.raises(ValueError, match="checkpoint: expected None, as train may give other examples"):
        run(noisy, device, checkpoint="never")


@pytest.mark.parametrize("streamed_first", [True, False])
def test_resume(streamed_first: bool, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within an epoch, to the bits; and a run may be streamed and resident in turns."""
    expected = run(data(), device, epochs=3)
    x, y = data()
    calls = 0

    def stop(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:  # in the second epoch
            raise ZeroDivisionError

    options: dict[str, Any] = {"epochs": 3, "checkpoint": tmp_path / "run"}
    monkeypatch.setattr(inputs, "RESIDENT", 0 if streamed_first else 1 << 30)
    with pytest.raises(ZeroDivisionError):
        run((x.numpy(), y.numpy()), device, every_steps=4, on_batch=stop, **options)
    monkeypatch.setattr(inputs, "RESIDENT", 1 << 30 if streamed_first else 0)
    assert is_same(run((x.numpy(), y.numpy()), device, resume=True, **options), expected)
    with pytest.raises(ValueError, match="the checkpoint of another run: data's content is another"):
        run((x.numpy() + 1, y.numpy()), device, resume=True, **options)


def test_resume_what_is_converted(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole features, and targets without a dimension of their own: the same data wherever they are."""
    x, y = data(dtype=torch.int16)
    pair, options = (x.numpy(), y.double().numpy()), {"checkpoint": tmp_path / "run"}

    def regress(epochs: int, **more: Any) -> list[Tensor]:
        torch.manual_seed(0)
        model = fastmlp.MLP(12, [4, 1], device=device)
        fit(model, pair, epochs=epochs, batch_size=16, lr=1e-3, loss=nn.MSELoss(), engine="fused", **more)
        return [p.detach() for p in model.parameters()]

    expected = regress(2)
    for streamed_first in (True, False):
        monkeypatch.setattr(inputs, "RESIDENT", 0 if streamed_first else 1 << 30)
        regress(1, **options)
        monkeypatch.setattr(inputs, "RESIDENT", 1 << 30 if streamed_first else 0)
        assert all(map(torch.equal, regress(2, resume=True, **options), expected))


def test_resume_a_streamed_data_set(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(data(), device, epochs=3)
    monkeypatch.setattr(inputs, "RESIDENT", 0)
    options: dict[str, Any] = {"epochs": 3, "checkpoint": tmp_path / "run"}
    run(Listed(*data()), device, **options)
    assert load(tmp_path / "run")[1]["epoch"] == 3
    x, y = data()
    with pytest.raises(ValueError, match="data's content is another"):
        run(Listed(x + 1, y), device, resume=True, **options)
    assert is_same(run(Listed(x, y), device, resume=True, **options), expected)


def by_hand(loader: Any, device: str, epochs: int) -> tuple[Any, ...]:
    """A loop with torch's own modules over a DataLoader."""
    model = net().to(device)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.1), fastmlp.CrossEntropyLoss()
    losses = []
    for _ in range(epochs):
        total = count = 0.0
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            value = loss(model(x), y)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total, count = total + value.item() * len(y), count + len(y)
        losses.append(total / count)
    return [p.detach().cpu() for p in model.parameters()], losses


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loaders_own_order(workers: int, device: str) -> None:
    """Its shuffling, its batches, its last one left out: as a loop by hand over it."""

    def loader() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(7)
        dataset = TensorDataset(*data())
        return DataLoader(
            dataset, batch_size=16, shuffle=True, drop_last=True, generator=generator, num_workers=workers
        )

    expected = by_hand(loader(), device, 2)
    model = net().to(device)
    seen: list[int] = []
    history = fit(model, loader(), epochs=2, device=device, engine="eager", on_batch=seen.append)
    assert seen == [16] * 10
    assert [e.train_loss for e in history.epochs] == pytest.approx(expected[1], rel=1e-6)
    assert all(torch.equal(p.cpu(), q) for p, q in zip(model.parameters(), expected[0]))


def test_iterable_data_sets(device: str) -> None:
    """Without a length: in batches of batch_size, as they come; as a test set too."""
    stream = Stream(*data())
    model = net().to(device)
    seen: list[int] = []
    history = fit(model, stream, stream, epochs=2, batch_size=32, device=device, on_batch=seen.append)
    assert seen == [32, 32, 19] * 2
    expected = by_hand(DataLoader(Stream(*data()), batch_size=32), device, 2)
    for ours, theirs in zip(model.parameters(), expected[0]):
        torch.testing.assert_close(ours.detach().cpu(), theirs)
    score = evaluate(model, data(), fastmlp.CrossEntropyLoss())
    assert history.epochs[-1].test_accuracy == score.accuracy
    assert history.epochs[-1].test_loss == pytest.approx(score.loss)
    with pytest.raises(ValueError, match="schedule: expected None for data of unknown length"):
        fit(net(), stream, schedule="linear")
    with pytest.raises(ValueError, match="checkpoint: expected None, as train may give"):
        fit(net(), stream, checkpoint="never")


def test_a_wrong_length(device: str) -> None:
    class Liar(Stream):
        promise = 32

        def __len__(self) -> int:
            return self.promise

    liar = Liar(*data())
    with pytest.raises(TrainingError, match="train: its length is 2 batches, but it gave more"):
        fit(net(), liar, batch_size=16, device=device)
    liar.promise = 200
    with pytest.raises(TrainingError, match="train: expected 13 batches, it gave 6"):
        fit(net(), liar, batch_size=16, device=device)


class Changing(Listed):
    """A data set whose length is another whenever it is asked for."""

    step, lengths = 1, 0

    def __len__(self) -> int:
        self.lengths += 1
        return len(self.y) + self.step * (self.lengths - 1)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        if i >= len(self.y) + min(self.step, 0):
            raise IndexError(i)
        return super().__getitem__(i)


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["streamed", "resident"])
def test_a_length_that_changes(limit: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added meanwhile takes no part, and is not made up; what is gone is missed."""
    monkeypatch.setattr(inputs, "RESIDENT", limit)
    expected = run(data(), device)
    assert is_same(run(Changing(*data()), device), expected)
    shrinking = Changing(*data())
    shrinking.step = -1
    with pytest.raises(ValueError, match="train: its length was 83, and now it is 8"):
        run(shrinking, device)


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["streamed", "resident"])
@pytest.mark.parametrize("chunk", [1, 1024])
def test_examples_of_several_kinds(
    chunk: int, limit: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another shape or dtype than those before: never broadcast, never cut off."""
    monkeypatch.setattr(inputs, "RESIDENT", limit)
    monkeypatch.setattr(inputs, "_CHUNK", chunk)

    class Ragged(Listed):
        def __getitem__(self, i: int) -> tuple[Any, Any]:
            x, y = super().__getitem__(i)
            return (x if i < 40 else x[:1]), y

    said = r"train: expected (examples of one shape|features \(N, 12\))"
    with pytest.raises(ValueError, match=said):
        run(Ragged(*data()), device, dropout=0.5, batch_size=chunk)
    if limit and chunk == 1:

        class Mixed(Listed):
            def __getitem__(self, i: int) -> tuple[Any, Any]:
                x, y = super().__getitem__(i)
                return x, (y if i < 40 else y + 0.5)

        with pytest.raises(
            ValueError, match=r"one shape and dtype, got \(\) torch\.int64 and \(\) torch\.float32"
        ):
            run(Mixed(*data()), device)


def test_bad_batches(device: str) -> None:
    """Said before the step that would learn from them."""
    x, y = data()
    y[40] = 4
    model = net().to(device)
    with untouched(model), pytest.raises(ValueError, match="train: expected labels from 0 to 3, got 0 to 4"):
        fit(model, DataLoader(TensorDataset(x, y), batch_size=83), device=device)
    with pytest.raises(ValueError, match="batch_size: expected None, as the DataLoader has 8, got 4"):
        fit(model, DataLoader(TensorDataset(x, y), batch_size=8), batch_size=4)
    with pytest.raises(ValueError, match="train: expected at least one example, got none"):
        fit(model, DataLoader(TensorDataset(x, y), batch_size=100, drop_last=True))
    with pytest.raises(
        ValueError, match="engine: 'graph' cannot run this: train comes from the host batch by"
    ):
        fit(model, Stream(x, y), engine="graph")


@pytest.mark.deep
def test_a_file_larger_than_memory(tmp_path: Path) -> None:
    """A sparse file of 256 MiB, of which 16 MiB may be mapped: the process grows by that and some batches."""
    printed = output_of(_LARGE, str(tmp_path / "x.npy"), timeout=300, OMP_NUM_THREADS="1")
    assert float(printed) < 64


_LARGE = """
import resource, sys, numpy, torch, fastmlp
from fastmlp.training import inputs, sources
from torch import nn

inputs.RESIDENT, sources._MAPPED = 0, 2**24
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # in MiB, on Linux
device = "cuda" if torch.cuda.is_available() else "cpu"
rows = 2**16
x = numpy.lib.format.open_memmap(sys.argv[1], "w+", numpy.float32, (rows, 1024))
y = numpy.zeros(rows, numpy.int64)
net = fastmlp.Sequential(nn.Linear(1024, 4), nn.ReLU(), nn.Linear(4, 2))
options = {"epochs": 1, "batch_size": 2048, "device": device}
fastmlp.fit(net, (x[:4096], y[:4096]), (x[:4096], y[:4096]), **options)
before = peak()
fastmlp.fit(net, (x, y), (x, y), **options)
print(peak() - before)
"""
