"""Small nets, dropout and first layers of bytes: who runs, what is counted, what fits on a CPU."""

from __future__ import annotations

import sys
import types
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from benchmarks import peers, whole_net
from benchmarks.measure import Effort, measure
from benchmarks.peers import EAGER, OURS
from fastmlp.costs import plans
from tests.benchmarks.stored import CEILINGS

_EFFORT = Effort(rounds=3, seconds=0.05, without=tuple(peers.MODES))
_FP32, _BF16 = torch.float32, torch.bfloat16


def test_all_do_the_same_work() -> None:
    """Ours and eager from the same weights: the same output, the same gradients."""
    case = whole_net.mlp((5, 16, 16, 3), 40, _FP32, training=True)
    factories = case.on("cpu")
    ours, eager = (factories[peer]().call() for peer in (OURS, EAGER))
    assert len(ours) == len(eager) == 7
    for a, b in zip(ours, eager):
        torch.testing.assert_close(a, b)


def test_bytes_of_a_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_net, "_EXAMPLES", 50)
    case = whole_net.quantized((8, 6, 5), _FP32)
    factories = case.on("cpu")
    for a, b in zip(factories[OURS]().call(), factories[EAGER]().call()):
        torch.testing.assert_close(a, b)
    assert case.work.bytes == 2 * (8 * 6 + 8 * 8) + 2 * 4 * (5 * 6 + 5) + 3 * 4 * 8 * 5
    assert whole_net.QUANTIZED in {case.group for case in whole_net.cases("cuda", 0.0)}


def test_the_issues_sizes_are_measured_on_a_gpu() -> None:
    labels = {case.label for case in whole_net.cases("cuda", 0.0)}
    assert {
        "radiance field 32-64 (x 4)-4, batch 262144",
        "distance field 3-256 (x 8)-1, batch 65536",
        "policy 24-64-64-8, batch 256",
        "tabular 100-128-128-1, batch 4096",
        "4096 x 1024 -> 1024",
    } <= labels


def test_on_a_cpu_what_is_too_long_is_left_out() -> None:
    assert list(whole_net.cases("cpu", 0.0)) == []
    few = [case.label for case in whole_net.cases("cpu", 0.02)]
    assert "policy 24-64-64-8, batch 256" in few
    assert not any("distance field" in label for label in few)
    assert len(few) < len(list(whole_net.cases("cpu", 2.0)))


def test_the_plans_are_the_cost_models() -> None:
    case = whole_net.mlp((64,) * 9, 1 << 16, _BF16, training=True)
    assert set(case.plans) == set(plans.PLANS)
    assert (case.plans["eager"].launches, case.plans["whole"].launches) == (15 + 7 + 2 * 8 + 8, 4)
    assert case.work in case.plans.values()
    row = measure(whole_net.mlp((5, 16, 3), 4, _FP32, training=True), "cpu", CEILINGS, _EFFORT)
    for work in row["plans"].values():
        assert work["floor"] >= work["launches"] * CEILINGS.launch
    wide = whole_net.mlp((64, 512, 64), 256, _BF16, training=False)
    assert set(wide.plans) == {"eager", "layers"}


class _Network(nn.Module):
    """As much of tiny-cuda-nn's as a run needs."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, inputs: int, outputs: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.made.append(config | {"inputs": inputs, "outputs": outputs})
        self.layer = nn.Linear(inputs, outputs, bias=False, dtype=torch.float16)
        self.dtype = torch.float16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dtype == torch.float32
        return self.layer(x.half())


def test_tiny_cuda_nn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fully fused where it is, by CUTLASS where it is not; absent with a hint."""
    with pytest.raises(peers.MissingPeerError, match="needs a GPU"):
        whole_net._tiny_cuda_nn((8, 64, 64, 3), torch.randn(4, 8), None)
    library = peers.library
    monkeypatch.setattr(
        peers, "library", lambda module, package, _: library(module, package, "cpu", gpu=False)
    )
    x, grad = torch.randn(4, 8, dtype=_BF16), torch.randn(4, 3, dtype=_BF16)
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    with pytest.raises(
        peers.MissingPeerError, match=r"pip install git\+https://github.com/NVlabs/tiny-cuda-nn"
    ):
        whole_net._tiny_cuda_nn((8, 64, 64, 3), x, None)
    monkeypatch.setitem(sys.modules, "tinycudann", types.SimpleNamespace(Network=_Network))
    assert not whole_net._tiny_cuda_nn((8, 64, 64, 3), x, None)().requires_grad
    grads = whole_net._tiny_cuda_nn((8, 256, 256, 256, 3), x, grad)()
    assert [g.shape for g in grads] == [(4, 8), (3, 8)]
    assert [(c["otype"], c["n_neurons"], c["n_hidden_layers"]) for c in _Network.made] == [
        ("FullyFusedMLP", 64, 2),
        ("CutlassMLP", 256, 3),
    ]
    with pytest.raises(peers.MissingPeerError, match="one width"):
        whole_net._tiny_cuda_nn((8, 64, 32, 3), x, None)


def test_jax_has_the_same_gradients() -> None:
    jax_peer = pytest.importorskip("benchmarks.jax_peer", reason="no JAX here", exc_type=ImportError)
    x, grad = torch.randn(6, 5), torch.randn(6, 3)
    torch.manual_seed(0)
    run = jax_peer.gradients((5, 16, 3), x, grad)
    assert run.result is not None
    params, of_input = run.result()
    torch.manual_seed(0)
    net, leaf = whole_net.net((5, 16, 3)), x.clone().requires_grad_()
    expected = torch.autograd.grad(net(leaf), [leaf, *net.parameters()], grad)
    found = [of_input, *(array for layer in params for array in layer)]
    for a, b in zip(found, expected):
        torch.testing.assert_close(torch.tensor(a.tolist()), b, rtol=1e-4, atol=1e-5)
