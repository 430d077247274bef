"""Which backend runs, and why."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import fastmlp
from fastmlp import backends


def test_cpu_tensors_go_to_aten() -> None:
    choice = backends.choose(torch.ones(1))
    assert choice.backend is None
    assert "off the GPU" in choice.reason


def test_use_forces_and_restores(device: str) -> None:
    tensor = torch.ones(1, device=device)
    with backends.use("triton"):
        choice = backends.choose(tensor)
        assert choice.backend is not None
        assert choice.backend.name == "triton"
    with backends.use("torch"):
        assert backends.choose(tensor).backend is None
    assert backends.requested() == "auto"


def test_blocks_that_overlap_as_those_of_threads_do() -> None:
    """The last one counts, and what was asked for before all of them comes back."""
    first, second = backends.use("torch"), backends.use("triton")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert backends.requested() == "triton"
    second.__exit__(None, None, None)
    assert backends.requested() == "auto"


@pytest.mark.deep
def test_environment_forces() -> None:
    code = "import torch; from fastmlp.backends import choose; print(choose(torch.ones(1)).reason)"
    assert "asked for" in run(code, FASTMLP_BACKEND="torch").stdout
    wrong = run(code, FASTMLP_BACKEND="cuda").stderr
    assert "ValueError: FASTMLP_BACKEND: expected one of auto, torch, triton, got 'cuda'" in wrong
    with pytest.raises(ValueError, match="name: expected one of"), backends.use("cuda"):
        pass


def test_float64_goes_to_aten(device: str) -> None:
    with backends.use("triton"):
        choice = backends.choose(torch.ones(1, dtype=torch.float64, device=device))
    assert choice.backend is None
    assert "float64" in choice.reason


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True
    )


@pytest.mark.deep
def test_triton_on_a_cpu_needs_the_interpreter() -> None:
    code = "import torch; from fastmlp.backends import choose; choose(torch.ones(1))"
    result = run(code, FASTMLP_BACKEND="triton")
    assert "RuntimeError: FASTMLP_BACKEND=triton: the tensors are not on a GPU" in result.stderr


def test_import_needs_torch_only() -> None:
    """No extra, and no Triton, is imported by `import fastmlp` and a CPU forward."""
    code = (
        "import sys\n"
        "for name in ('triton', 'typer', 'rich', 'matplotlib', 'safetensors', 'torchvision', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import fastmlp, torch\n"
        "print(fastmlp.MLP(4, [3, 2])(torch.ones(1, 4)).shape)"
    )
    result = run(code)
    assert result.stdout.strip() == "torch.Size([1, 2])", result.stderr


@pytest.fixture
def asked_anew() -> Iterator[None]:
    backends._triton_problem.cache_clear()
    yield
    backends._triton_problem.cache_clear()


@pytest.mark.usefixtures("asked_anew")
def test_missing_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "cannot be imported" in str(backends.triton_problem(0))


@pytest.mark.usefixtures("asked_anew")
def test_old_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    monkeypatch.setattr(triton, "__version__", "3.1.0")
    assert "Triton 3.1.0 is older than 3.5" in str(backends.triton_problem(0))


@pytest.mark.usefixtures("asked_anew")
def test_an_old_gpu_runs_torchs_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """A V100 and a T4, which the kernels' tiles are too large for; beside one that runs them."""
    capabilities = [(7, 0), (7, 5), (8, 0), (12, 0)]
    monkeypatch.setattr("fastmlp.kernels.launch.INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: capabilities[gpu])
    monkeypatch.setattr(torch.version, "hip", None)
    said = [backends.triton_problem(gpu) for gpu in range(4)]
    assert said == ["compute capability 7.0 is below 8.0", "compute capability 7.5 is below 8.0", None, None]
    backends._triton_problem.cache_clear()
    monkeypatch.setattr(torch.version, "hip", "7.0")  # gfx90a says 9.0, gfx1100 11.0: another scale
    assert backends.triton_problem(0) is None


def test_transforms_go_to_aten(device: str) -> None:
    """torch.func's wrapped tensors and tensor subclasses have no memory of their own for a kernel to read."""
    net = fastmlp.MLP(5, [4, 3], device=device)
    x = torch.randn(6, 5, device=device)
    with backends.use("triton"):
        assert torch.func.vmap(net)(x).shape == (6, 3)
        jacobian = torch.func.jacrev(net)(x[0])
        traced = torch.jit.trace(net, x, check_trace=False)
        torch.testing.assert_close(traced(2 * x), net(2 * x), rtol=1e-5, atol=1e-6)
    assert jacobian.shape == (3, 5)


def test_autocast_leaves_float64_alone(device: str) -> None:
    net = fastmlp.MLP(5, [4, 3], device=device, dtype=torch.float64)
    x = torch.randn(6, 5, device=device, dtype=torch.float64)
    with backends.use("triton"), torch.autocast(device, torch.bfloat16):
        ours = net(x)
    with backends.use("torch"), torch.autocast(device, torch.bfloat16):
        assert torch.equal(ours, net(x))
    assert ours.dtype == torch.float64
