"""The command line as a user meets it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from fastmlp import cli
from fastmlp.data import DataError, synthetic
from fastmlp.training import checkpoint, position


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, list(arguments))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic set, at 600 examples."""
    monkeypatch.setattr(cli.train, "synthetic", lambda seed: synthetic(seed, train=600, test=100))


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
        (
            ["--lr", "1e30"],
            1,
            "the loss is nan in epoch 1, step 2 of 3; a smaller lr may help; no checkpoint was",
        ),
        (["--hidden", "99999999999"], 1, "can't allocate memory"),
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


@pytest.mark.usefixtures("small")
def test_what_a_checkpoint_replaces(tmp_path: Path) -> None:
    """A finished run's; an unfinished one's, or what is no checkpoint, is put aside."""
    kept, aside = tmp_path / "run", tmp_path / "run.previous"
    base = ["train", "--dataset", "synthetic", "--device", "cpu", "--hidden", "8"]
    base += ["--out", str(tmp_path / "net"), "--checkpoint", str(kept), "--epochs"]
    assert run(*base, "1").exit_code == 0
    assert run(*base, "1").exit_code == 0
    assert not aside.exists()
    longer = run(*base, "3", "--resume")
    assert "going on after the end of epoch 1" in longer.output
    failed = run(*base, "5", "--lr", "1e30", "--resume", "--changed", "lr")
    assert (failed.exit_code, position(kept).epochs) == (1, 3)
    kept.write_bytes(b"notes")
    refused = run(*base, "1", "--resume")
    assert (refused.exit_code, f"--checkpoint {kept}: expected a safetensors" in refused.output) == (1, True)
    assert f"moved to {aside}" in run(*base, "1").output
    assert aside.read_bytes() == b"notes"
    assert "no checkpoint at" in run(*base[:-2], str(tmp_path / "new"), "--epochs", "1", "--resume").output
    same = run(*base[:-2], str(tmp_path / "net"), "--epochs", "1")
    assert (same.exit_code, "expected another file than --out's" in same.output) == (2, True)


@pytest.mark.usefixtures("small")
def test_a_full_disk_is_a_line_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a later run puts the checkpoint aside that is left."""
    write, kept = checkpoint.write, tmp_path / "net.ckpt.safetensors"

    def fills_up(path: Path, tensors: dict, content: dict) -> None:
        if "metadata" in content and content["metadata"].get("epoch", 1) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, tensors, content)

    monkeypatch.setattr(checkpoint, "write", fills_up)
    base = ["train", "--dataset", "synthetic", "--device", "cpu", "--hidden", "", "--epochs", "3"]
    result = run(*base, "--out", str(tmp_path / "net"))
    assert result.exit_code == 0
    said = "No space left on device; training goes on; the last good checkpoint, "
    for number in (2, 3):
        assert f"checkpoint {kept} of the end of epoch {number}: {said}{kept}, is of" in result.output
    aside = f"{kept} is of an unfinished run: the end of epoch 1 of 3; moved to {kept}.previous"
    assert aside in run(*base, "--out", str(tmp_path / "net")).output


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

    monkeypatch.setattr(cli.train, "load", load)
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
