"""`fastmlp.profile`: what it finds, that nothing runs otherwise for it, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastmlp
from fastmlp import backends, profiler_ranges
from fastmlp.costs.ceilings import Ceilings
from fastmlp.kernels.launch import record_launches
from fastmlp.profiling.trace import LAYER, WHOLE
from tests.reached import CEILINGS

GPU = torch.cuda.is_available()


class Net(nn.Module):
    """A module of a user's own: a body that is fused, and layers that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.body = fastmlp.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x)))


def classifier(device: str = "cpu") -> fastmlp.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    return fastmlp.Sequential(*layers).to(device)


def batch(device: str = "cpu") -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(20, 12, device=device), torch.randint(4, (20,), device=device)


def profiled(model: nn.Module, **options: Any) -> fastmlp.profile:
    return fastmlp.profile(model, ceilings=CEILINGS, **options)


def step_of(net: nn.Module) -> fastmlp.TrainStep:
    return fastmlp.TrainStep(net, fastmlp.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1))


def layers_of(prof: fastmlp.profile, name: str) -> set[str]:
    return {row.layer for row in prof.rows if row.name == name}


@pytest.mark.parametrize("backend", ["triton", "auto"])
@pytest.mark.parametrize("engine", ["engine", "autograd"])
def test_nothing_runs_otherwise(backend: str, engine: str, device: str) -> None:
    """The same executor, the same launches, the same bits: with a profile around it and without."""
    x, y = batch(device)
    results: list[list[Tensor]] = []
    made: list[tuple[str, list[str]]] = []
    for look in (False, True):
        net = classifier(device)
        step = step_of(net)
        with backends.use(backend), record_launches() as launches:

            def run(net: nn.Module = net, step: fastmlp.TrainStep = step) -> Tensor:
                if engine == "engine":
                    return step(x, y)
                loss = fastmlp.CrossEntropyLoss()(net(x), y)
                loss.backward()
                return loss.detach()

            if look:
                with profiled(net) as prof:
                    loss = run()
            else:
                loss = run()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        results.append([loss, *(p.detach() for p in net.parameters()), *gradients])
        made.append((step.engine, [launch.name for launch in launches]))
    assert made[0] == made[1]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    counted = sum(row.launches for row in prof.rows if row.name.endswith("_kernel"))
    if backend == "triton":
        assert counted == len(made[0][1]) > 0


def test_rows_of_our_kernels(device: str) -> None:
    net, (x, y) = classifier(device), batch(device)
    step = step_of(net)
    with backends.use("triton"), profiled(net) as prof:
        step(x, y)
        step(x, y)
    rows = {(row.name, row.layer): row for row in prof.rows if row.name.endswith("_kernel")}
    assert set(rows) == {
        ("linear_act_kernel", "0"),
        ("linear_act_kernel", "2"),
        ("head_kernel", "4"),
        ("linear_backward_kernel", "2"),
        ("update_kernel", "0..4"),
    }
    first = rows["linear_act_kernel", "0"]
    assert (first.launches, first.dtype) == (2, "float32")
    assert first.operations == 2 * 20 * 12 * 16
    assert first.bytes == 4 * (20 * 12 + 16 * 12 + 16 + 20 * 16)
    assert first.floor is not None
    assert first.floor > 0


@pytest.mark.skipif(GPU, reason="beside a GPU the ops on a CPU are no kernels once it worked")
def test_rows_of_the_cpu_engine() -> None:
    net, (x, y) = classifier(), batch()
    step = step_of(net)
    with profiled(net) as prof:
        step(x, y)
    assert step.engine == "cpu"
    assert layers_of(prof, "aten::addmm_") == {"0", "2", "4"}  # dW with the update
    assert layers_of(prof, "aten::mm") == {"2", "4"}  # dX, which the first layer has none of
    update = next(row for row in prof.rows if (row.name, row.layer) == ("aten::addmm_", "2"))
    assert update.operations == 2 * 20 * 16 * 16
    assert update.bytes == 4 * (20 * 16 + 20 * 16 + 2 * 16 * 16)
    assert prof.seconds > prof.busy > 0
    assert prof.busy == pytest.approx(sum(row.seconds for row in prof.rows), rel=1e-3)
    assert prof.floor == pytest.approx(sum(row.floor * row.launches for row in prof.rows if row.floor))
    assert str(prof).splitlines()[0].startswith("kernel")
    json.dumps(prof.to_json())


@pytest.mark.skipif(GPU, reason="beside a GPU the ops on a CPU are no kernels once it worked")
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_layers_of_a_users_module(backend: str) -> None:
    """Forward and, by autograd's sequence numbers, backward; the optimizer's ops under its own name."""
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with backends.use(backend), profiled(net) as prof:
        net(batch()[0]).sum().backward()
        optimizer.step()
    assert layers_of(prof, "aten::addmm") == {"body.0", "body.2", "head"}
    assert layers_of(prof, "aten::mm") == {"body.0", "body.2", "head"}
    assert layers_of(prof, "aten::native_layer_norm") == {"norm"}
    assert layers_of(prof, "aten::native_layer_norm_backward") == {"norm"}
    assert layers_of(prof, "aten::add_") == {"Optimizer.step#SGD.step"}


@pytest.mark.skipif(GPU, reason="beside a GPU the ops on a CPU are no kernels once it worked")
@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: net(x),
        lambda net, x: fastmlp.functional.mlp(x, [m.weight for m in net if hasattr(m, "weight")], None),
    ],
    ids=["modules", "functional"],
)
def test_layers_of_inference(call: Callable[[nn.Module, Tensor], Tensor]) -> None:
    net = classifier()
    with profiled(net) as prof, torch.inference_mode():
        call(net, batch()[0])
    assert {row.layer for row in prof.rows if row.operations} == {"0", "2", "4"}


def test_several_models_with_prefixes(device: str) -> None:
    one, other = classifier(device), classifier(device)
    prof = profiled(one).watch(other, "other")
    with backends.use("triton"), prof:
        one(batch(device)[0])
        other(batch(device)[0])
    layers = {row.layer for row in prof.rows if row.name.endswith("_kernel")}
    assert layers == {"0..4", "other.0..other.4"}


def test_the_trace_has_the_layers(tmp_path: Path, device: str) -> None:
    net, (x, y) = classifier(device), batch(device)
    step = step_of(net)
    path = tmp_path / "new" / "trace.json"
    with backends.use("triton"), profiled(net, trace=path):
        step(x, y)
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    assert {
        WHOLE,
        *(f"{LAYER}{i}" for i in (0, 2, 4)),
        f"{LAYER}0..4",
        "head_kernel",
        "update_kernel",
    } <= names
    inside = {e["name"]: (e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") == "user_annotation"}
    layer, launch = inside[f"{LAYER}4"], inside["head_kernel"]
    assert layer[0] <= launch[0] <= launch[1] <= layer[1]


def test_memory(tmp_path: Path, device: str) -> None:
    path, net = tmp_path / "memory", classifier(device)
    with profiled(net, memory=path):
        big = torch.zeros(1 << 18, device=device)
        net(batch(device)[0])
        del big
    if GPU:
        assert {"segments", "device_traces"} <= set(pickle.loads(path.read_bytes()))
        return
    found = json.loads(path.read_text())
    assert found["peak"] >= 1 << 20
    made, freed = (next(e for e in found["events"] if e["bytes"] == sign << 20) for sign in (1, -1))
    assert made["address"] == freed["address"]
    assert made["op"] == "aten::empty"
    assert {"0", "2", "4"} <= {event["layer"] for event in found["events"]}
    assert [e["held"] for e in found["events"]][-1] == sum(e["bytes"] for e in found["events"])


def test_compiled_code_is_left_alone(device: str) -> None:
    """No range is in its graph, and a profile makes nothing compile again."""
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net = classifier(device)
    x = batch(device)[0]
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    before = compiled(x)
    with profiled(net) as prof:
        during = compiled(x)
    assert len(graphs) == 1
    assert torch.equal(before, during)
    with profiled(net):
        torch.compile(classifier(device), backend=backend, fullgraph=True)(x)
    assert len(graphs) == 2
    assert not any("profiler" in str(node.target) for graph in graphs for node in graph.graph.nodes)
    assert prof.rows
    torch._dynamo.reset()


def test_everything_is_as_before(device: str) -> None:
    call = nn.Module.__call__
    net = classifier(device)
    with profiled(net):
        assert nn.Module.__call__ is not call
    with pytest.raises(KeyError), profiled(net):
        raise KeyError
    assert nn.Module.__call__ is call
    assert profiler_ranges.set_opener(None) is None
    layers = [1, 2]
    assert profiler_ranges.each(layers, lambda _: None) is layers
    with profiled(net) as prof:  # nor is the next one refused
        net(batch(device)[0])
    with prof:  # and one can be used again
        pass
    assert not [row for row in prof.rows if row.layer]


def test_ranges_alone(device: str) -> None:
    """For another profiler around the process: torch's does not run."""
    net = classifier(device)
    opened: list[str] = []
    with fastmlp.profile(net, kernels=False) as prof:
        assert not torch.autograd._profiler_enabled()
        record = torch.profiler.record_function

        class Recording(record):  # type: ignore[misc, valid-type]
            def __init__(self, name: str) -> None:
                opened.append(name)
                super().__init__(name)

        torch.profiler.record_function = Recording  # type: ignore[misc]
        try:
            with torch.no_grad():
                net(batch(device)[0])
        finally:
            torch.profiler.record_function = record  # type: ignore[misc]
    assert any(name.startswith(LAYER) for name in opened)
    with pytest.raises(RuntimeError, match="nothing is profiled"):
        _ = prof.rows


def test_a_graph_captured_in_the_warm_up_is_known() -> None:
    """Here the launches alone: only a GPU has graphs."""
    net, (x, y) = classifier("cuda" if GPU else "cpu"), batch("cuda" if GPU else "cpu")
    prof = profiled(net)
    with backends.use("triton"), prof.warm_up():
        step_of(net)(x, y)
    assert [one.name for one in prof._captured][-1] == "update_kernel"
    assert prof._captured[0].layer == "0"


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got list"):
        fastmlp.profile([nn.Linear(2, 2)])  # type: ignore[arg-type]
    with pytest.raises(IsADirectoryError):
        fastmlp.profile(trace=tmp_path)
    with pytest.raises(ValueError, match="trace: expected kernels=True"):
        fastmlp.profile(trace=tmp_path / "x", kernels=False)
    with pytest.raises(RuntimeError, match="nothing is profiled yet"):
        _ = fastmlp.profile().rows
    with (
        fastmlp.profile() as prof,
        pytest.raises(RuntimeError, match="another"),
        fastmlp.profile(),
    ):
        pass
    assert prof.found.kernels == []


def test_ceilings_are_given_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmlp.profiling import session

    asked: list[torch.device] = []

    def measured(device: torch.device) -> Ceilings:
        asked.append(device)
        return CEILINGS

    monkeypatch.setattr(session, "ceilings_of", measured)
    with fastmlp.profile() as prof:
        torch.ones(3).add_(1)
    assert not asked  # only a look at shares needs them
    assert prof.rows is prof.rows
    assert len(asked) == 1


def test_protons_scopes_have_our_metrics(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """As Triton's profiler takes them; it needs a GPU itself."""
    opened: list[tuple[str, Any]] = []

    def scope(name: str, metrics: Any) -> contextlib.AbstractContextManager[None]:
        opened.append((name, metrics))
        return contextlib.nullcontext()

    on = SimpleNamespace(flags=SimpleNamespace(profiling_on=True))
    monkeypatch.setitem(sys.modules, "triton.profiler", SimpleNamespace(flags=on, scope=scope))
    net = classifier(device)
    with backends.use("triton"), fastmlp.profile(net, kernels=False):
        fastmlp.functional.linear_act(batch(device)[0], net[0].weight, net[0].bias)
    moved = 4 * (20 * 12 + 16 * 12 + 16 + 20 * 16)
    assert opened == [
        (WHOLE, None),
        (f"{LAYER}0", None),
        ("linear_act_kernel", {"bytes": moved, "flops32": 2 * 20 * 12 * 16}),
    ]
