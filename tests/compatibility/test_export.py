"""torch.export, AOTInductor and ONNX: programs of torch's own ops, which run without fastmlp."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import fastmlp
from fastmlp import backends
from tests.processes import output_of

GROUP = "torch.compile and export"
_BATCH = Dim("batch", min=1, max=4096)


def network(device: str, dtype: torch.dtype = torch.float32) -> fastmlp.Sequential:
    """Everything that is fused, in evaluation."""
    net = fastmlp.Sequential(
        nn.Flatten(),
        nn.Linear(12, 9),
        nn.GELU(),
        nn.Dropout(0.3),
        fastmlp.LinearAct(9, 8, activation="silu"),
        fastmlp.MLP(8, [7, 3], activation_layer=nn.PReLU),
    )
    return net.to(device, dtype).eval()


def images(batch: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, 4, device=device, dtype=dtype)


@pytest.mark.few(3)
@pytest.mark.feature(GROUP, "torch.export with a dynamic batch, saved and loaded", kernels=False)
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool, backend: str, dtype: torch.dtype, device: str) -> None:
    net = network(device, dtype)
    x = images(6, device, dtype)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: _BATCH},), strict=strict)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called
    assert not any("fastmlp" in name for name in called), called
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (6, 1, 33):
        x = images(batch, device, dtype)
        tolerance = 1e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-5
        torch.testing.assert_close(loaded(x), net(x), rtol=tolerance, atol=tolerance)


class Step(nn.Module):
    """A net and its loss."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.net, self.loss = fastmlp.MLP(4, [5, 3]), loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.net(x), y)


@pytest.mark.few(1)
@pytest.mark.feature(GROUP, "torch.export of a training step's loss", dtype="float32", kernels=False)
@pytest.mark.parametrize("dim", [_BATCH, Dim.AUTO], ids=str)
def test_export_of_a_loss(dim: Any, backend: str, device: str) -> None:
    """Whatever its number of rows: on a CPU the ways to compute it differ from 1,024 rows on."""
    for loss in (
        fastmlp.CrossEntropyLoss(),
        fastmlp.CrossEntropyLoss(label_smoothing=0.1, z_loss=0.1),
        fastmlp.LinearCrossEntropyLoss(3, 2100),
    ):
        step = Step(loss).to(device)
        x, y = torch.randn(2001, 4, device=device), torch.randint(3, (2001,), device=device)
        program = torch.export.export(step, (x[:6], y[:6]), dynamic_shapes=({0: dim}, {0: dim}))
        for rows in (4, 2001):
            inputs = x[:rows], y[:rows]
            with backends.use("torch"):
                expected = step(*inputs)
            torch.testing.assert_close(program.module()(*inputs), expected, rtol=1e-5, atol=1e-5)


_RUNS_ALONE = """
import sys, torch
package, inputs, expected = sys.argv[1:]
assert "fastmlp" not in sys.modules
found = torch._inductor.aoti_load_package(package)(torch.load(inputs))
torch.testing.assert_close(found, torch.load(expected), rtol=1e-5, atol=1e-5)
assert "fastmlp" not in sys.modules
"""


@pytest.mark.deep
@pytest.mark.feature(
    GROUP, "AOTInductor, loaded by a process without fastmlp", dtype="float32", kernels=False
)
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor compiles C++")
def test_aot_inductor(device: str, tmp_path: Path) -> None:
    net, x = network(device), images(6, device)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: _BATCH},))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    x = images(33, device)
    torch.save(x, tmp_path / "x.pt")
    torch.save(net(x).detach(), tmp_path / "y.pt")
    output_of(_RUNS_ALONE, package, str(tmp_path / "x.pt"), str(tmp_path / "y.pt"), timeout=600)


@pytest.mark.deep
@pytest.mark.feature(GROUP, "ONNX with a dynamic batch, run by onnxruntime", dtype="float32", kernels=False)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx(backend: str, device: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = fastmlp.MLP(12, [9, 8, 3], activation_layer=nn.GELU, dropout=0.2).to(device).eval()
    path = tmp_path / "net.onnx"
    example = (torch.randn(6, 12, device=device),)
    torch.onnx.export(net, example, path, dynamo=True, dynamic_shapes=({0: _BATCH},), verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    for batch in (6, 1, 33):
        x = torch.randn(batch, 12, device=device)
        (found,) = session.run(None, {name: x.cpu().numpy()})
        np.testing.assert_allclose(found, net(x).detach().cpu().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.feature(
    GROUP, "ONNX by TorchScript's exporter, and torch.jit.trace", dtype="float32", kernels=False
)
@pytest.mark.filterwarnings("ignore")
def test_traces(backend: str, device: str, tmp_path: Path) -> None:
    net = network(device)
    x = images(6, device)
    traced: Any = torch.jit.trace(net, (x,))
    torch.jit.save(traced, tmp_path / "net.pt")
    loaded = torch.jit.load(tmp_path / "net.pt")
    torch.testing.assert_close(loaded(images(6, device) * 0 + x), net(x), rtol=1e-5, atol=1e-5)
    assert not any("fastmlp" in str(node.kind()) for node in traced.inlined_graph.nodes())
