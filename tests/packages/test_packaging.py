"""What is shipped, and that it works where there is nothing but torch.

Not every registry has a CPU-only torch, so one is imitated: torch without Triton, NumPy, torchvision
and GPUs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from email.parser import Parser
from pathlib import Path

import pytest

import fastmlp
from tests.installs import ROOT, listed, run

pytestmark = pytest.mark.deep  # wheels, environments and type checkers take minutes


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    installed = {
        re.sub(r"^(kernels|benchmarks)/", r"fastmlp/\1/", name)
        for name in listed("fastmlp", "kernels", "benchmarks")
        if (ROOT / name).is_file() and not name.startswith("benchmarks/results/")
    }
    names = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert names == installed
    assert {
        "fastmlp/py.typed",
        "fastmlp/kernels/tiles/decisions.json",
        "fastmlp/kernels/tiles/tiles.json",
        "fastmlp/kernels/tiles/tiles.txt",
    } <= names
    assert {"fastmlp/benchmarks/report.py", "fastmlp/cli/__init__.py"} <= names


def test_the_wheel_has_no_data_and_is_small(wheel: Path) -> None:
    names = contents(wheel)
    kinds = {Path(name).suffix for name in names if ".dist-info/" not in name}
    assert not kinds & {".ipynb", ".npy", ".npz", ".pt", ".safetensors", ".gz", ".idx", ""}
    assert not any(re.search(r"(^|/)(tests|results|docs|data/raw)/", name) for name in names)
    assert wheel.stat().st_size < 2**20


def test_the_sdist_builds_the_same_wheel(built: Path, wheel: Path, sdist: Path) -> None:
    (again,) = (built / "again").glob("*.whl")
    first, second = contents(wheel), contents(again)
    assert first == second
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", ".src/fastmlp/kernels/tiles/decisions.json"} <= names
    code = [name.removeprefix(".src/") for name in names if name.endswith(".py") and name != "setup.py"]
    assert sorted(code) == sorted(name for name in first if name.endswith(".py"))  # each file once
    assert not any(name.startswith(("tests", "docs", "benchmarks/results", "examples")) for name in names)


def test_the_metadata(wheel: Path, sdist: Path) -> None:
    files = contents(wheel)
    (name,) = (name for name in files if name.endswith(".dist-info/METADATA"))
    found = Parser().parsestr(files[name].decode())
    assert found["Version"] == fastmlp.__version__
    assert found["Requires-Python"] == ">=3.10"
    assert found["License-Expression"] == "MIT"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in files)
    versions = [line.rsplit(" ", 1)[1] for line in found.get_all("Classifier", []) if "Python :: 3." in line]
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    needed = [line for line in found.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert needed == ["torch>=2.9"]
    checked = run([sys.executable, "-m", "twine", "check", "--strict", wheel, sdist], wheel.parent)
    assert checked.returncode == 0, checked.stdout


TORCH_ALONE = """
import importlib.util, sys, torch
for name in ("numpy", "triton", "torchvision", "rich", "typer", "safetensors", "matplotlib"):
    assert importlib.util.find_spec(name) is None, name
assert not torch.cuda.is_available()

import fastmlp
from torch import nn

x, y = torch.randn(96, 20), torch.randint(3, (96,))
net = fastmlp.MLP(20, [16, 3])
assert net(x).shape == (96, 3)
fused = fastmlp.fuse(nn.Sequential(nn.Linear(20, 16), nn.GELU(), nn.Linear(16, 3)))
step = fastmlp.TrainStep(net, fastmlp.CrossEntropyLoss(), torch.optim.Adam(net.parameters(), lr=0.01))
losses = [float(step(x, y)) for _ in range(20)]
assert losses[-1] < losses[0]
history = fastmlp.fit(fused, (x, y), (x, y), epochs=2, batch_size=32)
train, test = fastmlp.data.synthetic(train=200, test=100)
fastmlp.fit(fastmlp.MLP(784, [16, 10]), train, test, epochs=1)
assert fastmlp.cost(net, 256, device="h100").plans
assert "needs" not in str(fastmlp.backends.choose(x).reason)
print(fastmlp.__version__, step.engine, history.engine, len(history.epochs))
"""


def test_torch_alone_is_enough(bare: Path, tmp_path: Path) -> None:
    done = run([bare / "python", "-c", TORCH_ALONE], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [fastmlp.__version__, "cpu", "cpu", "2"]


@pytest.mark.parametrize("command", [["fastmlp", "train"], ["python", "-m", "fastmlp"]], ids=" ".join)
def test_the_command_line_says_what_to_install(bare: Path, tmp_path: Path, command: list[str]) -> None:
    # torch warns as it is imported without NumPy
    done = run([bare / command[0], *command[1:]], tmp_path, PYTHONWARNINGS="ignore")
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(
        r"fastmlp: the command line needs more \(No module named '\w+'\): pip install 'fastmlp\[train\]'\n",
        done.stderr,
    )


def fake(folder: Path, name: str, code: str, version: str) -> str:
    """A package of that name in ``folder``, as a path for PYTHONPATH."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


def info(bare: Path, tmp_path: Path, *paths: str, **environment: str) -> str:
    done = run(
        [bare / "python", "-m", "fastmlp", "info"], tmp_path, PYTHONPATH=os.pathsep.join(paths), **environment
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_info_says_that_triton_is_missing(bare: Path, tmp_path: Path, command_line: str) -> None:
    said = info(bare, tmp_path, command_line)
    assert re.search(r"triton +not installed.*Triton cannot be imported \(No module named 'triton'\)", said)
    assert re.search(r"torchvision +not installed", said)


def test_info_says_that_triton_is_too_old(bare: Path, tmp_path: Path, command_line: str) -> None:
    old = fake(tmp_path / "old", "triton", '__version__ = "3.1.0"\n', "3.1.0")
    said = info(bare, tmp_path, old, command_line)
    assert re.search(r"triton +3\.1\.0.*Triton 3\.1\.0 is older than 3\.5", said)


NMS = 'raise RuntimeError("operator torchvision::nms does not exist")\n'
FAILURE = (
    "torchvision cannot be imported (operator torchvision::nms does not exist); "
    "install it with `pip install torch torchvision`, both from the same index"
)


def train(
    bare: Path, tmp_path: Path, paths: Mapping[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    command = [bare / "python", "-m", "fastmlp", "train", "--epochs", "0", "--hidden", "8"]
    command += ["--out", tmp_path / "net.safetensors", *options]
    return run(command, tmp_path, FASTMLP_DATA=str(tmp_path / "data"), **paths)


def test_a_torchvision_that_does_not_load_is_said(bare: Path, tmp_path: Path, command_line: str) -> None:
    """Beside a CPU-only torch the registry's torchvision is one; the synthetic set takes its place."""
    broken = fake(tmp_path / "broken", "torchvision", NMS, "0.29.0")
    paths = {"PYTHONPATH": os.pathsep.join((broken, command_line))}
    done = train(bare, tmp_path, paths)
    assert done.returncode == 0, done.stderr
    assert FAILURE in done.stderr
    assert "synthetic set instead" in done.stderr
    assert (tmp_path / "net.safetensors").exists()
    asked = train(bare, tmp_path, paths, "--data", str(tmp_path), "--overwrite")
    assert asked.returncode == 1
    assert asked.stderr == f"error: {FAILURE}\n"
    assert "operator torchvision::nms" in info(bare, tmp_path, *paths.values())
