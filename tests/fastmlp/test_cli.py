"""The command line as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from fastmlp import cli
from fastmlp.data import DataError, synthetic
from fastmlp.training import checkpoint


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic set, at 600 examples."""
    monkeypatch.setattr(cli, "synthetic", lambda seed: synthetic(seed, train=600, test=100))


@pytest.mark.usefixtures("small")
def test_train(tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    result = run(
        "train", "--dataset", "synthetic", "--epochs", "2", "--hidden", "32,16", "--activation", "gelu_tanh",
        "--device", "cpu", "--dtype", "bfloat16", "--out", str(out),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].startswith("784-32-16-10 gelu_tanh, synthetic (seed 0), 600 examples, batch 256, SGD 0.1")
    assert [line.split()[:2] for line in lines[1:3]] == [["epoch", "1"], ["epoch", "2"]]
    for word in ("train loss", "train accuracy", "test accuracy", "examples/s"):
        assert word in lines[1]
    assert lines[-1].startswith("2 epochs in ")
    state, metadata = checkpoint.load(out)
    assert metadata["widths"] == [784, 32, 16, 10]
    assert state["0.weight"].dtype == torch.float32


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("engine", "runs"), [("auto", "cpu"), ("fused", "cpu"), ("eager", "eager")])
def test_engine_and_schedule(engine: str, runs: str, tmp_path: Path) -> None:
    result = run(
        "train", "--dataset", "synthetic", "--epochs", "1", "--device", "cpu", "--engine", engine,
        "--schedule", "one-cycle", "--out", str(tmp_path / "net"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert f"engine {runs})" in result.output.splitlines()[-1]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("activation", ["prelu", "none", "leaky_relu"])
def test_every_kind_of_activation_trains(activation: str, tmp_path: Path) -> None:
    result = run(
        "train", "--dataset", "synthetic", "--epochs", "1", "--activation", activation, "--device", "cpu",
        "--hidden", "8", "--out", str(tmp_path / "net"),
    )  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--hidden", "12,x"], 2, "--hidden 12,x: expected positive widths"),
        (["--hidden", "0"], 2, "--hidden 0: expected positive widths"),
        (["--activation", "swish"], 2, "--activation swish: expected one of none, relu"),
        (["--lr", "1e30"], 1, "the loss is nan in epoch 1"),
        (["--epochs", "-1"], 2, "epochs"),
        (["--out", "/proc/nowhere/net"], 1, "--out /proc/nowhere/net: No such file"),
        (["--out", "/tmp"], 1, "--out /tmp: a directory"),
        (["--data", "/tmp"], 2, "--data /tmp: the synthetic set is read from no files"),
        (["--device", "gpu"], 2, "--device gpu: expected cpu, cuda or cuda:1"),
        (["--device", "meta"], 2, "--device meta: expected cpu, cuda or cuda:1"),
        (["--device", "cuda:99"], 2, "--device cuda:99: torch sees"),
        (["--lr", "-1"], 2, "lr"),
        (["--engine", "graph"], 2, "engine: 'graph' cannot run this: it needs a GPU"),
        (["--activation", "prelu", "--engine", "fused"], 2, "'fused' cannot run this: a PReLU learns"),
        (["--engine", "fastest"], 2, "--engine"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    base = [
        "train",
        "--dataset",
        "synthetic",
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "n"),
    ]
    result = run(*base, *arguments)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output


def test_missing_data_is_an_error(tmp_path: Path) -> None:
    result = run("train", "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "train-images-idx3-ubyte: No such file" in result.output
    assert "/[/x]/" in run("train", "--data", "/[/x]").output  # brackets are no markup


@pytest.mark.usefixtures("small")
def test_the_fallback_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(data, say):
        say("Fashion-MNIST is not to be had (offline). Training on the embedded synthetic set instead.")
        return synthetic(train=300, test=50)

    monkeypatch.setattr(cli, "load", load)
    result = run("train", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "n"))
    assert "embedded synthetic set instead" in result.output
    assert "synthetic (seed 0)" in result.output
    assert issubclass(DataError, Exception)


def test_info_prints_what_a_net_costs() -> None:
    result = run("info", "--widths", "64,64,64,64", "--batch", "4096", "--dtype", "bfloat16", "--on", "h100")
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
        (("--on", "h300"), "--on h300: expected one of a100,"),
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


def test_help_has_an_example() -> None:
    for command in ("train", "info"):
        assert "Example:" in run(command, "--help").output
