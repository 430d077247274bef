"""Checkpoints that somebody made up, their checksum right: a ValueError before anything is written.

Parts of real ones are replaced, dropped and doubled: some of them, with ``FASTMLP_FUZZ=deep`` all.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

import fastmlp
from fastmlp.training import TrainingError, checkpoint, fit, load, load_into, position
from tests.fuzzing import DEEP

_DEEP = "nested deeply"  # what stands for JSON that is
_VALUES = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        7,
        2**31,
        2**63,
        10**400,
        0.5,
        -0.5,
        1e-300,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "cpu", "graph", "net.0.weight", "\x1b[31m", [], {}, [0, 0], ["x"], {"x": 1}, {"tensor": "x"}),
    *({"dict": []}, {"dict": [["x", 1]]}, {"list": [1]}, {"tuple": 5}, {"tensor": "net.0.bias"}, _DEEP),
)


class LeftError(Exception):
    """A run that ends amid an epoch."""


def outcome(start: Start, path: Path) -> str:
    """What is raised where a run goes on from ``path``; "" where it does, whatever becomes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for read in (load, position):
                with contextlib.suppress(ValueError):
                    read(path)
            start.fit(path, resume=True, every=0)
        except TrainingError:  # a rate of 1e300 is one
            return ""
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


class Start:
    """A run as it begins, the same each time; "eager" with all that has a state."""

    def __init__(self, kind: str) -> None:
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)]
        if kind == "eager":
            layers[1:2] = [nn.BatchNorm1d(3), nn.Dropout(0.4)]
        self.net = fastmlp.Sequential(*layers)
        self.loss = nn.CrossEntropyLoss(torch.ones(3))
        parameters = self.net.parameters()
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        if kind == "eager":
            first, *others = self.net.parameters()
            groups = [{"params": [first], "lr": 0.02}, {"params": others}]
            self.optimizer = torch.optim.AdamW(groups, lr=0.01, amsgrad=True)
        self.dtype = torch.float16 if kind == "eager" else torch.float32

    def fit(self, path: Path, **options: Any) -> fastmlp.History:
        generator = torch.Generator().manual_seed(1)
        x, y = torch.randn(10, 4, generator=generator), torch.randint(3, (10,), generator=generator)
        return fit(
            self.net, (x, y), (x, y), epochs=3, batch_size=4, optimizer=self.optimizer, loss=self.loss,
            dtype=self.dtype, checkpoint=path, device="cpu", **options,
        )  # fmt: skip

    def state(self) -> list[Any]:
        """Everything that a refused checkpoint leaves as it is."""
        modules = self.net.state_dict(), self.loss.state_dict()
        return copy.deepcopy([*modules, self.optimizer.state_dict(), torch.get_rng_state()])


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON."""
    if path:
        yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changes(content: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[tuple[str, Callable[..., None]]]:
    """What a forger may do, and its name; each changes copies of both in place."""

    def replaced(place: tuple[Any, ...], value: Any) -> Callable[..., None]:
        def change(content: Any, _: Any) -> None:
            *way, last = place
            for key in way:
                content = content[key]
            if value is ...:
                del content[last]
            elif value == "twice":
                content[last] = [content[last], content[last]]
                if isinstance(content, list):
                    content[last : last + 1] = content[last]
            else:
                content[last] = value

        return change

    for place in places(content):
        for value in (..., "twice", *_VALUES):
            yield f"{'.'.join(map(str, place))} = {value}", replaced(place, value)

    def tensor(name: str, other: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        return lambda _, tensors: tensors.update({name: other(tensors[name])})

    for name in tensors:
        others: dict[str, Callable[[Tensor], Tensor]] = {
            "float64": Tensor.double,
            "float16": Tensor.half,
            "bool": Tensor.bool,
            "longer": lambda t: t.repeat([2] * t.dim()) if t.dim() else t.reshape(1),
            "empty": lambda t: t.flatten()[:0],
            "more dimensions": lambda t: t[None],
            "nan": lambda t: t * float("nan"),
            "negative": lambda t: -1 - t.double().abs().to(t.dtype),
            "huge": lambda t: torch.full_like(
                t, 255 if t.dtype == torch.uint8 else 1e30 if t.is_floating_point() else 1 << 60
            ),
        }
        for what, other in others.items():
            yield f"{name}: {what}", tensor(name, other)
        yield f"{name}: missing", lambda _, tensors, name=name: tensors.pop(name)
    yield "a tensor more", lambda _, tensors: tensors.update(more=torch.ones(2))


def seal(path: Path, content: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write what `checkpoint.write` would, JSON that nobody can write included."""
    text = json.dumps({"sha256": "0" * 64, **content}).replace(json.dumps(_DEEP), "[" * 60_000 + "]" * 60_000)
    data = to_bytes({name: tensor.contiguous() for name, tensor in tensors.items()}, {"fastmlp": text})
    start, end, digest = checkpoint._checksum(data)
    path.write_bytes(data[:start] + digest.encode() + data[end:])


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["cpu", "eager"])
@pytest.mark.usefixtures("no_fsync")
def test_any_part_is_another(kind: str, tmp_path: Path) -> None:
    """A ValueError that names the file, everything as it was; or the run goes on to its end."""
    path, forged, steps = tmp_path / "run", tmp_path / "forged", iter(range(5))

    def leave(_: int) -> None:
        if next(steps, None) is None:
            raise LeftError

    with pytest.raises(LeftError):
        Start(kind).fit(path, every=0, every_steps=5 if kind == "eager" else 3, on_batch=leave)
    tensors, content = checkpoint.read(path)
    del content["sha256"]
    chance, start, found = random.Random(0), Start(kind), [*changes(content, tensors)]
    tried = found if DEEP else chance.sample(found, 80)
    for name, change in [("nothing", lambda *_: None), *tried]:
        mine = copy.deepcopy(content), dict(tensors)
        change(*mine)
        seal(forged, *mine)
        before = start.state()
        refused = outcome(start, forged)
        if refused:
            assert name != "nothing"
            assert refused.startswith(f"ValueError: {forged}"), f"{name}: {refused}"
            assert refused.isprintable(), name
            assert same(start.state(), before), name
        else:
            start = Start(kind)


def header(tensor: object = None, text: object = "", more: str = ', "metadata": {}') -> dict[str, Any]:
    """Of a safetensors file with a checksum of ours."""
    ours = text or '{"sha256": "' + "0" * 64 + '"' + more + "}"
    return {"__metadata__": {"fastmlp": ours}} | ({} if tensor is None else {"a": tensor})


def about(dtype: object = "F32", shape: object = (0,), offsets: object = (0, 0)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "made_up",
    [
        *(header(about(dtype)) for dtype in ("F4", "X", 5, None)),
        *(header(about(shape=shape)) for shape in ("x", [1], [-1], [0, 2**62, 2**62], [2**63], [1.5], [[0]])),
        *(header(about(offsets=offsets)) for offsets in ("x", [0], [0, 4], [4, 0], [-4, 0], [0, 2**63])),
        *(header([]), header("x"), {"__metadata__": [header()["__metadata__"]["fastmlp"]]}),
        *(header(more=f', "metadata": {value}') for value in ("1", "[]", "null", "{", "9" * 6000)),
        *(header(more=more) for more in ("", ', "metadata": {"a": ' + "[" * 60_000 + "]" * 60_000 + "}")),
        *(
            header(more=f', "metadata": {{}}, "state": {state}')
            for state in ("5", "[]", "{}", '{"list": [5]}')
        ),
    ],
)
def test_headers(made_up: dict[str, Any], tmp_path: Path) -> None:
    """What is left of a net that was saved alone."""
    text = json.dumps(made_up, separators=(",", ":")).encode()
    data = len(text).to_bytes(8, "little") + text
    with contextlib.suppress(ValueError):  # there is none where it has to be: refused for that
        start, end, digest = checkpoint._checksum(data)
        data = data[:start] + digest.encode() + data[end:]
    (path := tmp_path / "net").write_bytes(data)
    for read in (load, lambda path: load_into(nn.LazyLinear(3), path)):
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: expected a"):
            read(path)


class Refuses(torch.optim.SGD):
    """Whose state has more to it than torch's."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        raise KeyError("mine")


def test_an_optimizer_that_refuses(tmp_path: Path) -> None:
    """Nobody knows what a state of somebody's own has to be: it is asked first."""
    Start("cpu").fit(tmp_path / "run", every=1)
    start = Start("cpu")
    start.optimizer.__class__ = Refuses
    (tmp_path / "other").touch()
    before = start.state()
    with pytest.raises(ValueError, match="run: "):
        start.fit(tmp_path / "run", resume=True)
    assert same(start.state(), before)
