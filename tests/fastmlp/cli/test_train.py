"""``fastmlp train``."""

from __future__ import annotations

import errno
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fastmlp import data
from fastmlp.cli import sets, trainer
from fastmlp.cli.options import Dataset
from fastmlp.data import DataError
from fastmlp.training import checkpoint, position
from tests.commands import assert_fails, run, run_json


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
        (
            ["--hidden", "99999999999"],
            1,
            "--hidden 99999999999: out of memory: 313,599,999,996,864 bytes asked",
        ),
        (["--epochs", "-1"], 2, "epochs"),
        (["--out", "/proc/nowhere/net"], 1, "--out /proc/nowhere/net: No such file"),
        (["--out", "/tmp"], 1, "--out /tmp: a directory"),
        (["--data", "/tmp"], 2, "--data /tmp: the synthetic set is drawn here and reads no files"),
        (["--device", "gpu"], 2, "--device gpu: expected cpu, cuda or cuda:1"),
        (["--device", "meta"], 2, "--device meta: expected cpu, cuda or cuda:1"),
        (["--device", "cuda:99"], 2, "--device cuda:99: torch sees"),
        (["--lr", "-1"], 2, "'--lr': expected a finite number of at least 0, got -1"),
        (["--lr", "nan"], 2, "'--lr': expected a finite number of at least 0, got nan"),
        (["--weight-decay", "inf"], 2, "'--weight-decay': expected a finite number of at least 0, got inf"),
        (["--changed", "lr"], 2, "--changed lr: expected --resume with it"),
        (
            ["--resume", "--changed", "rate"],
            2,
            "--changed rate: expected one of lr, weight-decay, schedule, ",
        ),
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
    base = ["train", "--dataset", "synthetic", "--device", "cpu", "--hidden", "8", "--overwrite"]
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
    assert aside in run(*base, "--out", str(tmp_path / "net"), "--overwrite").output


def test_missing_data_is_an_error(tmp_path: Path) -> None:
    result = run("train", "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "train-images-idx3-ubyte: No such file" in result.output
    assert "/[/x]/" in run("train", "--data", "/[/x]").output  # brackets are no markup


@pytest.mark.usefixtures("small")
def test_the_fallback_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def named(name, root, say):
        say("Fashion-MNIST is not available (offline). Training on the embedded synthetic set instead.")
        return data.synthetic(train=300, test=50)

    monkeypatch.setattr(data, "named", named)
    result = run("train", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "n"))
    assert "embedded synthetic set instead" in result.output
    assert "synthetic (seed 0)" in result.output
    assert issubclass(DataError, Exception)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adam", "adamw"])
def test_optimizers_train(optimizer: str, device: str, tmp_path: Path) -> None:
    """By an engine that knows them."""
    found = run_json(
        "train", "--dataset", "digits", "--subset", 600, "--epochs", 2, "--batch-size", 32, "--hidden", 16,
        "--optimizer", optimizer, "--device", device, "--out", tmp_path / "net",
    )  # fmt: skip
    assert found["engine"] != "eager"
    first, second = (epoch["train_loss"] for epoch in found["epochs"])
    assert second < first < 2.35


def test_compile(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled net trains, by autograd; its file is as any other's."""
    compiled = []

    def note(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        compiled.append(graph)  # and run it as it is: Inductor takes its time
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=note))
    base = ("train", "--dataset", "digits", "--epochs", 1, "--device", device, "--hidden", 8, "--out")
    found = run_json(*base, tmp_path / "compiled", "--compile")
    assert compiled
    plain = run_json(*base, tmp_path / "eager", "--engine", "eager")
    assert (found["engine"], found["config"]["compile"]) == ("eager", True)
    assert found["epochs"][0]["train_loss"] == pytest.approx(plain["epochs"][0]["train_loss"], rel=1e-4)
    assert run("eval", tmp_path / "compiled", "--device", "cpu").exit_code == 0
    for engine in ("fused", "graph", "persistent"):
        refused = run(*base, tmp_path / "x", "--compile", "--engine", engine)
        assert_fails(
            refused, 2, f"--compile: --engine {engine} runs no code of torch's; expected auto or eager"
        )


def test_compile_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    def fit(*_: object, **__: object) -> None:
        raise TorchDynamoException("InvalidCxxCompiler: No working C++ compiler found\n  and more")

    monkeypatch.setattr(trainer, "fit", fit)
    result = run("train", "--dataset", "digits", "--compile", "--device", "cpu", "--out", tmp_path / "n")
    assert_fails(result, 1, "--compile: InvalidCxxCompiler: No working C++ compiler found")


def test_early_stopping(tmp_path: Path) -> None:
    """It is said why; --min-delta alone is refused."""
    base = ("train", "--dataset", "diabetes", "--device", "cpu", "--out", tmp_path / "net")
    options = ("--epochs", 20, "--patience", 2, "--min-delta", 1000)
    found = run_json(*base, *options)
    assert len(found["epochs"]) == 3
    assert "the test loss has not improved for 2 epochs since epoch 1" in found["stopped"]
    again = run(*base, *options, "--overwrite")
    assert "unfinished" not in again.output  # the first run's checkpoint is no reason to worry
    lines = again.output.splitlines()
    assert lines[-2] == f"stopped early: {found['stopped']}"
    assert "test loss " in lines[-1]
    assert_fails(run(*base, "--min-delta", 1), 2, "--min-delta 1.0: expected --patience with it")


def test_clipping(tmp_path: Path) -> None:
    """So tight that nothing is learned."""
    base = ("train", "--dataset", "digits", "--device", "cpu", "--epochs", 1, "--out", tmp_path / "net")
    base += ("--overwrite",)
    tight, free = run_json(*base, "--clip", 1e-9), run_json(*base)
    assert tight["epochs"][0]["train_loss"] > free["epochs"][0]["train_loss"]
    assert tight["engine"] == "eager"
    assert_fails(run(*base, "--clip", 0), 2, "--clip 0.0: expected a positive number")
    assert_fails(run(*base, "--clip", 1, "--engine", "fused"), 2, "'fused' cannot run this: clip_norm needs")


def test_subset(tmp_path: Path) -> None:
    """The first examples, of the test set in proportion: 1437 and 360."""
    base = ("train", "--dataset", "digits", "--device", "cpu", "--epochs", 1, "--out", tmp_path / "net")
    base += ("--overwrite",)
    result = run(*base, "--subset", 144)
    assert "digits, 144 examples" in result.output
    train, test = sets.both(Dataset.digits, None, 144)
    whole, whole_test = data.named("digits")
    assert (len(train), len(test)) == (144, 36)
    assert torch.equal(train.images, whole.images[:144])
    assert torch.equal(test.labels, whole_test.labels[:36])
    assert "digits, 1,437 examples" in run(*base, "--subset", 5000).output
    assert [len(samples) for samples in sets.both(Dataset.diabetes, None, 2)] == [2, 1]


def test_regression(tmp_path: Path) -> None:
    result = run(
        "train", "--dataset", "diabetes", "--device", "cpu", "--epochs", 2, "--out", tmp_path / "net"
    )
    lines = result.output.splitlines()
    assert lines[0].startswith("10-256-1 relu, diabetes")
    assert "accuracy" not in result.output
    assert "test loss " in lines[-1]
    _, about = checkpoint.load(tmp_path / "net")
    assert (about["widths"], about["classes"]) == ([10, 256, 1], [])


@pytest.mark.usefixtures("small")
def test_json(tmp_path: Path) -> None:
    """One object on stdout, and on stderr what there is to read."""
    base = ("train", "--dataset", "synthetic", "--device", "cpu", "--epochs", 2, "--out", tmp_path / "net")
    result = run(*base, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert len(result.stderr.splitlines()) == 4
    assert result.stderr.splitlines()[-1].startswith("2 epochs in ")
    assert {"config", "epochs", "seconds", "engine", "accuracy", "stopped", "paths"} <= {*found}
    failed = run(*base, "--json", "--lr", 1e30, "--overwrite")
    assert (failed.exit_code, failed.stdout) == (1, "")
