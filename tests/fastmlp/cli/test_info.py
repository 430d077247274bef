"""``fastmlp info``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastmlp
from fastmlp import backends
from fastmlp.benchmarks import machine
from fastmlp.kernels import launch
from tests.commands import run, run_json
from tests.processes import output_of


def test_info_prints_what_a_net_costs() -> None:
    result = run(
        "info", "--inputs", 64, "--hidden", "64,64", "--outputs", 64, "--batch-size", 4096,
        "--dtype", "bfloat16", "--device", "h100",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines()]
    assert ["eager", "5", "+", "10"] in [row[:4] for row in rows]
    assert ["whole", "1", "+", "3"] in [row[:4] for row in rows]
    assert "64 (x 4): forward + backward, batch 4096, bfloat16 (half) on h100" in result.output
    assert "64 (x 4): whole, floors:" in result.output
    assert "kept" not in run("info", "--inference").output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--widths", "784"), "--widths 784: expected two at least"),
        (("--widths", "784,0"), "--widths 784,0: expected positive widths"),
        (("--device", "h300"), "--device h300: expected one of a100,"),
        (("--on", "h300"), "--device h300: expected one of a100,"),
        (("--hidden", "784,0"), "--hidden 784,0: expected positive widths"),
    ],
)
def test_info_with_a_bad_option(options: tuple[str, ...], text: str) -> None:
    result = run("info", *options)
    assert result.exit_code == 2
    assert text in result.output


def test_info() -> None:
    result = run("info")
    assert result.exit_code == 0
    for word in ("torch", "triton", "FASTMLP_BACKEND", "on cpu", "off the GPU"):
        assert word in result.output


def test_json() -> None:
    sizes = ("--inputs", 64, "--hidden", 64, "--outputs", 64)
    found = run_json("info", *sizes, "--batch-size", 512, "--device", "h100")
    before = ("--widths", "64,64,64", "--batch", 512, "--on=h100")  # as it was called
    assert run_json("info", *before) == found
    assert found["versions"]["torch"] == torch.__version__
    cpu = found["devices"][0]
    assert cpu["device"] == "cpu"
    assert cpu["threads"] == torch.get_num_threads()
    assert cpu["instructions"]
    assert (cpu["backend"], cpu["reason"]) == ("torch", "off the GPU torch's own ops are the fastest")
    assert len(found["devices"]) == 1 + torch.cuda.device_count()
    for gpu in found["devices"][1:]:
        assert gpu["memory"] > 2**30
    plan, expected = found["cost"]["plans"]["whole"], fastmlp.cost((64, 64, 64), 512, device="h100")
    assert plan["bytes"] == expected.plans["whole"].work.bytes
    assert plan["floor_seconds"] == expected.seconds("whole")


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (None, "direct, each decided once"),
        ("Triton 9 is new", "by Triton's own run: Triton 9 is new"),
    ],
)
def test_how_kernels_are_launched_is_said(
    problem: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "fast_problem", lambda: problem)
    assert run_json("info")["versions"]["launches"] == said


@pytest.fixture
def looked_at_again() -> Iterator[None]:
    """Which Triton there is is remembered, but not beyond this test."""
    backends._triton_problem.cache_clear()
    yield
    backends._triton_problem.cache_clear()


@pytest.mark.usefixtures("looked_at_again")
def test_a_triton_that_is_too_old_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.1.0"))
    versions = run_json("info")["versions"]
    assert ": Triton 3.1.0 is older than 3.5, so GPUs run torch's own ops" in versions["triton"]


@pytest.mark.deep
def test_a_triton_that_is_missing_is_said() -> None:
    """In a process that never had it."""
    code = 'import sys; sys.modules["triton"] = None; from fastmlp.cli import app; app(["info", "--json"])'
    versions = json.loads(output_of(code))["versions"]
    said = versions["triton"]
    assert "launches" not in versions
    assert ": Triton cannot be imported (import of triton halted" in said
    assert "so GPUs run torch's own ops; PyTorch's CUDA build brings a Triton that fits" in said


def test_a_torchvision_that_cannot_load_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a CPU-only torch: what to install."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    result = run("info")
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "cannot be imported (import of torchvision halted" in said
    assert "pip install torch torchvision, both from the same index" in said


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As far as ``info`` looks at one."""
    facts = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=141 << 30)
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    monkeypatch.setattr(torch, "empty", lambda *sizes, device="cpu": empty(*sizes))
    return facts


@pytest.mark.usefixtures("gpu")
def test_a_gpu_with_no_report_is_to_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone, which has a folder for reports; an installed wheel has none."""
    said = "no report of it is stored: python -m benchmarks.gpu --out DIR makes one, docs/benchmarks.md"
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert said not in " ".join(run("info").output.split())
    assert "measure" not in run_json("info")["devices"][1]
    (tmp_path / "results").mkdir()
    assert said in " ".join(run("info").output.split())
    about = run_json("info")["devices"]
    assert about[1]["measure"] == "python -m benchmarks.gpu --out DIR"
    assert "measure" not in about[0]
    report = tmp_path / "results" / "gpu-nvidia-h200" / "report.json"
    report.parent.mkdir()
    report.write_text("{}")
    assert said not in " ".join(run("info").output.split())


@pytest.mark.usefixtures("gpu")
def test_where_reports_are_stored() -> None:
    """Where the repository's own are."""
    stored = (Path(machine.__file__).parent / "results").resolve()
    assert list(stored.glob("*/report.json"))
    measured = (stored / "gpu-nvidia-h200" / "report.json").is_file()
    assert ("measure" in run_json("info")["devices"][1]) == (not measured)
