"""Which loop runs: by name, by what can, and by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import fastmlp
from fastmlp import backends
from fastmlp.engine import choose
from fastmlp.engine.base import Loop
from fastmlp.kernels.tiles import cache


def setup(device: str, *layers: nn.Module) -> tuple[Any, ...]:
    net = nn.Sequential(*(layers or (nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(50, 6, device=device), torch.randint(3, (50,), device=device)
    return net, nn.CrossEntropyLoss(), optimizer, x, y, 16, torch.Generator(device).manual_seed(0)


@pytest.mark.parametrize("engine", ["eager", "fused", "persistent"])
def test_by_name(engine: str, device: str) -> None:
    with backends.use("triton"):
        assert choose.loop(engine, choose.Job(*setup(device), torch.float32)).name == engine


def test_auto_on_a_cpu() -> None:
    assert choose.loop("auto", choose.Job(*setup("cpu"), torch.float32)).name == "cpu"
    assert choose.loop("fused", choose.Job(*setup("cpu"), torch.float32)).name == "cpu"
    with backends.use("torch"):
        assert choose.loop("auto", choose.Job(*setup("cpu"), torch.float32)).name == "eager"
    norm = setup("cpu", nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    assert choose.loop("auto", choose.Job(*norm, torch.float32)).name == "eager"


def test_what_cannot_run_says_why() -> None:
    with pytest.raises(ValueError, match="engine: expected one of auto, eager, fused, graph, persistent"):
        choose.loop("fastest", choose.Job(*setup("cpu"), torch.float32))
    with pytest.raises(ValueError, match=r"engine: 'graph' cannot run this: it needs a GPU"):
        choose.loop("graph", choose.Job(*setup("cpu"), torch.float32))
    with pytest.raises(ValueError, match=r"engine: 'persistent' cannot run this: it needs a GPU"):
        choose.loop("persistent", choose.Job(*setup("cpu"), torch.float32))
    norm = setup("cpu", nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"engine: 'fused' cannot run this: .*no single chain"):
        choose.loop("fused", choose.Job(*norm, torch.float32))


class Sleeper(Loop):
    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds, self.epochs = name, seconds, 0

    def epoch(
        self, factors: torch.Tensor, on_batch: Callable[[int], None] | None = None
    ) -> tuple[float, float]:
        self.epochs += 1
        time.sleep(self.seconds)
        return 0.0, 0.0


def read_only(*_: object) -> None:
    raise OSError("Read-only file system")


def test_measured_once_and_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """On copies: the parameters and the generator stay as they were."""
    monkeypatch.setenv("FASTMLP_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some GPU")
    made: list[Sleeper] = []

    def variants(found: Any, job: Any) -> dict[str, Any]:
        def make(name: str, seconds: float) -> Any:
            def build() -> Loop:
                made.append(Sleeper(name, seconds))
                return made[-1]

            return build

        return {"graph": make("graph", 0.02), "persistent": make("persistent", 0.0)}

    monkeypatch.setattr(choose, "variants", variants)
    monkeypatch.setattr(choose, "whole_epoch_problem", lambda engine, found: None)
    arguments = setup("cpu")
    start = [p.detach().clone() for p in arguments[0].parameters()]
    state = arguments[-1].get_state()
    assert choose.loop("auto", choose.Job(*arguments, torch.float32)).name == "persistent"
    assert [loop.name for loop in made] == ["graph", "persistent", "persistent"]
    assert made[0].epochs > 1
    assert all(torch.equal(p, q) for p, q in zip(arguments[0].parameters(), start))
    assert torch.equal(arguments[-1].get_state(), state)
    (entry,) = cache.read("engines.json").values()
    assert entry["fastest"] == "persistent"
    made.clear()
    assert choose.loop("auto", choose.Job(*arguments, torch.float32)).name == "persistent"
    assert [loop.name for loop in made] == ["persistent"]  # nothing is measured again
    (key,) = cache.read("engines.json")
    for damaged in ([1], "graph", {"fastest": ["graph"]}, {}):
        cache.add("engines.json", {key: damaged})
        with pytest.warns(UserWarning, match=r"engines\.json: ignored .*, not an engine"):
            assert choose.loop("auto", choose.Job(*arguments, torch.float32)).name == "persistent"
    cache.path("engines.json").unlink()
    monkeypatch.setattr(cache, "add", read_only)
    assert choose.loop("auto", choose.Job(*arguments, torch.float32)).name == "persistent"
    assert choose.loop("graph", choose.Job(*arguments, torch.float32)).name == "graph"


def test_fit_reports_the_engine() -> None:
    net, loss, optimizer, x, y, batch, _ = setup("cpu")
    history = fastmlp.fit(net, (x, y), epochs=1, batch_size=batch, loss=loss, optimizer=optimizer)
    assert history.engine == "cpu"
