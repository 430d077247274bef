"""What is shipped, and that it works where there is nothing but torch.

A CPU-only torch cannot be had from every registry, so one is played: torch without Triton, NumPy, torchvision
and GPUs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable, Mapping
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fastmlp
from tests.once import once

ROOT = Path(__file__).resolve().parent.parent
#: What torch asks for and a CPU build of it comes without, and what it asks for only optionally.
LEFT_OUT = {"triton", "numpy"}
#: Of the extra "train", without what the command line imports only where it is used.
COMMAND_LINE = ("numpy", "rich", "safetensors", "tomli-w", "typer")


def run(command: Iterable[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with no GPU, and nothing of this process' environment that could help it."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "TRITON", "FASTMLP", "PYTEST"))
    }
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def build(folder: Path) -> None:
    """The wheel and the sdist of a clean copy of the tree; and in "again" the wheel of the sdist."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    source = folder / "source"
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    tool = [sys.executable, "-m", "build", "--no-isolation"]  # with this environment's setuptools: no network
    for command in ([*tool, "--sdist", "--wheel", "--outdir", folder], [*tool, "--outdir", folder / "again"]):
        done = run([*command, source], folder)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(tmp_path_factory, "packages", build)


@pytest.fixture(scope="session")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def sdist(built: Path) -> Path:
    (path,) = built.glob("*.tar.gz")
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *folders], cwd=ROOT, capture_output=True
    )
    return {name for name in listed.stdout.decode().splitlines() if (ROOT / name).is_file()}


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    installed = {
        re.sub(r"^(kernels|benchmarks)/", r"fastmlp/\1/", name)
        for name in tracked("fastmlp", "kernels", "benchmarks")
        if not name.startswith("benchmarks/results/")
    }
    names = {name for name in contents(wheel) if ".dist-info/" not in name}
    assert names == installed
    assert {"fastmlp/py.typed", "fastmlp/kernels/decisions.json", "fastmlp/kernels/linear.py"} <= names
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
    assert {"LICENSE", "README.md", "pyproject.toml", "kernels/decisions.json", "fastmlp/py.typed"} <= names
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


def closure(*names: str) -> set[str]:
    """Distributions that these need, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        wanted = map(Requirement, metadata.requires(name) or ())
        waiting += [w.name for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]
    return found


def link(names: Iterable[str], folder: Path) -> None:
    """Make what these distributions install visible in ``folder``, whatever else lies beside it."""
    for name in names:
        distribution = metadata.distribution(name)
        tops = {
            file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            place = folder / top
            if not place.exists():
                place.symlink_to(Path(str(distribution.locate_file(top))).resolve())


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A Python that has the wheel, torch without Triton, and what torch needs."""

    def make(folder: Path) -> None:
        venv.create(folder, with_pip=False)
        python = folder / "bin" / "python"
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps"]
        installed = run([*pip, wheel], folder)
        assert installed.returncode == 0, installed.stderr
        (site,) = (folder / "lib").glob("python*/site-packages")
        link(closure("torch") - LEFT_OUT, site)

    return once(tmp_path_factory, "bare", make) / "bin"


@pytest.fixture(scope="session")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> str:
    """For PYTHONPATH: what the command line needs besides."""

    def make(folder: Path) -> None:
        folder.mkdir()
        link(closure(*COMMAND_LINE), folder)

    return str(once(tmp_path_factory, "command-line", make))


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
    asked = train(bare, tmp_path, paths, "--data", str(tmp_path))
    assert asked.returncode == 1
    assert asked.stderr == f"error: {FAILURE}\n"
    assert "operator torchvision::nms" in info(bare, tmp_path, *paths.values())
