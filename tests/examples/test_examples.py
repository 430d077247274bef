"""Every example does what it says, on a small job."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import nn

import fastmlp
from fastmlp.data import synthetic

_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example as a module, on a small synthetic set."""
    spec = importlib.util.spec_from_file_location(name, _EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if hasattr(module, "load"):
        monkeypatch.setattr(module, "load", lambda data, say: synthetic(train=600, test=100))
    return module


@pytest.mark.parametrize("name", ["from_scratch", "concise"])
def test_it_trains(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example(name, monkeypatch).main(data=None, epochs=2, batch_size=256, lr=0.1, seed=0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch   1  train loss 2.3")


def test_the_poisson_problem_is_solved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To 0.5 %, in two seconds on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a net takes twenty times as long with threads that others share
    example("poisson", monkeypatch).main()
    torch.set_num_threads(threads)
    *_, last = capsys.readouterr().out.splitlines()
    assert float(last.removeprefix("relative error ")) < 5e-3


def test_a_picture_is_fitted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "picture.png"
    module = example("picture", monkeypatch)
    module.main(size=48, depth=3, steps=150, batch_size=512, lr=1e-2, device="cpu", out=out)
    *_, last = capsys.readouterr().out.splitlines()
    assert float(last.split(" dB")[0]) > 24  # 10 to 11 before the training
    with Image.open(out) as drawn:
        assert drawn.format == "PNG"
        assert drawn.width > 1000


def test_a_picture_of_ones_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGBA", (40, 20), (255, 0, 51, 255)).save(path)
    read = example("picture", monkeypatch).picture(path, width=20)
    assert read.shape == (10, 20, 3)
    torch.testing.assert_close(read[0, 0], torch.tensor([1.0, 0.0, 0.2]))


@pytest.mark.deep
def test_an_ensemble_votes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    example("ensemble", monkeypatch).main(nets=100, width=8, epochs=6, device="cpu")
    first, alone, together = capsys.readouterr().out.splitlines()
    assert first.startswith("100 nets in ")
    mean, lowest, _ = map(float, re.findall(r"0\.\d+", alone))
    assert lowest < mean < float(together.split()[-1])


def test_the_nets_of_an_ensemble_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the stacked gradients is one net's own."""
    module = example("ensemble", monkeypatch)
    nets = [fastmlp.MLP(4, [3, 2]) for _ in range(3)]
    parameters = module.stacked(nets)
    x, y = torch.randn(3, 5, 4), torch.randint(2, (3, 5))

    def objective(one: dict[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(nets[0], one, (inputs,)), labels)

    torch.func.vmap(objective)(parameters, x, y).sum().backward()
    for i, net in enumerate(nets):
        nn.functional.cross_entropy(net(x[i]), y[i]).backward()
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(parameters[name].grad[i], parameter.grad)


def test_lightning_trains_as_with_torch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("lightning_module", monkeypatch)
    module.main(epochs=3, batch_size=50)
    ours = capsys.readouterr().out
    monkeypatch.setattr(fastmlp, "Sequential", nn.Sequential)
    monkeypatch.setattr(fastmlp, "CrossEntropyLoss", nn.CrossEntropyLoss)
    module.main(epochs=3, batch_size=50)
    found = re.search(r"train loss (\S+)  test accuracy (\S+)", ours)
    assert found is not None
    assert float(found[1]) < 2.25  # from 2.3
    torchs = re.search(r"train loss (\S+)  test accuracy (\S+)", capsys.readouterr().out)
    assert torchs is not None
    assert float(found[1]) == pytest.approx(float(torchs[1]), abs=2e-4)
    assert float(found[2]) == pytest.approx(float(torchs[2]), abs=0.011)  # one of the 100


@pytest.mark.deep
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    script = tmp_path / "small.py"
    script.write_text(
        "import runpy, sys\n"
        "from fastmlp import data\n"
        "data.load = lambda root, say: data.synthetic(train=600, test=100)\n"
        f"runpy.run_path({str(_EXAMPLES / 'ddp.py')!r}, run_name='__main__')\n"
    )

    def losses(processes: int) -> list[float]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        run = subprocess.run(
            [*command, str(processes), str(script), "--epochs", "2", "--batch-size", "100"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, run.stderr
        lines = run.stdout.splitlines()
        assert len(lines) == 2  # the first process alone speaks
        return [float(line.split()[4]) for line in lines]

    assert losses(2) == pytest.approx(losses(1), abs=2e-4)
